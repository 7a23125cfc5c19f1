"""An adapter as a PEFT folder, inside a checkpoint or a GGUF file, or as llama.cpp's LoRA file."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from transformers.pytorch_utils import Conv1D

from truthheads.errors import ModelError
from truthheads.exporting.adapter import AdapterNote
from truthheads.exporting.card import base_of, write_card
from truthheads.exporting.checkpoint import check_source, check_ungated, plan_updates, source_folder, write_checkpoint
from truthheads.exporting.gguf_adapter import Requantised, gguf_names, merge_gguf, write_lora
from truthheads.exporting.gguf_names import ROWS, GgufNames, architecture_of
from truthheads.exporting.outputs import check_folder, check_gguf_file, replaced_folder
from truthheads.models.architectures import locate_heads, text_decoder
from truthheads.models.gguf_parts import read_parts
from truthheads.models.hooks import place_updates
from truthheads.models.inspection import skeleton
from truthheads.models.pretrained import takes_images
from truthheads.models.sources import gguf_path, reference, resolve
from truthheads.models.weight_files import Shards
from truthheads.results.head_adapter import HeadAdapter
from truthheads.stats.figures import Figure
from truthheads.storage.artifacts import FORMAT_VERSION, provenance
from truthheads.storage.files import check_space, replaced

KIND = "adapted"


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote.

    Attributes:
        out: The folder or file.
        tensors: The changed tensors of a GGUF file, and how they were and are stored.
        rounding: What storing them so costs, in nats a token on neutral text; None where it was not measured.
    """

    out: Path
    tensors: tuple[Requantised, ...] = ()
    rounding: Figure | None = None


def export_folder(name: str, adapter: HeadAdapter, out: Path, *, force: bool, trust_remote_code: bool) -> Exported:
    """Write a PEFT folder that PEFT, vLLM and llama.cpp's converter read: one rank that vLLM serves, alpha the same.

    Args:
        name: The model, as for ``load``; the folder names it as its base.
        adapter: The adapter. Modules that lie elsewhere in this model are named as they lie there.
        out: The folder.
        force: Replace a model or adapter folder of that name.
        trust_remote_code: As for ``load``.

    Raises:
        ShapeError: The adapter does not fit the model.
        ArtifactError: ``out`` is taken or cannot be written.
    """
    source = Path(resolve(name))
    check_folder(out, force=force, source=source if source.is_dir() else None)
    network = skeleton(name, trust_remote_code=trust_remote_code)
    updates = place_updates(network, locate_heads(network), adapter.updates)
    turned = any(isinstance(network.get_submodule(path), Conv1D) for path in updates)
    file = gguf_path(name)
    meta = {key: value for key, value in adapter.meta.items() if key != "gguf"}
    meta |= {} if file is None else {"gguf": file.name}
    with replaced_folder(out) as temporary:
        replace(adapter, updates=updates, base=reference(name), transposed=turned, meta=meta).write(temporary)
    return Exported(out)


def export_merged(
    name: str,
    adapter: HeadAdapter,
    out: Path,
    *,
    force: bool,
    title: str,
    trust_remote_code: bool,
    progress: Callable[[int, int], None] | None,
) -> Exported:
    """Write a transformers folder with the adapter inside the weights, one tensor at a time.

    Args:
        name: The model, as for ``load``.
        adapter: The adapter.
        out: The folder.
        force: Replace a model or adapter folder of that name.
        title: What the model card calls it.
        trust_remote_code: As for ``load``.
        progress: Called with the bytes done and the total.

    Raises:
        ShapeError: The adapter does not fit the model.
        ModelError: The model's weights are missing, damaged, quantised, or changed by this package before.
        ArtifactError: ``out`` is taken or cannot be written.
    """
    source = Path(resolve(name))
    check_folder(out, force=force, source=source if source.is_dir() else None)
    folder = source_folder(name)
    check_source(folder)
    shards = Shards.open(folder)
    check_ungated(folder)
    network = skeleton(str(folder), trust_remote_code=trust_remote_code)
    layout = locate_heads(network)
    changes = plan_updates(shards, network, layout, place_updates(network, layout, adapter.updates))
    check_space(out, sum(file.stat().st_size for file in {entry.file for entry in shards.entries.values()}))
    note: AdapterNote = {
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "adapter": adapter.digest,
        "modules": list(adapter.updates),
        "heads": list(adapter.heads),
        "packages": provenance()["packages"],
    }
    with replaced_folder(out) as temporary:
        write_checkpoint(temporary, shards, changes, note, progress=progress)
        write_card(temporary, adapter, base_of(name, folder, takes_images(network.config)), to="checkpoint", name=title)
    return Exported(out)


