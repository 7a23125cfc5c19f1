"""Altair charts of heads: one array, two side by side, several models as a matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from truthheads.errors import ArtifactError
from truthheads.stats.figures import FigureJson
from truthheads.storage.files import replaced, write_text

P = TypeVar("P", bound=Mapping[str, Any])

SUFFIXES = (".html", ".png", ".svg")


def heat_map(
    values: Float[np.ndarray, "num_layers num_heads"],
    *,
    title: str,
    unit: str,
    middle: float | None = None,
    panels: dict[str, Float[np.ndarray, "num_layers num_heads"]] | None = None,
) -> Any:
    """Return an Altair chart of layers × heads; heads without a value stay grey.

    Args:
        values: One number per head.
        title: Above the chart.
        unit: Unit of the numbers.
        middle: Centre of a diverging scale (chance, or no effect); None gives a sequential scale.
        panels: More arrays on the same scale, one small chart each.
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
    charts = []
    for name, array in arrays.items():
        rows = [
            {"layer": layer, "head": head, "id": f"L{layer}H{head}", "value": float(array[layer, head])}
            for layer, head in np.ndindex(array.shape)
            if np.isfinite(array[layer, head])
        ]
        step = 18 if max(array.shape) <= 40 else 9
        charts.append(
            alt.Chart(alt.Data(values=rows), title=alt.TitleParams(name or title, anchor="start"))
            .mark_rect()
            .encode(
                x=alt.X("head:O", title="head", axis=alt.Axis(labelAngle=0)),
                y=alt.Y("layer:O", title="layer", sort="descending"),
                color=alt.Color("value:Q", title=unit, scale=scale),
                tooltip=[alt.Tooltip("id:N", title="head"), alt.Tooltip("value:Q", title=unit, format=".3f")],
            )
            .properties(width=step * array.shape[1], height=step * array.shape[0])
        )
    chart = charts[0] if len(charts) == 1 else alt.hconcat(*charts, title=title)
    return chart.configure_view(fill="#d9d9d9", stroke=None).configure_axis(grid=False)


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


