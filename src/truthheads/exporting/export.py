"""Write a gate or an adapter in the formats that servers read, and send it to a hub if asked."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from transformers import AutoConfig

from truthheads.choices import ExportFormat, GateFormat
from truthheads.errors import GateError, ModelError
from truthheads.exporting.adapted import Exported, export_folder, export_gguf, export_lora, export_merged, gguf_source
from truthheads.exporting.adapter import GateNote, write_adapter
from truthheads.exporting.card import base_of, write_card
from truthheads.exporting.checkpoint import check_source, check_ungated, plan, source_folder, write_checkpoint
from truthheads.exporting.outputs import check_folder, check_gguf_file, check_name, push, replaced_folder
from truthheads.models.adapters import find_adapter
from truthheads.models.gguf_parts import read_parts
from truthheads.models.held import ModelLike, name_of
from truthheads.models.hooks import check_factors
from truthheads.models.inspection import inspect
from truthheads.models.load import Model
from truthheads.models.pretrained import takes_images
from truthheads.models.quantised import PACKAGES
from truthheads.models.sources import resolve
from truthheads.models.weight_files import Shards
from truthheads.results.gate import Gate, GateLike, as_gate
from truthheads.results.head_adapter import AdapterLike, as_adapter
from truthheads.storage.artifacts import FORMAT_VERSION, provenance
from truthheads.storage.files import as_path, check_space, replaced
from truthheads.storage.output_lock import locked_output

KIND = "gated"

Progress = Callable[[int, int], None]


def export(
    model: ModelLike,
    gate: GateLike | None = None,
    *,
    adapter: AdapterLike | None = None,
    to: ExportFormat,
    out: str | Path,
    force: bool = False,
    push_to_hub: str | None = None,
    trust_remote_code: bool = False,
    measure: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Write a model with a gate or an adapter in a standard format that existing servers load without this package.

    Hook, adapter and checkpoint give the same logits. The export appears under its name when it is whole.

    Args:
        model: A model, or its name as for ``load``. A checkpoint or GGUF file is made from the source's files, not
            from what is in memory.
        gate: A gate or its file, of the model's shape.
        adapter: A head adapter, or the folder of any PEFT LoRA; instead of a gate.
        to: ``adapter``: a PEFT folder for the unchanged base, IA³ of a gate, LoRA of an adapter. ``checkpoint``: a
            transformers folder. ``gguf``: a file, from a ``.gguf`` file; the parts of a split model are joined.
            ``gguf-lora``: llama.cpp's LoRA file (of an adapter).
        out: The folder, or the file for ``gguf`` and ``gguf-lora``.
        force: Replace a model or adapter folder (a file for ``gguf`` and ``gguf-lora``) of that name as a whole.
        push_to_hub: Name of a repository to send it to when it is whole.
        trust_remote_code: As for ``load``.
        measure: Measure what an adapter's changed tensors lose by being rounded to a GGUF file's types; for that the
            model is loaded. :func:`write_export` returns it.
        seed: Random seed of the text that this is measured on.
        progress: Called with the bytes done and the total (``checkpoint``).

    Returns:
        ``out``.

    Raises:
        ShapeError: The gate or the adapter is of another shape.
        GateError: The gate has factors for heads that are not there, or not one of gate and adapter was given.
        ModelError: The source is missing, damaged, quantised, changed already, or of the wrong format.
        ArtifactError: ``out`` is taken or cannot be written, the adapter cannot be read, or the hub did not take it.
    """
    return write_export(
        model,
        gate,
        adapter=adapter,
        to=to,
        out=out,
        force=force,
        push_to_hub=push_to_hub,
        trust_remote_code=trust_remote_code,
        measure=measure,
        seed=seed,
        progress=progress,
    ).out


