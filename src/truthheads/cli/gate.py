"""``truthheads gate``: a gate from a score file, or a control of one."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from truthheads.cli import console
from truthheads.cli.console import exclusive_output, guarded
from truthheads.cli.options import Json, Remote, Seed, SiteName


class NormName(StrEnum):
    """How scores become distances from 1."""

    centred = "centred"
    minmax = "minmax"
    signed = "signed"


class ControlName(StrEnum):
    """What a control keeps of a gate."""

    constant = "constant"
    shuffled = "shuffled"
    random = "random"


@guarded
@exclusive_output()
def gate(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="Score file, or a released .npy or .csv array.")],
    strength: Annotated[float, typer.Option(help="Factor = 1 + strength x norm(score).")] = 4.5,
    norm: Annotated[
        NormName, typer.Option(help="centred: less the layer's mean. minmax: 0 to 1 in a layer. signed: by magnitude.")
    ] = NormName.centred,
    site: Annotated[SiteName, typer.Option(help="Each head's z, or blocks of the projection's output.")] = SiteName.z,
    floor: Annotated[str, typer.Option(help="Least factor, or none; factors below 0 turn a head round.")] = "0",
    standardise: Annotated[
        bool, typer.Option("--standardise", help="Strength in standard deviations of the scores (centred).")
    ] = False,
    control: Annotated[ControlName | None, typer.Option(help="Write a control of this gate instead.")] = None,
    target: Annotated[
        str | None, typer.Option("--for", metavar="MODEL", help="Check that the gate fits this model.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The gate.")] = Path("gate.safetensors"),
    plot: Annotated[Path | None, typer.Option(help="Heat map of the factors: .html, .png or .svg.")] = None,
    seed: Seed = 0,
    trust_remote_code: Remote = False,
    json: Json = False,
) -> None:
    """Make a gate from Truth Scores, of the model itself or of a relative of the same shape."""
    from dataclasses import replace

    from truthheads.models.hooks import check_factors
    from truthheads.models.load import inspect
    from truthheads.plots.charts import check_suffix, save_chart
    from truthheads.results.gate import Gate
    from truthheads.results.scores import Scores
    from truthheads.storage.artifacts import provenance
    from truthheads.storage.files import check_target, dumps

    if plot is not None:
        check_suffix(plot)
        check_target(plot)
    given = Scores.load(scores)
    made = Gate.from_scores(
        given,
        strength=strength,
        norm=norm.value,
        site=site.value,
        floor=floor_of(floor),
        standardise=standardise,
    )
    if target is not None:
        check_factors(made.gate, inspect(target, trust_remote_code=trust_remote_code).layout)
    if control is not None:
        made = made.control(control.value, seed=seed)
    made = replace(made, meta={**made.meta, "for": target, "seed": seed, **provenance()})
    made.save(out)
    result: dict[str, Any] = {**made.describe(), "top": made.table(), "out": str(out)}
    result["warnings"] = [given.caution] if given.caution else []
    if plot is not None:
        save_chart(made.chart(), plot)
        result["plot"] = str(plot)
    for warning in result["warnings"]:
        console.warn(warning)
    if json:
        typer.echo(dumps(result))
        return
    show_gate(result)
    if made.clipped:
        total = made.gate.numel() - len(made.absent)
        console.warn(f"{made.clipped} of {total} factors were below the floor {floor} and were raised to it")
    if result["negative"]:
        console.warn(f"{result['negative']} factors are below 0: they turn the head's output round")
    if standardise and norm is not NormName.centred:
        console.warn(f"--standardise changes nothing under --norm {norm.value}, which has no unit")
    for name in ("out", "plot"):
        if name in result:
            console.written(result[name])


def show_gate(result: dict[str, Any]) -> None:
    """Print what a gate is, and the factors that are farthest from 1."""
    console.out.print(
        f"{result['num_layers']} layers x {result['num_heads']} heads, site {result['site']}: factors "
        f"{result['min']:.3f} to {result['max']:.3f}, mean {result['mean']:.3f}, sd {result['sd']:.3f}, "
        f"{result['moved']} not 1"
    )
    rows = [[row["head"], f"{row['factor']:.3f}"] for row in result["top"]]
    console.out.print(console.grid("\nFarthest from 1", ["head", "factor"], rows))


def floor_of(text: str) -> float | None:
    """Return a floor, or None for ``none``.

    Raises:
        GateError: It is neither.
    """
    from truthheads.errors import GateError

    if text.strip().lower() == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise GateError("the floor is no floor", expected="a number up to 1, or none", got=text, fix="try --floor 0")
    return value
