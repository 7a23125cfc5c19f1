"""Send what was exported to the Hugging Face hub."""

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from truthheads.errors import ArtifactError


def check_name(name: str) -> None:
    """Raise ArtifactError where the hub would not take this name, before any work is done for it."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ArtifactError(
            f"{name!r} is no name for the hub",
            expected="user/name or organisation/name",
            got=" ".join(str(error).split())[:200],
            fix="mend --push-to-hub",
        ) from error


def push(out: Path, name: str, *, force: bool) -> None:
    """Upload an exported folder or file as a repository of the hub.

    Args:
        out: What was exported; it stays where it is, whatever happens here.
        name: Of the repository, made with the account's own default of public or private.
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
