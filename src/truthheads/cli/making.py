"""``truthheads data``: make question files."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from truthheads.cli import console
from truthheads.cli.console import guarded
from truthheads.cli.options import Json, Seed


class Generated(StrEnum):
    """What can be generated."""

    text = "text"
    scenes = "scenes"


class Split(StrEnum):
    """Which part of the generators' names, facts and seeds."""

    train = "train"
    dev = "dev"
    test = "test"


@guarded
def make(
    what: Annotated[Generated, typer.Argument(help="What to generate.")],
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    seed: Seed = 0,
    kinds: Annotated[str | None, typer.Option(help="text: comma-separated, of absent, distractor, memory.")] = None,
    facts: Annotated[int, typer.Option(min=1, max=8, help="text: facts in each context.")] = 4,
    split: Annotated[Split, typer.Option(help="Names and facts of the three are disjoint.")] = Split.test,
    json: Json = False,
) -> None:
    """Generate questions about invented people, places and things, or scenes with their questions."""
    from truthheads.artifacts import dumps

    written: list[Path]
    if what is Generated.text:
        from truthheads.data import write_questions
        from truthheads.family.text import KINDS, make_text

        chosen = [kind.strip() for kind in kinds.split(",")] if kinds else list(KINDS)
        questions = make_text(rows, seed=seed, kinds=chosen, facts=facts, split=split.value)
        written = [write_questions(out / "questions.jsonl", questions)]
    else:
        from truthheads.family.scenes import make_scenes

        files = make_scenes(rows, seed=seed, out=out, split=split.value)
        written = [files.images, files.questions, *files.pope.values(), files.captions]
    if json:
        typer.echo(dumps({"files": [str(path) for path in written]}))
    else:
        for path in written:
            console.written(path)
