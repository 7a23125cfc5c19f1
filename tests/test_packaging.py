"""What is handed to people: pinned versions, an sdist, a wheel, and the command from it in a clean environment."""

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import transformers
from packaging.requirements import Requirement
from packaging.version import Version

from pins import ROOT, differing, installed, outside, read_pins, wanted, write_pins
from zoo import MULTIMODAL, ROWS

SOURCE = ROOT / "src" / "truthheads"
PINS = ROOT / "constraints.txt"
OLDEST = ROOT / "constraints-oldest.txt"
COMMIT_TIME = "1700000000"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]

# --- pins ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="this is not the environment that `make install` makes")
def test_everything_installed_is_pinned_at_its_version() -> None:
    assert differing(installed(), read_pins(PINS)) == [], "`make lock` renews the pins"


def test_another_version_and_a_missing_pin_are_told() -> None:
    found = {"numpy": "2.4.6", "docopt": "0.6.2", "rich": "15.0.0"}
    pins = {"numpy": "2.4.5", "rich": "15.0.0", "torchvision": "0.28.0"}
    assert differing(found, pins) == ["numpy 2.4.6, pinned: 2.4.5", "docopt 0.6.2, pinned: None"]


def test_pins_lie_in_the_ranges_of_pyproject() -> None:
    assert outside(read_pins(PINS), wanted(*EXTRAS)) == []


def test_a_pin_outside_its_range_is_told() -> None:
    asked = [Requirement(line) for line in ("numpy>=2", "rich>=13,<15", "scipy>=1.13")]
    assert outside({"numpy": "1.26.4", "rich": "14.0.0"}, asked) == ["numpy>=2", "scipy>=1.13"]


def test_pins_are_written_sorted_below_the_comments_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "constraints.txt"
    file.write_text("# why\nrich==14.0.0\ntorchvision==0.28.0  # beside\n", encoding="utf-8")
    write_pins(file, {"rich": "15.0.0", "numpy": "2.4.6"}, keep=["torchvision"])
    assert file.read_text(encoding="utf-8") == "# why\nnumpy==2.4.6\nrich==15.0.0\ntorchvision==0.28.0\n"


def test_what_make_range_calls_oldest_is_the_lower_bound() -> None:
    """Each requirement has one bound, ``>=``, and its pin is that version; torch's has its reason in the file."""
    pins = read_pins(OLDEST)
    for one in wanted():
        (bound,) = (part for part in one.specifier if part.operator == ">=")
        if one.name == "torch":
            assert pins["torch"] == read_pins(PINS)["torch"]
        else:
            assert Version(pins[one.name]) == Version(bound.version), one.name


@pytest.mark.skipif(
    transformers.__version__ != read_pins(PINS)["transformers"], reason="this is not the pinned release of transformers"
)
def test_the_pinned_transformers_has_every_class_of_the_zoo() -> None:
    """Older releases lack some, and tests of those are skipped: a misspelt name would be skipped everywhere."""
    names = [name for row in ROWS + MULTIMODAL for name in (row.config_class, row.model_class)]
    assert [name for name in names if not hasattr(transformers, name)] == []


# --- sdist and wheel -------------------------------------------------------------------------------------------------


