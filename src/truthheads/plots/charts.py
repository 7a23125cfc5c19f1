"""Altair charts of heads: one array, two side by side, several models as a matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from truthheads.errors import ArtifactError
from truthheads.plots.page import chart_html as chart_html
from truthheads.stats.figures import FigureJson
from truthheads.storage.files import replaced, write_text

P = TypeVar("P", bound=Mapping[str, Any])

SUFFIXES = (".html", ".png", ".svg")


Heads = Float[np.ndarray, "num_layers num_heads"]

ABSENT = "#bdbdbd"


def heat_map(
    values: Heads,
    *,
    title: str,
    unit: str,
    middle: float | None = None,
    panels: dict[str, Heads] | None = None,
    ends: tuple[Heads, Heads] | None = None,
    notes: Sequence[str] = (),
) -> Any:
    """Return an Altair chart of layers × heads; heads without a value are grey.

    Args:
        values: One number per head.
        title: Above the chart.
        unit: Unit of the numbers.
        middle: Centre of a diverging scale (chance, or no effect); None gives a sequential scale.
        panels: More arrays on the same scale, one small chart each.
        ends: Both ends of each head's 95 % interval, for the tooltip; NaN where there is none.
        notes: Sentences below the title: what is shown, and from what.
    """
    import altair as alt

    arrays = {"all rows": values, **(panels or {})} if panels else {"": values}
    finite = np.concatenate([array[np.isfinite(array)] for array in arrays.values()])
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if middle is None:
        scale = alt.Scale(scheme="viridis", domain=[low, high])
    else:
        reach = max(abs(low - middle), abs(high - middle), 1e-9)
        scale = alt.Scale(scheme="purpleorange", domain=[middle - reach, middle + reach], domainMid=middle)
    heading = alt.TitleParams(title, subtitle=[*notes, *_grey(values)], anchor="start")
    charts = [_squares(array, name, unit, scale, ends if array is values else None) for name, array in arrays.items()]
    chart = charts[0].properties(title=heading) if len(charts) == 1 else alt.hconcat(*charts, title=heading)
    return chart.configure_view(stroke=None).configure_axis(grid=False)


def _grey(values: Heads) -> list[str]:
    """Return the sentence that says what grey squares are, where there are any."""
    count = int((~np.isfinite(values)).sum())
    what = "layers without softmax attention, or heads that a layer lacks"
    return [f"Grey: {count} of {values.size} places have no value ({what})."] if count else []


def _squares(array: Heads, name: str, unit: str, scale: Any, ends: tuple[Heads, Heads] | None) -> Any:
    """Return one square per head, without any configuration."""
    import altair as alt

    rows: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for layer, head in np.ndindex(array.shape):
        row: dict[str, Any] = {"layer": layer, "head": head, "id": f"L{layer}H{head}"}
        if known := bool(np.isfinite(array[layer, head])):
            row["value"] = float(array[layer, head])
        if ends is not None and known:
            row["interval"] = _interval(float(ends[0][layer, head]), float(ends[1][layer, head]))
        rows[known].append(row)
    step = 18 if max(array.shape) <= 40 else 9
    layers, heads = array.shape
    places = {
        "x": alt.X("head:O", title="head", axis=alt.Axis(labelAngle=0), scale=alt.Scale(domain=[*range(heads)])),
        "y": alt.Y("layer:O", title="layer", scale=alt.Scale(domain=[*range(layers)][::-1])),
    }
    told = [alt.Tooltip("id:N", title="head"), alt.Tooltip("value:Q", title=unit, format=".3f")]
    if ends is not None:
        told.append(alt.Tooltip("interval:N", title="95 % interval"))
    coloured = alt.Color("value:Q", title=unit, scale=scale)
    drawn = [alt.Chart(alt.Data(values=rows[True])).mark_rect().encode(**places, color=coloured, tooltip=told)]
    if rows[False]:
        missing = alt.Chart(alt.Data(values=[{**row, "why": "no value"} for row in rows[False]]))
        said = [alt.Tooltip("id:N", title="head"), alt.Tooltip("why:N", title=unit)]
        drawn.append(missing.mark_rect(color=ABSENT).encode(**places, tooltip=said))
    chart = drawn[0] if len(drawn) == 1 else alt.layer(*drawn)
    chart = chart.properties(width=step * heads, height=step * layers)
    return chart.properties(title=alt.TitleParams(name, anchor="start")) if name else chart


def _interval(low: float, high: float, digits: int = 3) -> str:
    """Return both ends of an interval in words; "unknown" where it was not measured."""
    return f"[{low:.{digits}f}, {high:.{digits}f}]" if np.isfinite([low, high]).all() else "unknown"


STATES = {"chosen": "chosen", "within": "within the guard", "beyond": "beyond the guard"}
"""What can be said of a candidate of a tuning run, and the words for it."""


def candidate_state(at: int, harm: Mapping[str, Any], *, guard: float, chosen: int | None) -> str:
    """Return which of ``STATES`` a candidate is in.

    Args:
        at: Its number.
        harm: Nats a token with their interval.
        guard: Largest harm allowed.
        chosen: Number of the candidate that was chosen, or None.
    """
    return "chosen" if at == chosen else "within" if harm["high"] <= guard else "beyond"


def frontier_chart(
    path: Sequence[Mapping[str, Any]], *, guard: float, chosen: int | None, notes: Sequence[str] = ()
) -> Any:
    """Return an Altair chart of margin gained against nats lost, with both intervals, one point per candidate.

    Args:
        path: Candidates as in ``tuning.json``.
        guard: Largest harm allowed, in nats per token; drawn as a line.
        chosen: Which candidate was chosen, or None.
        notes: Sentences below the title.
    """
    import altair as alt

    rows = []
    for point in candidate_points(path, guard=guard, chosen=chosen):
        harm: Mapping[str, Any] = point.harm
        gain: Mapping[str, Any] = point.gain
        rows.append(
            {
                "name": point.name,
                "state": STATES[point.state],
                "harm_interval": _interval(harm["low"], harm["high"], 4),
                "gain_interval": _interval(gain["low"], gain["high"]),
                **{f"harm_{end}": max(float(harm[end]), 1e-5) for end in ("value", "low", "high")},
                **{f"gain_{end}": float(gain[end]) for end in ("value", "low", "high")},
            }
        )
    x = alt.X("harm_value:Q", title="KL on neutral text (nats a token)", scale=alt.Scale(type="log"))
    y = alt.Y("gain_value:Q", title="margin gained (nats)")
    colour = alt.Color(
        "state:N",
        title=None,
        scale=alt.Scale(domain=list(STATES.values()), range=["#d55e00", "#0072b2", "#8c8c8c"]),
        legend=alt.Legend(orient="bottom", columns=1, labelLimit=300),
    )
    base = alt.Chart(alt.Data(values=rows))
    tooltip = [
        alt.Tooltip("name:N", title="candidate"),
        alt.Tooltip("harm_value:Q", title="KL on neutral text", format=".4f"),
        alt.Tooltip("harm_interval:N", title="95 % interval"),
        alt.Tooltip("gain_value:Q", title="margin gained", format=".3f"),
        alt.Tooltip("gain_interval:N", title="95 % interval "),
    ]
    points = base.mark_circle(size=90, opacity=1).encode(x=x, y=y, color=colour, tooltip=tooltip)
    up = base.mark_rule(opacity=0.5).encode(x="harm_value:Q", y="gain_low:Q", y2="gain_high:Q", color=colour)
    across = base.mark_rule(opacity=0.5).encode(x="harm_low:Q", x2="harm_high:Q", y="gain_value:Q", color=colour)
    line = alt.Chart(alt.Data(values=[{"guard": guard}])).mark_rule(strokeDash=[4, 4], color="#555").encode(x="guard:Q")
    chart = alt.layer(line, up, across, points)
    heading = alt.TitleParams("What each candidate gains and what it costs (95 % intervals)", subtitle=[*notes])
    return chart.properties(width=460, height=300, title=heading)


@dataclass(frozen=True, slots=True)
class CandidatePoint:
    """What charts show of a candidate of a tuning run.

    Attributes:
        name: The candidate's.
        state: One of ``STATES``.
        harm: Nats lost on neutral text a token, with their interval.
        gain: Nats of margin gained, with their interval.
    """

    name: str
    state: str
    harm: FigureJson
    gain: FigureJson


def candidate_points(path: Sequence[Mapping[str, Any]], *, guard: float, chosen: int | None) -> list[CandidatePoint]:
    """Return the candidates of ``tuning.json`` as points, for the Altair chart and for the report's page.

    Args:
        path: Candidates as in ``tuning.json``.
        guard: Largest harm allowed, in nats per token.
        chosen: Which candidate was chosen, or None.
    """
    points = []
    for at, entry in enumerate(path):
        harm, gain = entry["harm"]["kl"], entry["effect"]["margin"]
        points.append(CandidatePoint(entry["name"], candidate_state(at, harm, guard=guard, chosen=chosen), harm, gain))
    return points


def save_chart(chart: Any, path: Path) -> None:
    """Write a chart as one self-contained ``.html``, ``.png`` or ``.svg``.

    Raises:
        ArtifactError: Another suffix, or the file cannot be written.
    """
    check_suffix(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind == "html":
        write_text(path, chart_html(chart))
        return
    with replaced(path) as temporary:
        extra = {"scale_factor": 2} if kind == "png" else {}
        chart.save(str(temporary), format=kind, **extra)


def check_suffix(path: Path) -> None:
    """Raise ArtifactError where a chart cannot be written under this name."""
    if path.suffix.lower() not in SUFFIXES:
        raise ArtifactError(
            f"{path}: a chart cannot be written under this name",
            expected=f"a name ending in {', '.join(SUFFIXES)}",
            got=path.suffix or "no suffix",
            fix="choose one of these endings for --plot",
        )


SIDE = 320


def pair_chart(pair: Mapping[str, Any], a: Heads, b: Heads, *, unit: str, notes: Sequence[str] = ()) -> Any:
    """Return scatter, depth profile, both heat maps and their difference, as one Altair chart.

    Args:
        pair: An entry of ``comparison.json`` with its figures.
        a: Scores of its first model.
        b: Scores of its second.
        unit: Unit of the scores.
        notes: Sentences below the title.
    """
    import altair as alt

    maps = [
        heat_map(array, title=title, unit=name, middle=middle)
        for array, title, name, middle in (
            (a, f"{unit}: {pair['a']}", unit, 0.5 if unit != "mean gradient (nats)" else 0.0),
            (b, f"{unit}: {pair['b']}", unit, 0.5 if unit != "mean gradient (nats)" else 0.0),
            (b - a, f"{pair['b']} less {pair['a']}", "difference", 0.0),
        )
    ]
    for one in maps:
        one.config = alt.Undefined  # only the outermost chart may carry a configuration
        one.title = one.title.text  # what is grey is said once
    top = alt.hconcat(_scatter(pair, a, b, unit), _profile(pair, a, b, unit))
    rows = alt.hconcat(*maps).resolve_scale(color="independent")
    said = [*notes, *_grey(b - a)]
    heading = alt.TitleParams(f"{pair['a']} and {pair['b']}: {pair['verdict']}", subtitle=said, anchor="start")
    return alt.vconcat(top, rows, title=heading).configure_view(stroke=None).configure_axis(grid=False)


def scored_pairs(pairs: Sequence[P]) -> list[tuple[P, FigureJson]]:
    """Return the pairs whose scores were compared, each with its correlation within layers.

    Args:
        pairs: ``pairs`` of ``comparison.json``.
    """
    return [(pair, within) for pair in pairs if (within := pair.get("pearson_within_layer"))]


def matrix_chart(pairs: Sequence[Mapping[str, Any]], names: Sequence[str], *, notes: Sequence[str] = ()) -> Any:
    """Return the within-layer correlation of every two models as a coloured matrix with figures.

    Args:
        pairs: ``pairs`` of ``comparison.json``.
        names: Names of all models, in order.
        notes: Sentences below the title.
    """
    import altair as alt

    rows = []
    for pair, found in scored_pairs(pairs):
        words = f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
        for one, other in ((pair["a"], pair["b"]), (pair["b"], pair["a"])):
            rows.append({"a": one, "b": other, "r": found["value"], "words": words, "verdict": pair["verdict"]})
    order = list(names)
    said = [*notes, "Pairs without a square have scores of different shapes, which are not compared."]
    heading = alt.TitleParams("Within-layer correlation of scores (95 % interval)", subtitle=said, anchor="start")
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("a:N", sort=order, title=None, axis=alt.Axis(labelAngle=-30)), y=alt.Y("b:N", sort=order, title=None)
    )
    colour = alt.Color("r:Q", title="r", scale=alt.Scale(scheme="purpleorange", domain=[-1, 1], domainMid=0))
    tooltip = [alt.Tooltip(f"{name}:N") for name in ("a", "b", "words", "verdict")]
    cells = base.mark_rect().encode(color=colour, tooltip=tooltip)
    ink = alt.condition("abs(datum.r) > 0.6", alt.value("white"), alt.value("black"))  # on cells of either depth
    text = base.mark_text(fontSize=11).encode(text="words:N", color=ink)
    verdicts = base.mark_text(fontSize=11, dy=15, fontStyle="italic").encode(text="verdict:N", color=ink)
    chart = alt.layer(cells, text, verdicts).properties(width=alt.Step(140), height=alt.Step(70), title=heading)
    return chart.configure_view(stroke=None).configure_axis(grid=False)


def _scatter(pair: Mapping[str, Any], a: Heads, b: Heads, unit: str) -> Any:
    """Return one point per head, coloured by layer, with the line of equal scores."""
    import altair as alt

    known = [at for at in np.ndindex(a.shape) if np.isfinite(a[at]) and np.isfinite(b[at])]
    rows = [
        {"id": f"L{layer}H{head}", "layer": layer, "a": float(a[layer, head]), "b": float(b[layer, head])}
        for layer, head in known
    ]
    ends = [min(min(row["a"], row["b"]) for row in rows), max(max(row["a"], row["b"]) for row in rows)]
    x, y = (alt.Scale(domain=[min(r[n] for r in rows), max(r[n] for r in rows)], nice=True) for n in ("a", "b"))
    points = (
        alt.Chart(alt.Data(values=rows))
        .mark_circle(size=45, opacity=0.8)
        .encode(
            x=alt.X("a:Q", title=f"{unit}, {pair['a']}", scale=x),
            y=alt.Y("b:Q", title=f"{unit}, {pair['b']}", scale=y),
            color=alt.Color("layer:Q", scale=alt.Scale(scheme="viridis")),
            tooltip=["id:N", alt.Tooltip("a:Q", format=".3f"), alt.Tooltip("b:Q", format=".3f")],
        )
    )
    line = alt.Chart(alt.Data(values=[{"v": end} for end in ends])).mark_line(
        color="#777", strokeDash=[4, 4], clip=True
    )
    p = pair["p_permutation"]
    raw, within, ceiling = pair["pearson"], pair["pearson_within_layer"], pair["noise_ceiling_within_layer"]
    figures = [
        f"raw r {raw['value']:.3f} [{raw['low']:.3f}, {raw['high']:.3f}]",
        f"within layers {within['value']:.3f} [{within['low']:.3f}, {within['high']:.3f}], p {p:.4f}",
        f"noise ceiling within layers {ceiling:.3f}" if ceiling is not None else "no noise ceiling: no samples",
    ]
    title = alt.TitleParams("One point per head", subtitle=figures, anchor="start")
    return alt.layer(line.encode(x="v:Q", y="v:Q"), points).properties(width=SIDE, height=SIDE, title=title)


def _profile(pair: Mapping[str, Any], a: Heads, b: Heads, unit: str) -> Any:
    """Return the mean of each layer for both models."""
    import altair as alt

    rows = [
        {"layer": layer, "mean": float(np.nanmean(row)), "model": name}
        for name, array in ((pair["a"], a), (pair["b"], b))
        for layer, row in enumerate(array)
        if np.isfinite(row).any()
    ]
    colour = alt.Color(
        "model:N",
        title=None,
        scale=alt.Scale(range=["#0072b2", "#d55e00"]),
        legend=alt.Legend(labelLimit=400, orient="bottom"),
    )
    return (
        alt.Chart(alt.Data(values=rows), title=alt.TitleParams("Mean of each layer", anchor="start"))
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:Q"),
            y=alt.Y("mean:Q", title=unit, scale=alt.Scale(zero=False)),
            color=colour,
            tooltip=["model:N", "layer:Q", alt.Tooltip("mean:Q", format=".3f")],
        )
        .properties(width=SIDE, height=SIDE)
    )
