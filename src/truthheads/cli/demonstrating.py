"""``truthheads demo``: the whole chain on the embedded family."""

from pathlib import Path
from typing import Annotated, Any

import typer

from truthheads.cli import console
from truthheads.cli.console import guarded
from truthheads.cli.options import Json, Seed


@guarded
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to; the same command goes on from it.")] = Path("demo"),
    rows: Annotated[int, typer.Option(min=60, help="Generated questions; everything else is in proportion.")] = 180,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Run everything on SmolLM2 and two descendants: scores, lineage, evidence, gates, evaluation, report."""
    from truthheads.artifacts import dumps
    from truthheads.demo import STEPS, run_demo
    from truthheads.summaries import summarise

    with console.stepwise(STEPS) as (tell, progress):
        made = run_demo(out, rows=rows, seed=seed, tell=tell, progress=progress)
    scores = summarise(made["scores"])
    if json:
        found = {"scores": scores, "comparison": made["comparison"], "evaluations": made["evaluations"]}
        typer.echo(dumps({**found, "out": str(out)}))
        return
    _show(scores, made)
    console.written(out / "report.html")


def _show(scores: dict[str, Any], made: dict[str, Any]) -> None:
    best = scores["best"]
    console.out.print(
        f"smollm2: mean Truth Score {scores['heads_mean']:.3f}, best head {best['head']} {best['score']:.3f}"
    )
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