def build(out: Path, *words: str) -> dict[str, Path]:
    """Build without network and return the files by their suffix."""
    if find_spec("hatchling") is None or find_spec("build") is None:
        pytest.skip("build and hatchling are not installed: pip install 'truthheads[dev]'")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *words, str(ROOT)],
        env=os.environ | {"SOURCE_DATE_EPOCH": COMMIT_TIME},
        check=True,
        capture_output=True,
        text=True,
    )
    return {file.suffix: file for file in out.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An sdist, and the wheel that was built from it."""
    return build(tmp_path_factory.mktemp("dist"))


def test_the_same_bytes_twice_from_the_sdist_or_the_checkout(built: dict[str, Path], tmp_path: Path) -> None:
    again = build(tmp_path, "--sdist", "--wheel")
    assert sorted(built) == sorted(again) == [".gz", ".whl"]
    for suffix, file in built.items():
        assert file.name == again[suffix].name
        assert file.read_bytes() == again[suffix].read_bytes(), file.name


def files(folder: Path) -> set[str]:
    """Return a folder's files without what running the code leaves there."""
    found = (file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return {file.relative_to(folder).as_posix() for file in found}


def test_the_wheel_holds_the_package_and_its_data(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built[".whl"]) as wheel:
        names = set(wheel.namelist())
        info = next(name.split("/")[0] for name in names if name.endswith("/METADATA"))
        metadata = wheel.read(f"{info}/METADATA").decode()
    ours = {name.removeprefix("truthheads/") for name in names if name.startswith("truthheads/")}
    assert ours == files(SOURCE)
    assert ours >= {
        "py.typed",
        "embedded/deltas/reader.safetensors",
        "embedded/deltas/vision.safetensors",
        "synthetic/sprites.png",
        "synthetic/sprites.LICENSE.txt",
        "reporting/templates/report.html",
        "workflows/recipes/demo.toml",
        "workflows/recipes/family.toml",
        "benchmarks/coco_synonyms.json",
        "benchmarks/lm_eval_tasks/truthheads_halueval_qa.yaml",
    }
    rest = {name.removeprefix(f"{info}/") for name in names if not name.startswith("truthheads/")}
    texts = {"licenses/LICENSE", "licenses/src/truthheads/synthetic/sprites.LICENSE.txt"}
    assert rest == {"METADATA", "WHEEL", "RECORD", "entry_points.txt"} | texts
    assert "\nLicense-Expression: Apache-2.0 AND OFL-1.1\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert [one for one in EXTRAS if f"\nProvides-Extra: {one}\n" not in metadata] == []


def test_the_sdist_holds_what_building_and_testing_take_and_nothing_else(built: dict[str, Path]) -> None:
    with tarfile.open(built[".gz"]) as sdist:
        names = {member.name.split("/", 1)[1] for member in sdist.getmembers() if member.isfile()}
    folders = ("src", "tests", "bench", "experiments", "docs")
    for folder in folders:
        assert {name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")} == files(
            ROOT / folder
        )
    top = {name for name in names if name.split("/")[0] not in folders}
    pages = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "mkdocs.yml"}
    tools = {"Makefile", "pyproject.toml", "constraints.txt", "constraints-oldest.txt"}
    assert top == pages | tools | {"PKG-INFO", ".gitignore"}


# --- the command, from the wheel -------------------------------------------------------------------------------------

HEAVY = """
import json, sys
sys.argv = ["truthheads", "--version"]
from truthheads.cli import main
try:
    main()
except SystemExit as stopped:
    heavy = [name for name in ("torch", "transformers", "numpy") if name in sys.modules]
    print(json.dumps([stopped.code, sys.modules["truthheads"].__file__, heavy]))
"""


@pytest.fixture(scope="module")
def clean(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ``bin`` of a new environment with the wheel; what it depends on is read from this environment."""
    home = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(home, symlinks=True, with_pip=False)
    python = home / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", built[".whl"]],
        check=True,
        capture_output=True,
    )
    (package,) = home.glob("lib/python3*/site-packages")
    # Only the folders: a .pth file in them, such as the one of an editable install, is not read from there.
    here = [path for path in sys.path if path.endswith("site-packages")]
    (package / "dependencies.pth").write_text("".join(f"{path}\n" for path in here), encoding="utf-8")
    return home / "bin"


def run(clean: Path, cwd: Path, *words: str) -> str:
    """Run in an environment of three variables, elsewhere than in the checkout, and return what was printed."""
    variables = {"PATH": str(clean), "HOME": str(cwd), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run([str(clean / words[0]), *words[1:]], cwd=cwd, env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_version_is_told_from_the_wheel_without_loading_torch(clean: Path, tmp_path: Path) -> None:
    said, found = run(clean, tmp_path, "python", "-c", HEAVY).splitlines()
    code, home, heavy = json.loads(found)
    assert (said, code, heavy) == ("truthheads 0.1.0", 0, [])
    assert Path(home).is_relative_to(clean.parent)
    assert run(clean, tmp_path, "truthheads", "--version") == "truthheads 0.1.0\n"


def test_commands_work_from_the_wheel(clean: Path, tmp_path: Path) -> None:
    assert "inspect" in run(clean, tmp_path, "truthheads", "--help")
    row = next(row for row in ROWS if row.name == "llama")
    row.config().save_pretrained(tmp_path / "llama")
    told = json.loads(run(clean, tmp_path, "truthheads", "inspect", "llama", "--json"))
    assert (told["num_layers"], told["num_heads"], told["head_dim"]) == (row.num_layers, row.num_heads, row.head_dim)


def test_the_group_of_entry_points_is_the_one_that_the_loader_asks() -> None:
    """``truthheads.models`` is a promise to other packages and no module's name: it stays when modules move."""
    from truthheads.models.sources import RESOLVERS

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    assert RESOLVERS == "truthheads.models" and list(declared) == [RESOLVERS]