def frontier_chart(path: Sequence[Mapping[str, Any]], *, guard: float, chosen: int | None) -> Any:
    """Return an Altair chart of margin gained against nats lost, with both intervals, one point per candidate.

    Args:
        path: Candidates as in ``tuning.json``.
        guard: Largest harm allowed, in nats per token; drawn as a line.
        chosen: Which candidate was chosen, or None.
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
                **{f"harm_{end}": max(float(harm[end]), 1e-5) for end in ("value", "low", "high")},
                **{f"gain_{end}": float(gain[end]) for end in ("value", "low", "high")},
            }
        )
    x = alt.X("harm_value:Q", title="KL on neutral text (nats a token)", scale=alt.Scale(type="log"))
    y = alt.Y("gain_value:Q", title="margin gained (nats)")
    colour = alt.Color(
        "state:N", title=None, scale=alt.Scale(domain=list(STATES.values()), range=["#d55e00", "#0072b2", "#8c8c8c"])
    )
    base = alt.Chart(alt.Data(values=rows))
    tooltip = [
        alt.Tooltip("name:N"),
        alt.Tooltip("harm_value:Q", title="harm", format=".4f"),
        alt.Tooltip("gain_value:Q", title="margin gained", format=".2f"),
    ]
    points = base.mark_circle(size=90, opacity=1).encode(x=x, y=y, color=colour, tooltip=tooltip)
    up = base.mark_rule(opacity=0.5).encode(x="harm_value:Q", y="gain_low:Q", y2="gain_high:Q", color=colour)
    across = base.mark_rule(opacity=0.5).encode(x="harm_low:Q", x2="harm_high:Q", y="gain_value:Q", color=colour)
    line = alt.Chart(alt.Data(values=[{"guard": guard}])).mark_rule(strokeDash=[4, 4], color="#555").encode(x="guard:Q")
    chart = alt.layer(line, up, across, points)
    return chart.properties(width=460, height=300, title="What a gate gains and what it costs (95 % intervals)")


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


def chart_html(chart: Any) -> str:
    """Return a chart as a page of HTML that needs no network.

    Altair writes the chart's JSON into a script as it is, so that a title with ``</script>`` would end it and begin
    one of its own; here ``<`` stands in it as an escape.
    """
    import altair as alt

    page = alt.utils.spec_to_html(
        _held(chart.to_dict()),
        mode="vega-lite",
        vega_version=alt.VEGA_VERSION,
        vegalite_version=alt.VEGALITE_VERSION,
        vegaembed_version=alt.VEGAEMBED_VERSION,
        template="inline",
    )
    return str(page).replace(HELD.encode("unicode_escape").decode(), "\\u003c").replace(HELD, "&lt;")


HELD = "\ue03c"
"""Stands for ``<`` from the chart to the page: a private character, which titles do not hold."""


def _held(value: Any) -> Any:
    if isinstance(value, dict):
        return {_held(key): _held(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_held(one) for one in value]
    return value.replace("<", HELD) if isinstance(value, str) else value


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


Heads = Float[np.ndarray, "num_layers num_heads"]

SIDE = 320


def pair_chart(pair: Mapping[str, Any], a: Heads, b: Heads, *, unit: str) -> Any:
    """Return scatter, depth profile, both heat maps and their difference, as one Altair chart.

    Args:
        pair: An entry of ``comparison.json`` with its figures.
        a: Scores of its first model.
        b: Scores of its second.
        unit: Unit of the scores.
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
    top = alt.hconcat(_scatter(pair, a, b, unit), _profile(pair, a, b, unit))
    rows = alt.hconcat(*maps).resolve_scale(color="independent")
    return (
        alt.vconcat(top, rows, title=alt.TitleParams(f"{pair['a']} and {pair['b']}: {pair['verdict']}", anchor="start"))
        .configure_view(fill="#f4f4f4", stroke=None)
        .configure_axis(grid=False)
    )


def scored_pairs(pairs: Sequence[P]) -> list[tuple[P, FigureJson]]:
    """Return the pairs whose scores were compared, each with its correlation within layers.

    Args:
        pairs: ``pairs`` of ``comparison.json``.
    """
    return [(pair, within) for pair in pairs if (within := pair.get("pearson_within_layer"))]


def matrix_chart(pairs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    """Return the within-layer correlation of every two models as a coloured matrix with figures.

    Args:
        pairs: ``pairs`` of ``comparison.json``.
        names: Names of all models, in order.
    """
    import altair as alt

    rows = []
    for pair, found in scored_pairs(pairs):
        words = f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
        for one, other in ((pair["a"], pair["b"]), (pair["b"], pair["a"])):
            rows.append({"a": one, "b": other, "r": found["value"], "words": words, "verdict": pair["verdict"]})
    order = list(names)
    base = alt.Chart(alt.Data(values=rows), title="Within-layer correlation of scores (95 % interval)").encode(
        x=alt.X("a:N", sort=order, title=None, axis=alt.Axis(labelAngle=-30)), y=alt.Y("b:N", sort=order, title=None)
    )
    colour = alt.Color("r:Q", title="r", scale=alt.Scale(scheme="purpleorange", domain=[-1, 1], domainMid=0))
    tooltip = [alt.Tooltip(f"{name}:N") for name in ("a", "b", "words", "verdict")]
    cells = base.mark_rect().encode(color=colour, tooltip=tooltip)
    text = base.mark_text(fontSize=11).encode(text="words:N")
    verdicts = base.mark_text(fontSize=11, dy=15, fontStyle="italic").encode(text="verdict:N")
    chart = alt.layer(cells, text, verdicts).properties(width=140 * len(order), height=70 * len(order))
    return chart.configure_view(fill="#f4f4f4", stroke=None).configure_axis(grid=False)


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