def write_export(
    model: ModelLike,
    gate: GateLike | None = None,
    *,
    adapter: AdapterLike | None = None,
    to: ExportFormat,
    out: str | Path,
    force: bool = False,
    push_to_hub: str | None = None,
    trust_remote_code: bool = False,
    measure: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Exported:
    """Do what :func:`export` does, and return what was written: of a GGUF file each changed tensor's types and cost."""
    out = as_path(out)
    name = name_of(model)
    model = model if isinstance(model, Model) else name
    if (gate is None) == (adapter is None):
        raise GateError(
            "an export needs a gate or an adapter",
            expected="one of --gate and --adapter",
            got="neither" if gate is None else "both",
            fix="give one of them; to ship both, export one and measure the other on top of it",
        )
    known = get_args(GateFormat if adapter is None else ExportFormat)
    if to not in known:
        raise GateError(
            "unknown format" if to != "gguf-lora" else "a gate has no LoRA file: it multiplies weights",
            expected=f"{', '.join(known[:-1])} or {known[-1]}",
            got=repr(to),
            fix=f"choose one of the {'four' if len(known) == 4 else 'three'}",
        )
    if isinstance(model, Model):
        _check_quantised(model, to, low_rank=adapter is not None)
    if push_to_hub is not None:
        check_name(push_to_hub)
    title = push_to_hub or out.absolute().name
    remote = trust_remote_code
    _check_whole(name, to)
    loaded = None if gate is None else as_gate(gate)
    lora = None if adapter is None else as_adapter(adapter)
    with locked_output(out):
        written = Exported(out)
        if loaded is None and lora is not None:
            if to == "adapter":
                written = export_folder(name, lora, out, force=force, trust_remote_code=remote)
            elif to == "checkpoint":
                written = export_merged(
                    name, lora, out, force=force, title=title, trust_remote_code=remote, progress=progress
                )
            elif to == "gguf":
                written = export_gguf(name, lora, out, force=force, measure=measure, seed=seed)
            else:
                written = export_lora(name, lora, out, force=force, trust_remote_code=remote)
        elif loaded is not None:
            if to == "adapter":
                _adapter(model, name, loaded, out, force=force, title=title, trust_remote_code=remote)
            elif to == "checkpoint":
                _checkpoint(name, loaded, out, force=force, title=title, trust_remote_code=remote, progress=progress)
            else:
                _gguf(name, loaded, out, force=force)
        if push_to_hub is not None:
            push(out, push_to_hub, force=force)
    return written


def _check_whole(name: str, to: ExportFormat) -> None:
    """Raise ModelError where the model is a base and an adapter, as ``inspect`` says: no file holds its weights."""
    adapter = find_adapter(name)
    if adapter is not None:
        raise ModelError(
            f"{name} holds an adapter, and a {to} would be made of its base alone",
            expected="whole weights",
            got=str(adapter),
            fix="merge the adapter into its base model first (merge_and_unload, then save_pretrained)",
        )


def _check_quantised(model: Model, to: ExportFormat, *, low_rank: bool) -> None:
    """Raise ModelError for a model that was quantised while it was loaded, save as an adapter for a like base."""
    package = PACKAGES.get(model.load_in or "")
    apart = to == "gguf-lora" or (to == "adapter" and (low_rank or package == "bitsandbytes"))
    if package is None or apart:
        return
    raise ModelError(
        f"{model.name} was loaded in {model.load_in}, and a {to} would be made of its unquantised weights",
        expected="a model that is loaded as it is exported",
        got=f"weights in {model.load_in}",
        fix="give the model's name instead, and test what is written"
        + ('; or to="adapter", for a base that is loaded alike' if low_rank or package == "bitsandbytes" else ""),
    )


def _adapter(
    model: Model | str, name: str, gate: Gate, out: Path, *, force: bool, title: str, trust_remote_code: bool
) -> None:
    refused = inspect(name, trust_remote_code=trust_remote_code).refused
    if "adapter" in refused:
        raise ModelError(
            f"an adapter of {name} could not be loaded",
            expected="layers that PEFT's IA³ wraps: Linear, Conv1D, or bitsandbytes",
            got=refused["adapter"],
            fix="gate the unquantised model and quantise that, or use the hook: `with gated(model, gate)`",
        )
    source = resolve(name)
    folder = Path(source) if Path(source).is_dir() else None
    check_folder(out, force=force, source=folder)
    if folder is not None:
        check_ungated(folder)
    if isinstance(model, Model):
        layout, config, image = model.layout, model.network.config, takes_images(model.network.config)
    else:
        seen = inspect(name, trust_remote_code=trust_remote_code)
        layout, image = seen.layout, seen.image
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    check_factors(gate.gate, layout)
    base = base_of(name, folder, image)
    width = int(config.get_text_config(decoder=True).hidden_size)
    with replaced_folder(out) as temporary:
        write_adapter(temporary, gate, layout, width=width, base=base.reference, note=_note(gate))
        write_card(temporary, gate, base, to="adapter", name=title)


def _checkpoint(
    name: str,
    gate: Gate,
    out: Path,
    *,
    force: bool,
    title: str,
    trust_remote_code: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    if Path(resolve(name)).is_dir():
        check_folder(out, force=force, source=Path(resolve(name)))
    check_folder(out, force=force)
    folder = source_folder(name)
    check_source(folder)
    shards = Shards.open(folder)
    check_ungated(folder)
    seen = inspect(str(folder), trust_remote_code=trust_remote_code)
    check_factors(gate.gate, seen.layout)
    scaled = plan(shards, seen.layout, gate)
    check_space(out, sum(file.stat().st_size for file in {entry.file for entry in shards.entries.values()}))
    with replaced_folder(out) as temporary:
        write_checkpoint(temporary, shards, scaled, _note(gate), progress=progress)
        write_card(temporary, gate, base_of(name, folder, seen.image), to="checkpoint", name=title)


def _gguf(name: str, gate: Gate, out: Path, *, force: bool) -> None:
    source = gguf_source(name)
    parts = read_parts(source)
    check_gguf_file(out, force=force, sources=[part.path for part in parts])
    from truthheads.exporting.gguf import export_gguf as scale_gguf

    check_space(out, sum(part.size for part in parts))
    with replaced(out) as temporary:  # a split model becomes one file
        scale_gguf(source, gate, temporary)


def _note(gate: Gate) -> GateNote:
    return {
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "gate": gate.digest,
        "site": gate.site,
        "factors": gate.gate.tolist(),
        "packages": provenance()["packages"],
    }
