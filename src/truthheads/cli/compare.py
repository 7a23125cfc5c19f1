"""``truthheads compare``: is one model made from another?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from truthheads.cli import console
from truthheads.cli.console import exclusive_output, guarded
from truthheads.cli.help import DATA, OUTPUT, RUN
from truthheads.cli.options import Json, seed_of

if TYPE_CHECKING:
    from truthheads.results.comparison import ComparisonResult, PairResult

SCORE_FILES = (".safetensors", ".npy", ".csv")


@guarded
@exclusive_output()
def compare(
    items: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C…]",
            help="Score files; with --weights also models, the base first.",
        ),
    ],
    weights: Annotated[
        bool, typer.Option("--weights", rich_help_panel=RUN, help="Compare the weights of the models among A B C….")
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(rich_help_panel=DATA, help="Score file of one of the models on other data, for comparison."),
    ] = None,
    align: Annotated[
        bool, typer.Option("--align", rich_help_panel=RUN, help="Also align heads of different positions or shapes.")
    ] = False,
    out: Annotated[
        Path, typer.Option(rich_help_panel=OUTPUT, help="JSON file; drift per head is written beside it.")
    ] = Path("comparison.json"),
    plot: Annotated[
        Path | None, typer.Option(rich_help_panel=OUTPUT, help="Scatter, profile and heat maps: .html, .png or .svg.")
    ] = None,
    seed: Annotated[int, seed_of("resamples and permutation tests")] = 0,
    json: Json = False,
) -> None:
    """Compare models by their Truth Scores, by their weights, or by both."""
    from truthheads.errors import DataError
    from truthheads.lineage.compare import compare as run
    from truthheads.plots.charts import check_suffix, save_chart
    from truthheads.storage.files import check_target, dumps

    files = [item for item in items if Path(item).suffix.lower() in SCORE_FILES]
    models = [item for item in items if item not in files]
    if models and not weights:
        raise DataError(
            f"{', '.join(models)}: not a score file",
            expected=f"names ending in {', '.join(SCORE_FILES)}",
            got="what may be a model",
            fix="compare models' weights by --weights, or score them first: `truthheads score`",
        )
    if plot is not None:
        check_suffix(plot)
        check_target(plot)
    with console.progress_bar("layers read") as progress:
        found = run(
            *files,
            weights=models if weights else (),
            reference=reference,
            align=align,
            seed=seed,
            progress=progress,
        )
    drawing = None if plot is None else found.chart()
    found.save(out)
    result, written = found.result, {"out": str(out)}
    if plot is not None:
        save_chart(drawing, plot)
        written["plot"] = str(plot)
    if json:
        typer.echo(dumps({**result, **written}))
    else:
        _show(result)
        for path in written.values():
            console.written(path)
    for pair in result["pairs"]:
        for note in pair.get("notes", []):
            console.warn(f"{pair['a']} and {pair['b']}: {note}")


def _show(result: "ComparisonResult") -> None:
    for pair in result["pairs"]:
        console.out.print(f"[bold]{escape(pair['a'])} and {escape(pair['b'])}[/]: {pair['verdict']}")
        console.out.print(escape(f"  {pair['evidence']}"))
        if "weights_verdict" in pair and pair["pearson"] is not None:
            console.out.print(escape(f"  weights: {pair['weights_verdict']}; {pair['weights_evidence']}"))
        rows = _rows(pair)
        if rows:
            console.out.print(console.grid("", ["", "value [95 %]"], rows))
        if "alignment_in_words" in pair:
            console.out.print(escape(f"  {pair['alignment_in_words']}"))
    if result["reference"]:
        reference = result["reference"]
        console.out.print(
            f"reference: {escape(reference['of'])} with itself on other data: raw "
            f"{console.figure(reference['pearson'])}, within layers {console.figure(reference['pearson_within_layer'])}"
        )
    for triple in result["triples"]:
        console.out.print(escape(triple["in_words"]))


def _rows(pair: "PairResult") -> list[list[str]]:
    rows = []
    if pair["pearson"] is not None:
        figures = {
            "Pearson, raw": pair["pearson"],
            "Spearman, raw": pair["spearman"],
            "Pearson within layers": pair["pearson_within_layer"],
            "– across disjoint halves": pair["disjoint_within"],
            "– without noise": pair["corrected_within"],
        }
        rows += [[title, console.figure(found)] for title, found in figures.items() if found]
        rows.append(["noise ceiling, raw / within layers", " / ".join(map(console.number, _ceilings(pair)))])
        rows += [
            [
                f"best {overlap['share']:.0%} of heads shared",
                f"{overlap['overlap']:.2f} (chance {overlap['chance']:.2f})",
            ]
            for overlap in pair["overlaps"]
        ]
    for part, figure in pair.get("drift", {}).items():
        rows.append([f"relative drift of {part}", console.figure(figure)])
    foretold = pair.get("drift_foretells_change")
    if foretold:
        effect = foretold["all"]
        rows.append(
            [
                "drift with change of score, rank, within layers",
                f"{console.figure(effect['within_layer'])}, p {effect['p_permutation']:.3f}",
            ]
        )
    return rows


def _ceilings(pair: "PairResult") -> tuple[float | None, float | None]:
    return pair["noise_ceiling"], pair["noise_ceiling_within_layer"]
