"""``truthheads detect``: does the context support an answer?"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from truthheads.cli import console
from truthheads.cli.console import exclusive_output, guarded, resumable
from truthheads.cli.help import DATA, OUTPUT, RUN
from truthheads.cli.options import (
    BatchTokens,
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
from truthheads.storage.distributed import ranks

if TYPE_CHECKING:
    from truthheads.data.questions import Questions
    from truthheads.models.load import Model
    from truthheads.results.detections import DetectionsSummary
    from truthheads.results.detector import DetectionFigures, Detector, DetectorOutput

GENERATED = "generated"

DetectorFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=RUN, help="Detector file (default: fitted on generated rows)."),
]

ChatOrNot = Annotated[
    bool | None,
    typer.Option("--chat/--no-chat", rich_help_panel=DATA, help="Chat template (default: where there is one)."),
]

Threshold = Annotated[
    float | None, typer.Option(metavar="X", rich_help_panel=RUN, help="Probability from which on it is supported.")
]


def _named_by(given: Mapping[str, object]) -> Path:
    """Return the name of what is made, where none is given."""
    return Path("detections.jsonl" if given["fit"] is None else "detector.safetensors")


@guarded
@resumable
@exclusive_output(checks=True, unnamed=_named_by)
@loads_model
def detect(
    model: ModelName,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", rich_help_panel=DATA, help="Rows of context, question and answer.")
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(metavar="FILE", rich_help_panel=DATA, help="Fit a detector on labelled rows, or on 'generated'."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(rich_help_panel=OUTPUT, help="File to write: detections.jsonl, or detector.safetensors."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(rich_help_panel=OUTPUT, help="Page that shows answers with sentences coloured.")
    ] = None,
    detector: DetectorFile = None,
    threshold: Threshold = None,
    precision: Annotated[
        float | None,
        typer.Option(metavar="P", rich_help_panel=RUN, help="Share of verdicts to be right; others are unsure."),
    ] = None,
    heads: Annotated[
        int, typer.Option(metavar="N", min=1, rich_help_panel=RUN, help="Number of heads to combine, with --fit.")
    ] = 20,
    chat: ChatOrNot = None,
    truncate: Truncate = False,
    images: Images = None,
    limit: Limit = None,
    skip_bad_rows: SkipBadRows = False,
    encoding: Encoding = None,
    label_true: LabelTrue = None,
    batch_tokens: BatchTokens = None,
    seed: Annotated[int, seed_of("generated rows, folds and intervals")] = 0,
    *,
    how: How,
    json: Json = False,
) -> None:
    """Say how probable it is that the context supports each answer, or fit a detector with --fit."""
    from truthheads.models.load import load
    from truthheads.results.detector import Detector

    with all_at_once() as wrong:
        wrong.of(alone)
        wrong.of(lambda: _one_of(data, fit))
        wrong.of_target(html)
        if fit is not None:
            wrong.of(lambda: _refuse_with_fit(detector, threshold, precision, html))
        path = data if data is not None else None if fit in (None, GENERATED) else Path(str(fit))
        read: Questions | None = None
        if path is not None:
            read = wrong.of_questions(
                path,
                limit=limit,
                skip_bad_rows=skip_bad_rows,
                images=images,
                encoding=encoding,
                label_true=label_true,
                answers=True,
                columns=data is not None,
            )
        known = wrong.of(lambda: Detector.load(detector)) if detector is not None else None
        if known is not None:
            wrong.of(lambda: known.cuts(threshold=threshold, precision=precision))
        wrong.of_model(model, how)
    assert out is not None
    loaded = load(model, **how)
    wrapped = is_wrapped(loaded, known, chat)
    if read is not None:
        read = usable(loaded, read, skip_bad_rows=skip_bad_rows, skip_missing=False, chat=wrapped, truncate=truncate)
    if fit is not None:
        _fit(loaded, read, out, heads, wrapped, seed, truncate, batch_tokens, json=json)
        return
    assert read is not None
    used = known or generated_detector(loaded, wrapped, batch_tokens)
    _detect(loaded, read, out, html, used, threshold, precision, wrapped, truncate, batch_tokens, json=json)


def _one_of(data: Path | None, fit: str | None) -> None:
    """Refuse both, and neither."""
    from truthheads.errors import DataError

    if (data is None) == (fit is None):
        raise DataError(
            "it is not clear what to do",
            expected="--data FILE (answers to be judged) or --fit FILE (labelled rows, or `generated`)",
            got="both" if data is not None else "neither",
            fix="give one of the two; a detector that was fitted is used by --detector",
        )


def generated_detector(model: "Model", chat: bool, batch_tokens: int | None) -> "Detector":
    """Return the model's detector on generated rows, fitted now where it never was."""
    from truthheads.detection.fit import default_detector

    with console.progress_bar(f"a detector for {model.name}, once, on generated rows") as progress:
        return default_detector(model, chat=chat, batch_tokens=batch_tokens, progress=progress)


