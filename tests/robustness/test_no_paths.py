"""No artefact says where files lay on the machine that made it."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from commands import COMMANDS, Command, workplace
from planted import NUM_HEADS, NUM_LAYERS
from truthheads.cli import app
from truthheads.results.scores import Scores
from truthheads.storage.artifacts import without_folder

SECRET = "secret-customer"

LATER = {
    "gate": Command(("gate", "scores.safetensors", "--for", "model", "--strength", "1"), "g.safetensors"),
    "compare": Command(("compare", "scores.safetensors", "other.safetensors", "--plot", "c.html"), "c.json"),
    "drift": Command(("compare", "--weights", "model", "sharded"), "c.json"),
    "make pairs": Command(("data", "pairs", "rows.jsonl", "--strategy", "swap"), "pairs.jsonl"),
    "answers": Command(("evaluate", "answers", "pope", "said.jsonl", "--data", "pope.jsonl"), "pope"),
}
"""What the commands of other tests leave out."""

EVERY = {**COMMANDS, **LATER}


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workplace in a folder with a telling name, and give it as a whole path in every command."""
    folder = workplace(tmp_path_factory.mktemp(SECRET) / "work")
    Scores.of("probe", torch.rand(NUM_LAYERS, NUM_HEADS), meta={}).save(folder / "other.safetensors")
    asked = [{"question_id": at, "image": f"{at}.jpg", "text": "Is there a cat?", "label": "yes"} for at in (1, 2)]
    said = [{"question_id": at, "answer": "Yes, there is."} for at in (1, 2)]
    for name, rows in (("pope", asked), ("said", said)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def whole(words: tuple[object, ...], folder: Path) -> list[str]:
    return [str(folder / str(word)) if (folder / str(word)).exists() else str(word) for word in words]


@pytest.mark.parametrize("name", EVERY)
def test_what_a_command_writes_names_no_folder_of_the_machine(
    name: str, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, out = EVERY[name]
    arguments = [*whole(words, secret), "--out", str(tmp_path / out)]
    monkeypatch.setattr("sys.argv", ["truthheads", *arguments])
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written
    assert [str(file) for file in written if SECRET.encode() in file.read_bytes()] == []


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/home/me/models/qwen", "qwen"),
        ("/home/me/models/qwen/", "qwen"),
        ("~/qwen.gguf", "qwen.gguf"),
        ("./qwen", "qwen"),
        ("../../qwen", "qwen"),
        ("C:\\Users\\me\\qwen", "qwen"),
        ("\\\\server\\share\\qwen", "qwen"),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("smollm2:reader", "smollm2:reader"),
        ("data/rows.jsonl", "data/rows.jsonl"),
        ("hf://datasets/owner/name", "hf://datasets/owner/name"),
        ("/", "/"),
    ],
)
def test_the_folder_of_a_path_is_left_out(given: str, kept: str) -> None:
    assert without_folder(given) == kept
