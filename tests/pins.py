"""Pinned versions: read from a file, or written from this environment with ``python tests/pins.py constraints.txt``.

``make lock`` does the latter in a fresh environment, where everything is the newest that pyproject.toml allows.
"""

import argparse
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
UNPINNED = ("pip", "truthheads")
"""What needs no pin: ``python -m venv`` brings pip along, and the package itself is what is installed."""


def installed() -> dict[str, str]:
    """Return name and version of every package of this environment; a build's mark (``+cpu``) is left out."""
    found = {canonicalize_name(one.name): Version(one.version).public for one in distributions()}
    return {name: version for name, version in sorted(found.items()) if name not in UNPINNED}


def read_pins(path: Path) -> dict[str, str]:
    """Return name and version of every line ``name==version``, comments left out."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {canonicalize_name(name): version for name, version in pairs}


def write_pins(path: Path, pins: Mapping[str, str], *, keep: Iterable[str] = ()) -> None:
    """Replace the pins of a file; the comments on top stay, and so do the pins of the packages in ``keep``."""
    kept = {name: version for name, version in read_pins(path).items() if name in keep}
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    lines = [f"{name}=={version}" for name, version in sorted({**kept, **pins}.items())]
    path.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")


def wanted(*extras: str) -> list[Requirement]:
    """Return what pyproject.toml asks for: the package's own requirements, and those of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for name in extras for line in project["optional-dependencies"][name])]
    return [Requirement(line) for line in lines]


def differing(found: Mapping[str, str], pins: Mapping[str, str]) -> list[str]:
    """Return a line for each package that is not pinned, or pinned at another version than the one found."""
    return [f"{name} {found[name]}, pinned: {pins.get(name)}" for name in found if found[name] != pins.get(name)]


def outside(pins: Mapping[str, str], requirements: Iterable[Requirement]) -> list[str]:
    """Return the requirements that the pins do not fulfil, packages without a pin among them."""
    return [
        str(one)
        for one in requirements
        if (name := canonicalize_name(one.name)) not in pins or not one.specifier.contains(pins[name])
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pin what is installed in this environment.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--keep", nargs="*", default=[], help="packages whose pin stays though they are not installed")
    args = parser.parse_args()
    write_pins(args.path, installed(), keep=args.keep)
