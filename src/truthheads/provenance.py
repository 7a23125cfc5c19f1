"""What every artefact says about its making."""

import contextlib
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("truthheads", "torch", "transformers", "safetensors", "numpy", "scipy")


def provenance() -> dict[str, Any]:
    """Return what every artefact says about its making: package versions and the command line.

    The command is None outside the ``truthheads`` program. ``--out`` and its value are left out, since where a file
    lies is no part of what it is: the same command with two names gives the same bytes.
    """
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"packages": versions, "command": _command(sys.argv)}


def _command(argv: list[str]) -> str | None:
    program = Path(argv[0]).name if argv else ""
    if program != "truthheads" and not argv[0].endswith(str(Path("truthheads") / "__main__.py")):
        return None
    words, skip = ["truthheads"], False
    for word in argv[1:]:
        if skip or word.startswith("--out="):
            skip = False
        elif word == "--out":
            skip = True
        else:
            words.append(word)
    return " ".join(words)
