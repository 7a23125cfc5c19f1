"""The page of HTML around a chart: its title and notes in words, for wide screens, phones and dark rooms."""

import hashlib
import json
from html import escape
from typing import Any

import vl_convert

STYLE = """
.truthheads-plot { font: 15px/1.5 system-ui, sans-serif; --ink: #1b1f24; --paper: #fff; color: var(--ink);
  background: var(--paper); padding: 1rem clamp(.6rem, 3vw, 2rem); }
.truthheads-plot h1 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .4rem; overflow-wrap: anywhere; }
.truthheads-plot p { margin: 0 0 .3rem; max-width: 46rem; overflow-wrap: anywhere; }
.truthheads-plot .chart { overflow-x: auto; margin-top: .8rem; }
body:has(> .truthheads-plot) { margin: 0; }
@media (prefers-color-scheme: dark) {
  .truthheads-plot { --ink: #e6e8eb; --paper: #14171a; }
  body:has(> .truthheads-plot) { background: #14171a; color-scheme: dark; }
}
"""

INK = "#c9ced4"

DARK = {
    "background": None,
    "axis": {"grid": False, "labelColor": INK, "titleColor": INK, "domainColor": INK, "tickColor": INK},
    "title": {"color": INK, "subtitleColor": INK},
    "legend": {"labelColor": INK, "titleColor": INK},
    "view": {"stroke": None},
}
"""Vega's configuration in a dark room; light is its default."""

SCRIPT = """
(function () {
  const spec = %(spec)s, dark = %(dark)s;
  const box = document.getElementById("%(at)s"), night = matchMedia("(prefers-color-scheme: dark)");
  const fit = (part, room) => {
    const made = { ...part };
    if (made.hconcat && room < 560) { made.vconcat = made.hconcat; delete made.hconcat; }
    for (const side of ["hconcat", "vconcat"]) if (made[side]) made[side] = made[side].map((one) => fit(one, room));
    if (typeof made.width === "number" && made.width > room) made.width = room;
    return made;
  };
  const draw = () => {
    const made = fit(spec, Math.max(220, box.clientWidth - 150));
    if (night.matches) made.config = { ...made.config, ...dark };
    vegaEmbed(box, made, { renderer: "svg" }).catch((error) => { box.textContent = error.message; });
  };
  draw();
  night.addEventListener("change", draw);
})();
"""
"""Charts side by side come below each other on a narrow screen, and what is wider than the screen is drawn narrower."""


def chart_html(chart: Any) -> str:
    """Return an Altair chart as a page of HTML that needs no network.

    The chart's title and subtitle become the page's heading and its notes, which wrap where a chart's would be cut off.
    Whatever the chart says stands in a script as JSON in which ``<`` is escaped, so that a title with ``</script>``
    neither ends it nor begins one of its own.
    """
    spec = chart.to_dict()
    told = spec.pop("title", "")
    title, notes = (told.get("text", ""), told.get("subtitle", [])) if isinstance(told, dict) else (told, [])
    spec["description"] = title
    text = _script(spec)
    at = f"chart-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    bundle: Any = vl_convert.javascript_bundle  # its types ask for a snippet, which is for scripts of one's own
    body = "".join(f"<p>{escape(note)}</p>\n" for note in ([notes] if isinstance(notes, str) else notes))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
        f"<script>{bundle()}</script>\n</head>\n"
        f'<body>\n<main class="truthheads-plot">\n<h1>{escape(title)}</h1>\n{body}'
        f'<div class="chart"><div id="{at}"></div></div>\n</main>\n'
        f"<script>{SCRIPT % {'spec': text, 'dark': json.dumps(DARK), 'at': at}}</script>\n</body>\n</html>\n"
    )


def _script(value: Any) -> str:
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
