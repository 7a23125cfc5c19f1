"""The rooms of the package: no room hides a public name, and a module is found where the contract looks for it."""

import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import truthheads

ROOT = Path(__file__).parents[1]


def run(program: str) -> str:
    """Run a program in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def rooms() -> list[str]:
    return sorted(found.name for found in pkgutil.iter_modules(truthheads.__path__) if found.ispkg)


def test_importing_every_module_changes_no_public_name() -> None:
    """Importing ``truthheads.x`` binds ``x`` on the package: a room called like a public name would replace it."""
    program = """
import importlib, pkgutil, types, truthheads
before = {name: getattr(truthheads, name) for name in truthheads.__all__}
imported = 0
for found in pkgutil.walk_packages(truthheads.__path__, "truthheads."):
    if found.name not in ("truthheads.__main__",) and ".lm_eval_tasks" not in found.name:
        importlib.import_module(found.name)
        imported += 1
changed = [name for name, value in before.items() if getattr(truthheads, name) is not value]
modules = [name for name, value in before.items() if isinstance(value, types.ModuleType)]
print(imported > 100, changed, modules)
"""
    assert run(program) == "True [] []"


def test_no_room_bears_a_public_name() -> None:
    assert not set(rooms()) & set(truthheads.__all__)


def test_the_check_of_public_names_can_fail() -> None:
    """A module called like a public function does replace it: this is what the test above would see."""
    program = """
import sys, types, truthheads
function = truthheads.score
truthheads.score = sys.modules["truthheads.score"] = types.ModuleType("truthheads.score")
print(truthheads.score is function)
"""
    assert run(program) == "False"


def test_the_contract_names_every_room() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = config["tool"]["importlinter"]["contracts"][0]["layers"]
    named = {room.strip() for layer in layers for room in layer.split("|")}
    assert named == {*rooms(), "choices", "errors"}  # the two single modules below every room


def test_a_room_re_exports_nothing() -> None:
    """``from .score import score`` in a room would make ``truthheads.scoring.score`` the function, not the module."""
    for room in set(rooms()) - {"cli"}:
        text = (Path(truthheads.__path__[0]) / room / "__init__.py").read_text(encoding="utf-8")
        assert "import" not in text.split('"""')[2], room
