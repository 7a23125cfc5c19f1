"""``dict[str, Any]`` stands only in signatures where JSON of other programs is read."""

import ast
from pathlib import Path

import truthheads

FOREIGN = {
    ("models/adapters.py", "_settings"),  # PEFT's configuration
    ("models/weight_files.py", "_once"),  # the header of a safetensors file
}


def signatures(path: Path) -> set[str]:
    """Return the functions of a module that have ``dict[str, Any]`` in their signature."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            asked = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            hints = [*(one.annotation for one in asked), node.returns]
            if any("dict[str, Any]" in ast.unparse(hint) for hint in hints if hint is not None):
                found.add(node.name)
    return found


def test_only_foreign_json_is_a_dict_of_anything() -> None:
    root = Path(truthheads.__file__).parent
    found = {
        (path.relative_to(root).as_posix(), name) for path in sorted(root.rglob("*.py")) for name in signatures(path)
    }
    assert found == FOREIGN


def test_such_a_signature_would_be_seen(tmp_path: Path) -> None:
    source = "def one(a: dict[str, Any] | None) -> int: ...\ndef two() -> list[dict[str, Any]]: ...\ndef three(): ...\n"
    (tmp_path / "a.py").write_text(source)
    assert signatures(tmp_path / "a.py") == {"one", "two"}
