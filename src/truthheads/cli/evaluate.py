"""``truthheads evaluate``: a benchmark with its intervals, its controls and a plain sentence."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from truthheads.cli import console
from truthheads.cli.console import guarded, multi_process
from truthheads.cli.options import BatchTokens, How, Json, Limit, loads_model

BESIDE = {
    "halueval": ("yes_rate",),
    "pope": ("yes_rate",),
    "chair": ("recall", "words_per_caption"),
    "conflict": ("em_memory",),
    "pairs": ("margin",),
}
"""What a gate's effect on the primary figure has to be read beside: its effects on these."""


class Lemmas(StrEnum):
    """How words of captions are found."""

    forms = "forms"
    nltk = "nltk"


class ShownAnswers(StrEnum):
    """Which answers of a HaluEval row are shown."""

    both = "both"
    one = "one"


@guarded
@multi_process
@loads_model
def evaluate(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="As for every command; none with --answers, --captions.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="halueval, pope, chair, pairs, conflict, or lm-eval:NAME of that harness.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="The benchmark's file; for POPE's splits and COCO's JSON again and again.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for predictions.jsonl and summary.json.")] = Path("evaluation"),
    gate: Annotated[list[Path] | None, typer.Option(help="A gate; again and again for several.")] = None,
    controls: Annotated[
        int, typer.Option(min=0, help="For each gate so many shuffled and random gates, and a constant one.")
    ] = 0,
    answers: Annotated[
        list[Path] | None, typer.Option(help="pope: score these answers (question_id, answer) instead of a model.")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="chair: score these captions (image_id, caption) instead of a model.")
    ] = None,
    rescore: Annotated[
        Path | None, typer.Option(help="Compute every figure of this folder again from its predictions.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that image paths start from; else the file's.")] = None,
    instruction: Annotated[
        Path | None,
        typer.Option(help="halueval: the benchmark's instruction. pope: after the question. chair: the prompt."),
    ] = None,
    knowledge: Annotated[bool, typer.Option(help="halueval: show the knowledge.")] = True,
    shown: Annotated[ShownAnswers, typer.Option(help="halueval: both answers, or one by seed.")] = ShownAnswers.both,
    new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Greedy tokens: 1 for yes/no (a single pass), 16 for conflict.")
    ] = None,
    caps: Annotated[str, typer.Option(help="chair: new tokens at which captions are cut and scored.")] = "64,512",
    synonyms: Annotated[Path | None, typer.Option(help="chair: words in the official format.")] = None,
    lemmatizer: Annotated[
        Lemmas, typer.Option(help="chair: forms: our table. nltk: the official procedure, bug for bug.")
    ] = Lemmas.forms,
    neutral: Annotated[
        Path | None, typer.Option(help="Text that a gate must leave alone: paragraphs, or .jsonl with text.")
    ] = None,
    guard_texts: Annotated[int, typer.Option(min=0, help="Neutral texts; 0 leaves the guard out.")] = 32,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the tokenizer's chat template.")] = False,
    truncate: Annotated[bool, typer.Option("--truncate", help="Drop the start of contexts that are too long.")] = False,
    limit: Limit = None,
    batch_tokens: BatchTokens = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of controls, intervals and what is shown.")] = None,
    *,
    how: How,
    json: Json = False,
) -> None:
    """Run a benchmark on a model, ungated and gated, or score what was made elsewhere."""
    from truthheads.evaluation.external import score_answers, score_captions
    from truthheads.evaluation.summary import rescore as again
    from truthheads.storage.files import check_target, dumps

    given = {"answers": answers, "captions": captions, "rescore": rescore}
    _check_choice(model, task, data, {name: value for name, value in given.items() if value})
    files, number = data or [], seed or 0
    if rescore is not None:
        out = rescore
        summary = again(rescore, seed=seed)
    else:
        check_target(out / "predictions.jsonl")
        if answers:
            summary = score_answers(answers, files, out=out, limit=limit, seed=number)
        elif captions is not None:
            summary = score_captions(
                captions, files, out=out, synonyms=synonyms, lemmatizer=lemmatizer.value, limit=limit, seed=number
            )
        else:
            from truthheads.evaluation.ask import AskOptions
            from truthheads.evaluation.evaluate import evaluate as run
            from truthheads.models.load import load

            asking = AskOptions(
                images=images,
                instruction=read_instruction(instruction),
                knowledge=knowledge,
                shown=shown.value,
                new_tokens=new_tokens,
                caps=read_caps(caps),
                synonyms=synonyms,
                lemmatizer=lemmatizer.value,
                chat=chat,
                truncate=truncate,
                limit=limit,
                seed=number,
            )
            gates = read_gates(gate or [])
            loaded = load(str(model), **how)
            with console.progress_bar(f"{task}: tokens read") as progress:
                summary = run(
                    loaded,
                    str(task),
                    files,
                    out=out,
                    gates=gates,
                    controls=controls,
                    asking=asking,
                    neutral=neutral,
                    guard_texts=guard_texts,
                    batch_tokens=batch_tokens,
                    seed=number,
                    progress=progress,
                )
    for note in summary["notes"]:
        console.err.print(f"note: {escape(note)}")
    if json:
        typer.echo(dumps(summary))
        return
    show(summary)
    console.written(out / "predictions.jsonl")
    console.written(out / "summary.json")