def export_gguf(name: str, adapter: HeadAdapter, out: Path, *, force: bool, measure: bool, seed: int) -> Exported:
    """Write a GGUF model with the adapter inside; see :func:`truthheads.exporting.gguf_adapter.merge_gguf`.

    Args:
        name: The model, a ``.gguf`` file.
        adapter: The adapter.
        out: The file.
        force: Replace a file of that name.
        measure: Measure what the rounding of the changed tensors costs.
        seed: Random seed of the text that it is measured on.

    Raises:
        ShapeError: The adapter does not fit the model.
        ModelError: The model is no GGUF file that can be changed.
        ArtifactError: ``out`` is taken or cannot be written.
    """
    source = gguf_source(name)
    parts = read_parts(source)
    check_gguf_file(out, force=force, sources=[part.path for part in parts])
    check_space(out, sum(part.size for part in parts))
    from truthheads.exporting.rounding import rounding_cost

    with replaced(out) as temporary:
        tensors = merge_gguf(source, adapter, temporary)
        cost = rounding_cost(name, adapter, temporary, seed=seed) if measure else None
    return Exported(out, tuple(tensors), cost)


def export_lora(name: str, adapter: HeadAdapter, out: Path, *, force: bool, trust_remote_code: bool) -> Exported:
    """Write an adapter as llama.cpp's LoRA file; see :func:`truthheads.exporting.gguf_adapter.write_lora`.

    Args:
        name: The model, as for ``load``: a ``.gguf`` file, or the transformers folder that one is converted from.
        adapter: The adapter.
        out: The file.
        force: Replace a file of that name.
        trust_remote_code: As for ``load``.

    Raises:
        ShapeError: The adapter does not fit the model.
        ModelError: llama.cpp's names for the model's modules are not known.
        ArtifactError: ``out`` is taken or cannot be written.
    """
    source = gguf_path(name)
    check_gguf_file(out, force=force, sources=[] if source is None or not source.is_file() else [source])
    network = skeleton(name, trust_remote_code=trust_remote_code)
    layout = locate_heads(network)
    updates = place_updates(network, layout, adapter.updates)
    if source is not None:
        names = gguf_names(read_parts(source)[0])
    else:
        config = text_decoder(network).config.get_text_config(decoder=True)
        model_type = str(getattr(config, "model_type", ""))
        architecture = architecture_of(model_type)
        if architecture is None:
            raise ModelError(
                f"llama.cpp's order of heads in {name} is not known here",
                expected=", ".join(kind for row in ROWS.values() for kind in row.types),
                got=model_type,
                fix="use --to adapter, and convert that folder with llama.cpp's convert_lora_to_gguf.py",
            )
        names = GgufNames(architecture, layout.num_layers, layout.num_heads, layout.num_kv_heads)
    with replaced(out) as temporary:
        write_lora(replace(adapter, updates=updates), names, temporary)
    return Exported(out)


def gguf_source(name: str) -> Path:
    """Return the GGUF file that a model's name stands for; ModelError where it is another kind of model."""
    source = gguf_path(name)
    if source is None:
        raise ModelError(
            f"{name} is not a .gguf file",
            expected="the .gguf file whose tensors are to be changed",
            got="a folder" if Path(name).is_dir() else "another name",
            fix="use --to checkpoint and convert its folder with llama.cpp's convert_hf_to_gguf.py",
        )
    if not source.is_file():
        raise ModelError(f"{name} is not there", expected="a .gguf file", got="no such file", fix="check the path")
    return source
