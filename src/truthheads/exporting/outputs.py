"""Where exports go: names that are free, folders that appear whole, and repositories of a hub."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import SafetensorError

from truthheads.errors import ArtifactError
from truthheads.storage.files import check_around, check_target, replace_folder, temporary_beside, unwritable

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


def check_gguf_file(out: Path, *, force: bool, sources: Sequence[Path] = ()) -> None:
    """Raise where a GGUF file cannot be written under this name, before any work is done for it.

    Args:
        out: The final name.
        force: Allow a file of that name, which is to be replaced.
        sources: The files that are read from; they are never replaced.

    Raises:
        ArtifactError: The name is taken or has another ending, or the folder around it cannot be written to.
    """
    check_target(out)
    if out.suffix != ".gguf":
        raise ArtifactError(
            f"{out} must end in .gguf", expected="a name that ends in .gguf", got=out.name, fix="rename --out"
        )
    own = out.exists() and any(out.samefile(source) for source in sources)
    if out.exists() and (not force or own):
        raise ArtifactError(
            f"{out} exists already",
            expected="a name that is not taken",
            got="the model itself" if own else "a file",
            fix="choose another --out" + ("" if own else ", or pass --force to replace it"),
        )


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
    note = "Made with truthheads"
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
