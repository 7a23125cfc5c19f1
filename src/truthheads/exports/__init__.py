"""Ship a gate: as a PEFT adapter, inside a transformers checkpoint, or inside a GGUF file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import AutoConfig

from truthheads.adapters import find_adapter
from truthheads.artifacts import FORMAT_VERSION, check_space, check_target, replaced
from truthheads.aside import aside
from truthheads.errors import ArtifactError, GateError, ModelError
from truthheads.exports.adapter import write_adapter
from truthheads.exports.card import Base, write_card
from truthheads.exports.checkpoint import plan, write_checkpoint
from truthheads.exports.folders import check_folder, replaced_folder
from truthheads.exports.hub import check_name, push
from truthheads.exports.origin import check_source, check_ungated, source_folder
from truthheads.gates import Gate
from truthheads.ggufparts import join, read_parts
from truthheads.hooks import check_factors
from truthheads.models import Model, inspect
from truthheads.outputs import claimed
from truthheads.provenance import provenance
from truthheads.quantising import PACKAGES
from truthheads.shards import Shards
from truthheads.sources import SMOLLM2_HUB_ID, gguf_path, resolve

Format = Literal["adapter", "checkpoint", "gguf"]
KIND = "gated"


def export(
    model: Model | str,
    gate: Gate | str | Path,
    *,
    to: Format,
    out: str | Path,
    force: bool = False,
    push_to_hub: str | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a model with its gate in a format that is served already; nothing of this package runs there.

    Hook, adapter and checkpoint give the same logits. The export appears under its name when it is whole.

    Args:
        model: A model, or its name as for ``load``. A checkpoint or GGUF file is made from the source's files, not
            from what is in memory.
        gate: A gate or its file, of the model's shape.
        to: ``adapter``: a PEFT IA³ folder, for the unchanged base. ``checkpoint``: a transformers folder. ``gguf``: a
            file, from a ``.gguf`` file; the parts of a split model are joined.
        out: The folder, or the file for ``gguf``.
        force: Replace a model or adapter folder (a file for ``gguf``) of that name as a whole.
        push_to_hub: Name of a repository to send it to when it is whole.
        trust_remote_code: As for ``load``.
        progress: Told the bytes done and in all (``checkpoint``).

    Returns:
        ``out``.

    Raises:
        ShapeError: The gate is of another shape.
        GateError: It has factors for heads that are not there.
        ModelError: The source is missing, damaged, quantised, gated already, or of the wrong format.
        ArtifactError: ``out`` is taken or cannot be written, or the hub did not take it.
    """
    out = Path(out)
    name = model.name if isinstance(model, Model) else model
    if isinstance(model, Model):
        _check_quantised(model, to)
    if push_to_hub is not None:
        check_name(push_to_hub)
    gate = gate if isinstance(gate, Gate) else Gate.load(gate)
    title = push_to_hub or out.absolute().name
    if to not in get_args(Format):
        raise GateError(
            "unknown format", expected="adapter, checkpoint or gguf", got=repr(to), fix="choose one of the three"
        )
    _check_whole(name, to)
    with claimed(out):
        if to == "adapter":
            _adapter(model, name, gate, out, force=force, title=title, trust_remote_code=trust_remote_code)
        elif to == "checkpoint":
            remote = trust_remote_code
            _checkpoint(name, gate, out, force=force, title=title, trust_remote_code=remote, progress=progress)
        else:
            _gguf(name, gate, out, force=force)
        if push_to_hub is not None:
            push(out, push_to_hub, force=force)
    return out


def _check_whole(name: str, to: Format) -> None:
    """Raise ModelError where the model is a base and an adapter, as ``inspect`` says: no file holds its weights."""
    adapter = find_adapter(name)
    if adapter is not None:
        raise ModelError(
            f"{name} holds an adapter, and a {to} would be made of its base alone",
            expected="whole weights",
            got=str(adapter),
            fix="merge the adapter into its base model first (merge_and_unload, then save_pretrained)",
        )


def _check_quantised(model: Model, to: Format) -> None:
    """Raise ModelError for a model that was quantised while it was loaded, save as an adapter for a like base."""
    package = PACKAGES.get(model.load_in or "")
    if package is None or (to == "adapter" and package == "bitsandbytes"):
        return
    raise ModelError(
        f"{model.name} was loaded in {model.load_in}, and a {to} would be made of its unquantised weights",
        expected="a model that is loaded as it is exported",
        got=f"weights in {model.load_in}",
        fix="give the model's name instead, and test what is written"
        + ('; or to="adapter", for a base that is loaded alike' if package == "bitsandbytes" else ""),
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
        layout, config, image = model.layout, model.network.config, model.processor is not None
    else:
        seen = inspect(name, trust_remote_code=trust_remote_code)
        layout, image = seen.layout, seen.image
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    check_factors(gate.gate, layout)
    base = _base(name, folder, image)
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
        write_card(temporary, gate, _base(name, folder, seen.image), to="checkpoint", name=title)


def _gguf(name: str, gate: Gate, out: Path, *, force: bool) -> None:
    source = gguf_path(name)
    if source is None:
        raise ModelError(
            f"{name} is no .gguf file",
            expected="the .gguf file whose blocks are to be scaled",
            got="a folder" if Path(name).is_dir() else "another name",
            fix="use --to checkpoint and convert its folder with llama.cpp's convert_hf_to_gguf.py",
        )
    if not source.is_file():
        raise ModelError(f"{name} is not there", expected="a .gguf file", got="no such file", fix="check the path")
    parts = read_parts(source)
    check_target(out)
    if out.suffix != ".gguf":
        raise ArtifactError(
            f"{out} is no name for a GGUF file", expected="a name that ends in .gguf", got=out.name, fix="mend --out"
        )
    own = out.exists() and any(out.samefile(part.path) for part in parts)
    if out.exists() and (not force or own):
        raise ArtifactError(
            f"{out} exists already",
            expected="a name that is not taken",
            got="the model itself" if own else "a file",
            fix="choose another --out" + ("" if own else ", or pass --force to replace it"),
        )
    from truthheads.exports.gguf import export_gguf

    check_space(out, sum(part.size for part in parts) * min(2, len(parts)))
    if len(parts) == 1:
        with replaced(out) as temporary:
            export_gguf(source, gate, temporary)
        return
    with replaced(out) as temporary, aside(out) as whole:  # a split model becomes one file
        join(parts, whole)
        export_gguf(whole, gate, temporary, named=source)


def _base(name: str, folder: Path | None, image: bool) -> Base:
    if name == "smollm2":  # its folder is a conversion in this machine's cache; the adapter is to travel
        return Base(SMOLLM2_HUB_ID, SMOLLM2_HUB_ID, True, image, folder)
    source = resolve(name)
    if not Path(source).is_dir():
        return Base(name, source, True, image, folder)
    path = Path(name).expanduser()
    return Base(path.resolve().name if path.exists() else name, str(Path(source).resolve()), False, image, folder)


def _note(gate: Gate) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "gate": gate.digest,
        "site": gate.site,
        "factors": gate.gate.tolist(),
        "packages": provenance()["packages"],
    }
