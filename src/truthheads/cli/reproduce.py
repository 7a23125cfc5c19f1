"""``truthheads reproduce`` and ``demo``: a published experiment, and the whole chain on the embedded models."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from truthheads.cli import console
from truthheads.cli.console import guarded, resumable
from truthheads.cli.help import DATA, MODEL, OUTPUT, RUN
from truthheads.cli.options import How, IdleSeed, Json, loads_model, seed_of

if TYPE_CHECKING:
    from truthheads.models.load import Loading
    from truthheads.results.reproduction import DemoResult, RecipePlan
    from truthheads.results.score_summary import ScoreSummary


@guarded
@resumable
def demo(
    out: Annotated[
        Path, typer.Option(rich_help_panel=OUTPUT, help="Folder to write to; run again to continue.")
    ] = Path("demo"),
    rows: Annotated[
        int, typer.Option(metavar="N", min=60, rich_help_panel=DATA, help="Number of questions to generate.")
    ] = 180,
    seed: Annotated[int, seed_of("rows, folds, learning and intervals")] = 0,
    json: Json = False,
) -> None:
    """Run everything on SmolLM2 and two descendants: scores, lineage, evidence, gates, evaluation, report."""
    from truthheads.results.score_summary import summarise_scores
    from truthheads.storage.files import dumps
    from truthheads.workflows.plan import steps_of
    from truthheads.workflows.recipe import read_recipe
    from truthheads.workflows.reproduce import run_demo

    recipe = read_recipe("demo").resized(rows, seed=seed)
    with console.stepwise({step.name: step.what for step in steps_of(recipe)}) as (tell, progress):
        made = run_demo(recipe, out, tell=tell, progress=progress)
    scores = summarise_scores(made["scores"])
    if json:
        found = {"scores": scores, "comparison": made["comparison"], "evaluations": made["evaluations"]}
        typer.echo(dumps({**found, "out": str(out)}))
        return
    _show(scores, made)
    console.written(out / "report.html")


def _show(scores: "ScoreSummary", made: "DemoResult") -> None:
    best = scores["best"]
    told = f", best head {best['head']} {best['score']:.3f}" if best is not None else ""
    console.out.print(f"smollm2: mean Truth Score {console.number(scores['heads_mean'])}{told}")
    for pair in made["comparison"]["pairs"]:
        console.out.print(f"{pair['a']} and {pair['b']}: {pair['verdict']}", markup=False)
    for name, summary in made["evaluations"].items():
        rows = [
            [run["name"], console.figure(run["effect"][summary["primary"]]), str(run["verdict"])]
            for run in summary["runs"]
            if run["kind"] == "gate"
        ]
        title = f"{name}: change of {summary['primary'].replace('_', ' ')}, {summary['rows']} rows"
        console.out.print(console.grid(title, ["gate", "95 %", ""], rows))


@guarded
@resumable
@loads_model
def reproduce(
    recipe: Annotated[str | None, typer.Argument(help="Name of a shipped recipe (see --list), or a TOML file.")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", rich_help_panel=RUN, help="Print steps, downloads, memory and time; run nothing.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", rich_help_panel=RUN, help="List the shipped recipes.")] = False,
    models_dir: Annotated[
        Path | None,
        typer.Option(rich_help_panel=MODEL, help="Folder of models: DIR/organisation/name or DIR/name (default: hub)."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(rich_help_panel=DATA, help="Folder of data files (default: download).")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(metavar="N", min=1, rich_help_panel=DATA, help="Rows to read from each file at most.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(rich_help_panel=OUTPUT, help="Folder to write to (default: reproduced/RECIPE).")
    ] = None,
    seed: IdleSeed = None,
    *,
    how: How,
    json: Json = False,
) -> None:
    """Repeat a published experiment and put its figures beside ours."""
    from truthheads.storage.files import dumps
    from truthheads.workflows.plan import plan as planned
    from truthheads.workflows.plan import steps_of
    from truthheads.workflows.recipe import read_recipe, shipped

    if listed or recipe is None:
        found = {name: read_recipe(name).title for name in shipped()}
        if json:
            typer.echo(dumps(found))
        else:
            console.out.print(console.grid("recipes", ["name", "what"], [[*pair] for pair in found.items()]))
        return
    chosen = read_recipe(recipe)
    if plan:
        made = planned(chosen, rows=rows, models_dir=models_dir, data_dir=data_dir)
        typer.echo(dumps(made)) if json else _show_plan(made)
        return
    from truthheads.workflows.reproduce import reproduce as run
    from truthheads.workflows.runner import ReproduceOptions

    folder = out or Path("reproduced") / Path(recipe).stem
    places = ReproduceOptions(folder, models_dir, data_dir, rows, cast("Loading", how))
    with console.stepwise({step.name: step.what for step in steps_of(chosen, rows=rows)}) as (tell, progress):
        result = run(chosen, places, tell=tell, progress=progress)
    if json:
        typer.echo(dumps({**result, "out": str(folder)}))
        return
    rows_shown = [
        [
            f"{one['step']} {one['run']}".strip(),
            one["figure"],
            console.figure(one["ours"]),
            console.number(one["paper"]),
        ]
        for one in result["figures"]
    ]
    console.out.print(console.grid(result["title"], ["", "figure", "ours [95 %]", "paper"], rows_shown))
    for note in result["notes"]:
        console.warn(note)
    console.written(folder / "reproduction.json")


def _show_plan(made: "RecipePlan") -> None:
    console.out.print(f"{made['title']} ({made['source']})", markup=False)
    rows = [[step["name"], step["what"], f"{step['seconds'] / 60:.0f} min"] for step in made["steps"]]
    console.out.print(console.grid("steps", ["", "what", "about"], rows))
    rows = [
        [
            one["kind"],
            one["name"],
            "there" if one["place"] else (f"{one['bytes'] / 1e9:.1f} GB" if one["bytes"] else "missing"),
            one["origin"],
        ]
        for one in made["needs"]
    ]
    if rows:
        console.out.print(console.grid("needs", ["", "name", "", "from"], rows))
    console.out.print(
        f"models to download: {made['download_bytes'] / 1e9:.0f} GB; GPU memory: {made['gpu_bytes'] / 1e9:.0f} GB; "
        f"time: {made['hours']:.1f} h ({made['assumption']})"
    )
    for note in made["notes"]:
        console.warn(note)
