"""Write a gate as a PEFT adapter, a transformers checkpoint or a GGUF file, and send it to a hub if asked."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import SafetensorError
from transformers import AutoConfig

from truthheads.choices import ExportFormat
from truthheads.errors import ArtifactError, GateError, ModelError
from truthheads.exporting.adapter import ExportNote, write_adapter
from truthheads.exporting.card import Base, write_card
from truthheads.exporting.checkpoint import check_source, check_ungated, plan, source_folder, write_checkpoint
from truthheads.models.adapters import find_adapter
from truthheads.models.gguf_parts import join, read_parts
from truthheads.models.held import ModelLike, name_of
from truthheads.models.hooks import check_factors
from truthheads.models.inspection import inspect
from truthheads.models.load import Model
from truthheads.models.pretrained import takes_images
from truthheads.models.quantised import PACKAGES
from truthheads.models.sources import SMOLLM2_HUB_ID, gguf_path, resolve
from truthheads.models.weight_files import Shards
from truthheads.results.gate import Gate
from truthheads.storage.artifacts import FORMAT_VERSION, provenance
from truthheads.storage.files import (
    as_path,
    check_around,
    check_space,
    check_target,
    replace_folder,
    replaced,
    temporary_beside,
    unwritable,
)
from truthheads.storage.output_lock import locked_output

OURS = ("config.json", "adapter_config.json")
"""A folder with one of these is a model or an adapter: nothing else is ever replaced, whatever ``--force`` says."""


def check_folder(out: Path, *, force: bool, source: Path | None = None) -> None:
    """Raise where a folder cannot be written under this name, before any work is done for it.

    Args:
        out: The final name.
        force: Allow a model or adapter folder of that name, which is to be replaced.
        source: Folder that is read from: it may not be ``out``, nor lie in it, nor hold it.

    Raises:
        ArtifactError: Something of that name is there, or the folder around it cannot be written to.
    """
    if source is not None:
        ours, theirs = out.resolve(), source.resolve()
        if ours == theirs or ours in theirs.parents or theirs in ours.parents:
            raise ArtifactError(
                f"{out} and the model it is made from overlap",
                expected="a folder beside the model's, not the same, around or inside",
                got=f"the model in {source}",
                fix="choose another --out",
            )
    if os.path.lexists(out) and not force:
        raise ArtifactError(
            f"{out} exists already",
            expected="a name that is not taken: old and new files are never mixed",
            got="a folder" if out.is_dir() else "a file",
            fix="choose another --out, or pass --force to replace it as a whole",
        )
    if os.path.lexists(out) and not _replaceable(out):
        raise ArtifactError(
            f"{out} is not replaced",
            expected=f"an empty folder, or one with {' or '.join(OURS)}",
            got="a folder of another kind" if out.is_dir() else "a file",
            fix="choose another --out, or move it away yourself",
        )
    check_around(out)


@contextlib.contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder beside ``out``; rename it to ``out`` only if the block succeeds.

    A folder that is there keeps its name until the new one is whole and on the disk; the two then change places by
    two renames, see :func:`truthheads.storage.files.replace_folder`.

    Args:
        out: The final name. The folder around it is made where it is missing.

    Raises:
        ArtifactError: The folder cannot be written to, or the disk is full.
    """
    try:
        with temporary_beside(out) as temporary:
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
            replace_folder(temporary, out)
    except (OSError, SafetensorError) as error:
        raise unwritable(out, error) from error


def _replaceable(out: Path) -> bool:
    if not out.is_dir():
        return False
    return not any(out.iterdir()) or any((out / name).is_file() for name in OURS)