def alone() -> None:
    """Refuse to run in several processes, which would all write one file."""
    from truthheads.errors import TruthHeadsError

    if ranks().several:
        raise TruthHeadsError(
            "detect runs in one process",
            expected="the command started once",
            got=f"{ranks().world} processes",
            fix="start it without torchrun or accelerate launch; --device-map auto spreads a large model over devices",
        )


def _refuse_with_fit(
    detector: Path | None, threshold: float | None, precision: float | None, html: Path | None
) -> None:
    from truthheads.errors import DataError

    given = {"--detector": detector, "--threshold": threshold, "--precision": precision, "--html": html}
    named = [name for name, value in given.items() if value is not None]
    if named:
        raise DataError(
            f"{', '.join(named)} does nothing with --fit",
            expected="--fit alone, which makes a detector",
            got=", ".join(named),
            fix=f"leave {', '.join(named)} out, or give --data with it",
        )


def is_wrapped(model: "Model", detector: "Detector | None", chat: bool | None) -> bool:
    """Return whether prompts are wrapped in the chat template: as asked, else as the detector was made."""
    from truthheads.models.prompts import has_chat_template

    if chat is not None:
        return chat
    return has_chat_template(model) and (detector is None or detector.chat)


def _fit(
    model: "Model",
    questions: "Questions | None",
    out: Path,
    heads: int,
    chat: bool,
    seed: int,
    truncate: bool,
    batch_tokens: int | None,
    *,
    json: bool,
) -> None:
    import shutil

    from truthheads.detection.fit import fit_detector
    from truthheads.storage.files import dumps

    work = out.with_name(f"{out.name}.partial")
    with console.progress_bar(f"{len(questions) if questions else GENERATED} rows through {model.name}") as progress:
        made = fit_detector(
            model,
            questions,
            heads=heads,
            chat=chat,
            seed=seed,
            truncate=truncate,
            batch_tokens=batch_tokens,
            work_dir=work,
            progress=progress,
        )
    made.save(out)
    shutil.rmtree(work, ignore_errors=True)
    result: DetectorOutput = {**made.summary(), "out": str(out)}
    if json:
        typer.echo(dumps(result))
    else:
        if questions is not None:
            tell_reading(questions)
        show_figures(result, f"Detector of {len(made.heads)} heads, on answers that it was not fitted on")
        console.out.print(f"heads: {', '.join(row['head'] for row in result['heads'])}", markup=False)
        console.out.print(f"supported from a probability of {made.threshold:.3f} on", markup=False)
        console.written(out)
    for warning in result["warnings"]:
        console.warn(warning)


def show_figures(found: "DetectionFigures", title: str) -> None:
    """Print the figures of a detector beside those of simpler scores."""
    rows = [[name.replace("_", " "), console.figure(one), ""] for name, one in found["metrics"].items()]
    rows += [[f"AUROC, {name}", console.figure(one), ""] for name, one in found["kinds"].items()]
    rows += [
        [f"AUROC of {name}", console.figure(one["auroc"]), console.figure(one["gain"])]
        for name, one in found["baselines"].items()
    ]
    told = f"{title}: {found['rows']} answers ({found['supported']} supported) in {found['groups']} groups"
    console.out.print(console.grid(told, ["", "95 %", "heads' gain"], rows))
    console.out.print(f"{found['verdict'][:1].upper()}{found['verdict'][1:]}.", markup=False)


def _detect(
    model: "Model",
    questions: "Questions",
    out: Path,
    html: Path | None,
    detector: "Detector",
    threshold: float | None,
    precision: float | None,
    chat: bool,
    truncate: bool,
    batch_tokens: int | None,
    *,
    json: bool,
) -> None:
    from truthheads.detection.detect import prepare, write_detections
    from truthheads.detection.page import write_page
    from truthheads.storage.files import dumps

    ready = prepare(
        model,
        detector=detector,
        threshold=threshold,
        precision=precision,
        chat=chat,
        truncate=truncate,
        batch_tokens=batch_tokens,
    )
    with console.progress_bar(f"{len(questions)} rows through {model.name}") as progress:
        made = write_detections(model, questions, ready, out, progress=progress)
    result = summarise(out, made)
    if html is not None:
        write_page(out, html, made)
    if json:
        typer.echo(dumps({**result, **({"html": str(html)} if html is not None else {})}))
    else:
        tell_reading(questions)
        rows = [[name, str(count)] for name, count in result["verdicts"].items()]
        console.out.print(console.grid(f"{result['rows']} answers", ["verdict", "answers"], rows))
        console.written(out)
        if html is not None:
            console.written(html)
    for warning in made["warnings"]:
        console.warn(warning)


def summarise(path: Path, made: "object") -> "DetectionsSummary":
    """Count the verdicts in a file."""
    from typing import cast

    from truthheads.results.detections import VERDICTS, DetectionsMeta, read_detections

    counts: dict[str, int] = dict.fromkeys(VERDICTS, 0)
    total = 0.0
    for one in read_detections(path):
        counts[one.verdict] += 1
        total += one.supported
    rows = sum(counts.values())
    mean = total / rows if rows else None
    return {"rows": rows, "verdicts": counts, "mean": mean, "meta": cast(DetectionsMeta, made), "out": str(path)}
