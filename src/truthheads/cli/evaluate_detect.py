"""``truthheads evaluate detect``: how often is a detector right?"""

from pathlib import Path
from typing import Annotated

import typer

from truthheads.cli import console
from truthheads.cli.console import guarded, resumable
from truthheads.cli.detect import (
    ChatOrNot,
    DetectorFile,
    Threshold,
    alone,
    generated_detector,
    is_wrapped,
    show_figures,
)
from truthheads.cli.help import DATA, OUTPUT
from truthheads.cli.options import (
    BatchTokens,
    Data,
    Encoding,
    How,
    Images,
    Json,
    LabelTrue,
    Limit,
    ModelName,
    SkipBadRows,
    Truncate,
    loads_model,
    seed_of,
)
from truthheads.cli.reading import all_at_once, tell_reading, usable


@guarded
@resumable
@loads_model
def evaluate_detect(
    model: ModelName,
    data: Data,
    out: Annotated[
        Path, typer.Option(metavar="DIR", rich_help_panel=OUTPUT, help="Folder for detections and summary.")
    ] = Path("evaluation"),
    force: Annotated[
        bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Remove an earlier evaluation from --out first.")
    ] = False,
    detector: DetectorFile = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", rich_help_panel=DATA, help="Column of another detector's scores; repeatable."),
    ] = None,
    threshold: Threshold = None,
    chat: ChatOrNot = None,
    truncate: Truncate = False,
    images: Images = None,
    limit: Limit = None,
    skip_bad_rows: SkipBadRows = False,
    encoding: Encoding = None,
    label_true: LabelTrue = None,
    batch_tokens: BatchTokens = None,
    seed: Annotated[int, seed_of("folds and intervals")] = 0,
    *,
    how: How,
    json: Json = False,
) -> None:
    """Measure how well a detector tells supported answers from others, beside simpler scores."""
    from truthheads.detection.evaluate import DETECTIONS, beside_scores, evaluate_detector
    from truthheads.evaluation.evaluate import remove_evaluation
    from truthheads.models.load import load
    from truthheads.results.detector import Detector
    from truthheads.results.evaluation import SUMMARY
    from truthheads.storage.files import check_new, dumps
    from truthheads.storage.output_lock import locked_folder

    with locked_folder(out):
        with all_at_once() as wrong:
            wrong.of(alone)
            wrong.of(lambda: check_new(out / SUMMARY, force=force))
            read = wrong.of_questions(
                data,
                limit=limit,
                skip_bad_rows=skip_bad_rows,
                images=images,
                encoding=encoding,
                label_true=label_true,
                answers=True,
                columns=True,
            )
            if read is not None:
                wrong.of(lambda: beside_scores(read, beside or []))
            known = wrong.of(lambda: Detector.load(detector)) if detector is not None else None
            if known is not None:
                wrong.of(lambda: known.cuts(threshold=threshold))
            wrong.of_model(model, how)
        assert read is not None
        loaded = load(model, **how)
        wrapped = is_wrapped(loaded, known, chat)
        rows = usable(loaded, read, skip_bad_rows=skip_bad_rows, skip_missing=False, chat=wrapped, truncate=truncate)
        used = known or generated_detector(loaded, wrapped, batch_tokens)
        if force:
            remove_evaluation(out)
        with console.progress_bar(f"{len(rows)} rows through {model}, for the heads and for log P") as progress:
            found = evaluate_detector(
                loaded,
                rows,
                out=out,
                detector=used,
                beside=beside or [],
                threshold=threshold,
                chat=wrapped,
                truncate=truncate,
                batch_tokens=batch_tokens,
                seed=seed,
                progress=progress,
            )
    if json:
        typer.echo(dumps(found))
    else:
        tell_reading(read)
        show_figures(found["detection"], f"detect, {model}")
        console.written(out / DETECTIONS)
        console.written(out / SUMMARY)
    for note in found["notes"]:
        console.warn(note)