def check_name(name: str) -> None:
    """Raise ArtifactError where the hub would not take this name, before any work is done for it."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ArtifactError(
            f"{name!r} is not a valid name for the hub",
            expected="user/name or organisation/name",
            got=" ".join(str(error).split())[:200],
            fix="give --push-to-hub as user/name",
        ) from error


def push(out: Path, name: str, *, force: bool) -> None:
    """Upload an exported folder or file as a repository of the hub.

    Args:
        out: What was exported; it stays where it is, whatever happens here.
        name: Name of the repository; a new one is public or private by the account's default.
        force: Take a repository that is there; its other files leave the new revision and stay in its history.

    Raises:
        ArtifactError: There is no connection, no permission, or the name is taken.
    """
    api = huggingface_hub.HfApi()
    note = "Gated with truthheads"
    try:
        api.create_repo(name, exist_ok=force)
        if out.is_dir():
            api.upload_folder(
                repo_id=name, folder_path=out, commit_message=note, delete_patterns="*" if force else None
            )
        else:
            api.upload_file(repo_id=name, path_or_fileobj=out, path_in_repo=out.name, commit_message=note)
    except Exception as error:  # no network, no token, no space, a name that is taken: the library has one for each
        text = " ".join(str(error).split())
        taken = getattr(getattr(error, "response", None), "status_code", None) == 409
        raise ArtifactError(
            f"{out} was not sent to {name}",
            expected="a connection, `hf auth login`, and a name of your own that is not taken",
            got=f"{type(error).__name__}: {text[:300]}",
            fix="choose another --push-to-hub, or pass --force to replace what is there"
            if taken
            else f"the export is whole in {out}; send it later: hf upload {name} {out}",
        ) from error


KIND = "gated"


def export(
    model: ModelLike,
    gate: Gate | str | Path,
    *,
    to: ExportFormat,
    out: str | Path,
    force: bool = False,
    push_to_hub: str | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a model with its gate in a standard format that existing servers load without this package.

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
        progress: Called with the bytes done and the total (``checkpoint``).

    Returns:
        ``out``.

    Raises:
        ShapeError: The gate is of another shape.
        GateError: It has factors for heads that are not there.
        ModelError: The source is missing, damaged, quantised, gated already, or of the wrong format.
        ArtifactError: ``out`` is taken or cannot be written, or the hub did not take it.
    """
    out = as_path(out)
    name = name_of(model)
    model = model if isinstance(model, Model) else name
    if isinstance(model, Model):
        _check_quantised(model, to)
    if push_to_hub is not None:
        check_name(push_to_hub)
    gate = gate if isinstance(gate, Gate) else Gate.load(gate)
    title = push_to_hub or out.absolute().name
    if to not in get_args(ExportFormat):
        raise GateError(
            "unknown format", expected="adapter, checkpoint or gguf", got=repr(to), fix="choose one of the three"
        )
    _check_whole(name, to)
    with locked_output(out):
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


def _check_quantised(model: Model, to: ExportFormat) -> None:
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
        layout, config, image = model.layout, model.network.config, takes_images(model.network.config)
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
            f"{name} is not a .gguf file",
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
            f"{out} must end in .gguf", expected="a name that ends in .gguf", got=out.name, fix="rename --out"
        )
    own = out.exists() and any(out.samefile(part.path) for part in parts)
    if out.exists() and (not force or own):
        raise ArtifactError(
            f"{out} exists already",
            expected="a name that is not taken",
            got="the model itself" if own else "a file",
            fix="choose another --out" + ("" if own else ", or pass --force to replace it"),
        )
    from truthheads.exporting.gguf import export_gguf

    check_space(out, sum(part.size for part in parts) * min(2, len(parts)))
    if len(parts) == 1:
        with replaced(out) as temporary:
            export_gguf(source, gate, temporary)
        return
    with replaced(out) as temporary, temporary_beside(out) as whole:  # a split model becomes one file
        join(parts, whole)
        export_gguf(whole, gate, temporary, named=source)


def _base(name: str, folder: Path | None, image: bool) -> Base:
    """Name the model as a card does: with nothing of where it lies on this machine."""
    source, file = resolve(name), gguf_path(name)
    if not Path(source).is_dir():
        return Base(source, source, True, image, folder)
    if file is not None:  # its folder is a conversion in this machine's cache
        hub = SMOLLM2_HUB_ID if name == "smollm2" else file.name
        return Base(f"{hub} ({file.name})" if name == "smollm2" else file.name, hub, False, image, folder, file.name)
    path = Path(name).expanduser()
    own = path.resolve().name if path.exists() else name
    cached = _snapshot(path.absolute())
    return Base(cached or own, cached or own, cached is not None, image, folder)


def _snapshot(folder: Path) -> str | None:
    """Return the hub id of a folder in the cache of the hub, else None."""
    parts = folder.parts
    kept = next((part for part in parts[:-2] if part.startswith("models--")), None)
    return kept.removeprefix("models--").replace("--", "/") if kept and parts[-2] == "snapshots" else None


def _note(gate: Gate) -> ExportNote:
    return {
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "gate": gate.digest,
        "site": gate.site,
        "factors": gate.gate.tolist(),
        "packages": provenance()["packages"],
    }
