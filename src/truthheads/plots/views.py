"""How a result shows itself: one line at the prompt, a table in a notebook, a pandas DataFrame on demand."""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from truthheads.errors import TruthHeadsError

SHOWN_ROWS = 20
"""Rows of a table in a notebook, at most."""


class Shown:
    """A result that prints as one line: its class, and what its method ``in_short`` says."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_short()})"

    def in_short(self) -> str:
        """Return the few words that tell this result from another."""
        raise NotImplementedError


def data_frame(rows: Iterable[Mapping[str, object]]) -> Any:
    """Make a pandas DataFrame of rows; a figure with an interval becomes three columns, ``x``, ``x_low``, ``x_high``.

    Raises:
        TruthHeadsError: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise TruthHeadsError(
            "there is no pandas to make a table with",
            expected="the package pandas",
            got="it is not installed",
            fix="pip install pandas, or use table(), which returns the rows as a list",
        ) from error
    return pandas.DataFrame([_flat(row) for row in rows])


def head_place(layer: int, head: int) -> dict[str, object]:
    """Return the first columns of a table of heads: the name ``L12H7``, the layer, and the head in its layer."""
    return {"head": f"L{layer}H{head}", "layer": layer, "head_index": head}


def table_html(title: str, rows: Sequence[Mapping[str, object]]) -> str:
    """Return a small HTML table for a notebook: a title, and the first rows; all text is escaped."""
    flat = [_flat(row) for row in rows[:SHOWN_ROWS]]
    names = list(dict.fromkeys(name for row in flat for name in row))
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{_cell(row.get(name))}</td>" for name in names) + "</tr>" for row in flat)
    more = f"<p>{len(rows) - SHOWN_ROWS} more rows</p>" if len(rows) > SHOWN_ROWS else ""
    return (
        f"<div><p>{escape(title)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}</div>"
        if rows
        else f"<div><p>{escape(title)}</p></div>"
    )


def _cell(value: object) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _flat(row: Mapping[str, object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in row.items():
        if isinstance(value, Mapping) and {"value", "low", "high"} <= set(value):
            found |= {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
        else:
            found[name] = value
    return found