def _check_choice(model: str | None, task: str | None, data: list[Path] | None, given: dict[str, Any]) -> None:
    """Raise TruthHeadsError where the options do not say one thing to do."""
    from truthheads.errors import TruthHeadsError

    wanted = {"answers": "pope", "captions": "chair"}
    name = next(iter(given), None)
    whole = name == "rescore" or (task is not None and (bool(data) or task.startswith("lm-eval:")))
    fits = name not in wanted or task == wanted[name]
    if len(given) > 1 or (model is None) != bool(given) or not whole or not fits:
        raise TruthHeadsError(
            "it is not clear what to evaluate",
            expected="MODEL --task --data; or --task pope --answers --data; or --task chair --captions --data; "
            "or --rescore",
            got=" ".join(
                [
                    *([f"MODEL {model}"] if model else []),
                    *([f"--task {task}"] if task else []),
                    *(["--data"] if data else []),
                    *(f"--{each}" for each in given),
                ]
            )
            or "nothing",
            fix="give one of these",
        )


def read_instruction(path: Path | None) -> str | None:
    """Return the text of an instruction file.

    Raises:
        DataError: It cannot be read.
    """
    from truthheads.errors import DataError

    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read", expected="a text file in UTF-8", got=str(error), fix="check the path"
        ) from error


def read_caps(text: str) -> tuple[int, ...]:
    """Return comma-separated numbers of tokens.

    Raises:
        DataError: One of them is no whole number above 0, or stands there twice.
    """
    from truthheads.errors import DataError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts) or len(set(parts)) < len(parts):
        raise DataError("--caps cannot be read", expected="numbers of tokens, such as 64,512", got=text, fix="mend it")
    return tuple(map(int, parts))


def read_gates(paths: list[Path]) -> dict[str, Any]:
    """Return gates under their files' names; folders are added where two files share one.

    Raises:
        ArtifactError, GateError: A file is no gate.
    """
    from truthheads.results.gate import Gate

    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = ["-".join([*path.parts[-2:-1], path.stem]) for path in paths]
    if len(set(names)) < len(names):
        names = [f"{name}-{at}" for at, name in enumerate(names, start=1)]
    return {name: Gate.load(path) for name, path in zip(names, paths, strict=True)}


def show(summary: dict[str, Any]) -> None:
    """Print the ungated figures, and what each gate did."""
    plain, *others = summary["runs"]
    primary = summary["primary"]
    names = list(plain["metrics"])
    rows = [[name, console.figure(_whole(plain["metrics"][name]))] for name in names]
    console.out.print(console.grid(f"{summary['task']}, {summary['rows']} rows, ungated", ["", "95 %"], rows))
    gates = [run for run in others if run["kind"] == "gate"]
    if gates:
        shown = ("yes_rate",) if "auroc" in plain["metrics"] else ()
        beside = BESIDE.get(summary["task"], shown)
        columns = ["effect", "p", "beaten", *beside, "perplexity"]
        rows = [_row(run, primary, beside) for run in gates]
        console.out.print(
            console.grid(f"\nGates: effect on {primary}, p by Holm, controls beaten", ["gate", *columns], rows)
        )
        for run in gates:
            console.out.print(f"{escape(run['name'])}: [bold]{run['verdict']}[/]")


def _row(run: dict[str, Any], primary: str, beside: tuple[str, ...]) -> list[str]:
    held = run.get("controls")
    guard = run.get("guard")
    return [
        run["name"],
        console.figure(_whole(run["effect"][primary])),
        console.number(run["p"]["holm"]),
        f"{held['beaten']}/{held['of']}" if held else "–",
        *(f"{run['effect'][name]['value']:+.3f}" for name in beside),
        f"x {guard['perplexity_ratio']['value']:.3f}" if guard else "–",
    ]


def _whole(figure: dict[str, float]) -> dict[str, float] | None:
    return figure if figure["value"] == figure["value"] else None
