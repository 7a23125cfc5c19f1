"""``truthheads data``: make question files."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from truthheads.choices import Generated, PairStrategy, Split
from truthheads.cli import console
from truthheads.cli.console import exclusive_output, guarded, resumable
from truthheads.cli.help import MODEL, OUTPUT, RUN
from truthheads.cli.options import (
    Encoding,
    Force,
    How,
    Images,
    Json,
    LabelTrue,
    Limit,
    SkipBadRows,
    loads_model,
    seed_of,
)
from truthheads.cli.reading import all_at_once, tell_reading, usable


@guarded
def make(
    what: Annotated[Generated, typer.Argument(help="Kind of rows to generate.")],
    rows: Annotated[int, typer.Option(metavar="N", min=1, rich_help_panel=RUN, help="Number of rows.")],
    out: Annotated[Path, typer.Option(rich_help_panel=OUTPUT, help="Folder to write to.")],
    force: Force = False,
    seed: Annotated[int, seed_of("names, facts and scenes")] = 0,
    kinds: Annotated[
        str | None,
        typer.Option(rich_help_panel=RUN, help="For text, a comma-separated list of: absent, distractor, memory."),
    ] = None,
    facts: Annotated[
        int, typer.Option(metavar="N", min=1, max=8, rich_help_panel=RUN, help="For text, facts per context.")
    ] = 4,
    split: Annotated[
        Split,
        typer.Option(metavar="NAME", rich_help_panel=RUN, help="Split: train, dev or test; no name or fact is in two."),
    ] = "test",
    json: Json = False,
) -> None:
    """Generate questions about invented people, places and things, or scenes with their questions."""
    from truthheads.storage.files import check_new, dumps
    from truthheads.storage.output_lock import locked_folder

    written: list[Path]
    with locked_folder(out):
        check_new(out / "questions.jsonl", force=force)
        if what == "text":
            from truthheads.data.questions import write_questions
            from truthheads.synthetic.text import KINDS, make_text

            chosen = [kind.strip() for kind in kinds.split(",")] if kinds else list(KINDS)
            questions = make_text(rows, seed=seed, kinds=chosen, facts=facts, split=split)
            written = [write_questions(out / "questions.jsonl", questions)]
        else:
            from truthheads.synthetic.scenes import make_scenes

            files = make_scenes(rows, seed=seed, out=out, split=split)
            written = [files.images, files.questions, *files.pope.values(), files.captions]
    if json:
        typer.echo(dumps({"files": [str(path) for path in written]}))
    else:
        for path in written:
            console.written(path)


@guarded
@resumable
@exclusive_output(checks=True)
@loads_model
def pairs(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="File of rows with context, question, and truthful or answer.")
    ],
    out: Annotated[Path, typer.Option(rich_help_panel=OUTPUT, help="Question file to write (.jsonl).")],
    model: Annotated[
        str | None, typer.Option(rich_help_panel=MODEL, help="Model that answers without the context (not for swap).")
    ] = None,
    strategy: Annotated[
        PairStrategy,
        typer.Option(
            metavar="NAME",
            rich_help_panel=RUN,
            help="Untruthful answers: closed-book (the model's, without the context), swap (another row's) or both.",
        ),
    ] = "both",
    images: Images = None,
    limit: Limit = None,
    skip_bad_rows: SkipBadRows = False,
    encoding: Encoding = None,
    label_true: LabelTrue = None,
    seed: Annotated[int, seed_of("the choice among answers of like form")] = 0,
    *,
    how: How,
    json: Json = False,
) -> None:
    """Make the untruthful side of rows that have a context, a question and an answer."""
    from truthheads.data.questions import write_questions
    from truthheads.models.load import load
    from truthheads.storage.files import dumps
    from truthheads.workflows.make_pairs import make_pairs

    asked = strategy != "swap" and model is not None
    with all_at_once() as wrong:
        read = wrong.of_questions(
            file,
            limit=limit,
            skip_bad_rows=skip_bad_rows,
            images=images,
            halves=True,
            encoding=encoding,
            label_true=label_true,
        )
        if asked:
            wrong.of_model(str(model), how)
    assert read is not None
    loaded = load(str(model), **how) if asked else None
    questions = read
    if loaded is not None:
        questions = usable(
            loaded,
            read,
            skip_bad_rows=skip_bad_rows,
            skip_missing=False,
            chat=False,
            truncate=False,
            asked=lambda one: replace(one, context="", image=None, evidence=()),
        )
    work = out.with_name(f"{out.name}.partial")
    with console.progress_bar(f"{len(questions)} questions without their contexts") as progress:
        made = make_pairs(questions, loaded, strategy=strategy, seed=seed, work_dir=work, progress=progress)
    write_questions(out, made.questions)
    shutil.rmtree(work, ignore_errors=True)
    form = (
        None if made.form is None else {"accuracy": made.form.accuracy.json(), "best_feature": made.form.best_feature}
    )
    for warning in made.cautions:
        console.warn(warning)
    if json:
        typer.echo(dumps({"counts": made.counts, "form": form, "warnings": made.cautions, "out": str(out)}))
        return
    tell_reading(read)
    console.out.print(", ".join(f"{count} {kind}" for kind, count in made.counts.items()))
    if made.form is not None:
        console.out.print(f"form probe {made.form.accuracy}; chance is 0.5")
        if made.form.warns:
            console.warn(
                f"the form of the answers alone tells {made.form.accuracy.value:.0%} of them apart "
                f"(most: {made.form.best_feature}); scores on this data measure form, too"
            )
    console.written(out)
