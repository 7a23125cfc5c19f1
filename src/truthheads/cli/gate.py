"""``truthheads gate``: a gate from a score file, or a control of one."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from truthheads.choices import Control, Norm, Site
from truthheads.cli import console
from truthheads.cli.console import exclusive_output, guarded
from truthheads.cli.help import MODEL, OUTPUT, RUN
from truthheads.cli.options import Json, Remote, seed_of

if TYPE_CHECKING:
    from truthheads.results.gate import GateSummary


@guarded
@exclusive_output()
def gate(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="Score file, or an array as .npy or .csv.")],
    strength: Annotated[
        float, typer.Option(metavar="X", rich_help_panel=RUN, help="Strength: factor = 1 + strength x norm(score).")
    ] = 4.5,
    norm: Annotated[
        Norm,
        typer.Option(
            metavar="NAME",
            rich_help_panel=RUN,
            help="Norm: centred (less the layer's mean), minmax (0 to 1 in a layer) or signed (by magnitude).",
        ),
    ] = "centred",
    site: Annotated[
        Site,
        typer.Option(
            metavar="NAME",
            rich_help_panel=RUN,
            help="Site: z (the heads' own outputs) or output.",
        ),
    ] = "z",
    floor: Annotated[
        str,
        typer.Option(
            metavar="X", rich_help_panel=RUN, help="Smallest factor allowed, or 'none'. Negative factors flip a sign."
        ),
    ] = "0",
    standardise: Annotated[
        bool,
        typer.Option(
            "--standardise", rich_help_panel=RUN, help="Count strength in standard deviations of the scores (centred)."
        ),
    ] = False,
    control: Annotated[
        Control | None,
        typer.Option(metavar="NAME", rich_help_panel=RUN, help="Write a control gate: constant, shuffled or random."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--for", metavar="MODEL", rich_help_panel=MODEL, help="Check that the gate fits this model."),
    ] = None,
    out: Annotated[Path, typer.Option(rich_help_panel=OUTPUT, help="Gate file to write.")] = Path("gate.safetensors"),
    plot: Annotated[
        Path | None, typer.Option(rich_help_panel=OUTPUT, help="Heat map of the factors: .html, .png or .svg.")
    ] = None,
    seed: Annotated[int, seed_of("a control (--control)")] = 0,
    trust_remote_code: Remote = False,
    json: Json = False,
) -> None:
    """Make a gate from Truth Scores, of the model itself or of a relative of the same shape."""
    from dataclasses import replace

    from truthheads.models.hooks import check_factors
    from truthheads.models.inspection import inspect
    from truthheads.plots.charts import check_suffix, save_chart
    from truthheads.results.gate import Gate
    from truthheads.results.scores import Scores
    from truthheads.storage.artifacts import provenance, without_folder
    from truthheads.storage.files import check_target, dumps

    if plot is not None:
        check_suffix(plot)
        check_target(plot)
    given = Scores.load(scores)
    made = Gate.from_scores(
        given,
        strength=strength,
        norm=norm,
        site=site,
        floor=floor_of(floor),
        standardise=standardise,
    )
    if target is not None:
        check_factors(made.gate, inspect(target, trust_remote_code=trust_remote_code).layout)
    if control is not None:
        made = made.control(control, seed=seed)
    made = replace(
        made,
        meta={**made.meta, "for": None if target is None else without_folder(target), "seed": seed, **provenance()},
    )
    made.save(out)
    result: GateSummary = {
        **made.describe(),
        "top": made.table(),
        "warnings": [given.caution] if given.caution else [],
    }
    written = {"out": str(out)}
    if plot is not None:
        save_chart(made.chart(), plot)
        written["plot"] = str(plot)
    for warning in result["warnings"]:
        console.warn(warning)
    if json:
        typer.echo(dumps({**result, **written}))
        return
    show_gate(result)
    if made.clipped:
        total = made.gate.numel() - len(made.absent)
        console.warn(f"{made.clipped} of {total} factors were below the floor {floor} and were raised to it")
    if result["negative"]:
        console.warn(f"{result['negative']} factors are below 0: they flip the sign of the head's output")
    if standardise and norm != "centred":
        console.warn(f"--standardise changes nothing under --norm {norm}, which has no unit")
    for path in written.values():
        console.written(path)


def show_gate(result: "GateSummary") -> None:
    """Print what a gate is, and the factors that are farthest from 1."""
    console.out.print(
        f"{result['num_layers']} layers x {result['num_heads']} heads, site {result['site']}: factors "
        f"{result['min']:.3f} to {result['max']:.3f}, mean {result['mean']:.3f}, sd {result['sd']:.3f}, "
        f"{result['moved']} not 1"
    )
    rows = [[row["head"], f"{row['factor']:.3f}"] for row in result["top"]]
    console.out.print(console.grid("\nFarthest from 1", ["head", "factor"], rows))


def floor_of(text: str) -> float | None:
    """Read the value of ``--floor``; None stands for ``none``.

    Raises:
        GateError: The text is neither a number nor ``none``.
    """
    from truthheads.errors import GateError

    if text.strip().lower() == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise GateError(
            "--floor must be a number up to 1, or 'none'",
            expected="a number up to 1, or none",
            got=text,
            fix="try --floor 0",
        )
    return value
