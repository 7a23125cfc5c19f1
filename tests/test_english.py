"""Plain English, as far as a machine can tell: openings and words that docstrings and errors do not use."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "truthheads"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))

BANNED = {
    "a docstring says what a function is for, not which object comes back": r"\AReturn what\b",
    "the text of an argument stands alone": r"^ +\w+: (?:Of|Told|Whose|Most|Least)\b",
    "'mend' is 'correct', 'check' or 'repair'": r"\bmend(?:s|ed|ing)?\b",
    "say what a value must be, not that it 'is no' such thing": r"\b(\w+) is no \1\b",
    "a factor flips a sign; it does not turn a head": r"\bturns? (?:a|the) head",
    "nobody believes a file": r"\bbe believed\b",
    "a file is 'not an artefact', not a stranger": r"\bfor a stranger\b|\bwhere it is a stranger\b",
}


def said_in(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every docstring, and every text of an error or an option, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            yield getattr(node, "lineno", 1), ast.get_docstring(node) or ""
        if isinstance(node, ast.Call) and {"fix", "help"} & {word.arg for word in node.keywords}:
            for each in ast.walk(node):
                if isinstance(each, ast.Constant) and isinstance(each.value, str):
                    yield each.lineno, each.value


def found_in(text: str) -> list[str]:
    return [rule for rule, pattern in BANNED.items() if re.search(pattern, text, re.MULTILINE)]


def test_the_whole_package_is_read() -> None:
    assert len(FILES) > 80
    assert sum(1 for path in FILES for _ in said_in(path)) > 1500


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_texts_keep_to_plain_english(path: Path) -> None:
    assert [(line, text[:80], found_in(text)) for line, text in said_in(path) if found_in(text)] == []


@pytest.mark.parametrize(
    "text",
    [
        "Return what each fold holds.",
        "Draw.\n\nArgs:\n    seed: Of folds, splits and bootstraps.",
        "Learn.\n\nArgs:\n    progress: Told steps done and in all.",
        "mend the folder",
        "the floor is no floor",
        "they turn the head's output round",
        "config.json cannot be believed",
    ],
)
def test_earlier_texts_would_not_pass(text: str) -> None:
    assert found_in(text)


def test_an_error_and_an_option_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text(
        'raise DataError(f"{x} is bad", expected="a", got="b", fix="mend it")\noption = Option(help="Of rows")\n'
    )
    assert {"mend it", "Of rows", " is bad"} <= {text for _, text in said_in(path)}
