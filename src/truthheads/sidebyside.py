"""Charts of two arrays of heads side by side, and of several models as a matrix, with Altair."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from truthheads.plots import heat_map

Heads = Float[np.ndarray, "num_layers num_heads"]
SIDE = 320


def pair_chart(pair: Mapping[str, Any], a: Heads, b: Heads, *, unit: str) -> Any:
    """Return scatter, depth profile, both heat maps and their difference, as one Altair chart.

    Args:
        pair: An entry of ``comparison.json`` with its figures.
        a: Scores of its first model.
        b: Scores of its second.
        unit: Of the scores.
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


def matrix_chart(pairs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    """Return the within-layer correlation of every two models as a coloured matrix with figures.

    Args:
        pairs: ``pairs`` of ``comparison.json``.
        names: Of all models, in order.
    """
    import altair as alt

    rows = []
    for pair in pairs:
        found = pair["pearson_within_layer"]
        if found is None:
            continue
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
