"""From a folder of artefacts to one self-contained HTML page."""

import base64
import hashlib
import re
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from truthheads.errors import TruthHeadsError
from truthheads.reporting.artifacts import Artefacts, find, nothing_found
from truthheads.reporting.sections import sections
from truthheads.reporting.sentences import grounded, summary
from truthheads.reporting.wording import counted, short_name
from truthheads.storage.files import as_path, check_target, dumps, write_text


class Report(NamedTuple):
    """A page that was written.

    Attributes:
        out: Where.
        summary: Its five sentences.
        warnings: What was left out, and why.
        artefacts: How many of each kind were found.
        size: Bytes of the page.
    """

    out: Path
    summary: list[str]
    warnings: list[str]
    artefacts: dict[str, int]
    size: int


def report(folder: str | Path, out: str | Path = "report.html") -> Path:
    """Write one HTML page of all artefacts in a folder; it needs no network and no other file.

    Args:
        folder: Where ``score``, ``compare``, ``trace``, ``gate``, ``tune`` and ``evaluate`` wrote; folders in it are
            searched, too, and files that are not ours are ignored.
        out: The page. The same artefacts give the same bytes.

    Returns:
        The page's path.

    Raises:
        ArtifactError: The folder holds nothing that can be shown, or the page cannot be written.
    """
    return write_report(folder, out).out


def write_report(folder: str | Path, out: str | Path) -> Report:
    """Write the page as :func:`report` does, and return what is in it."""
    folder, out = as_path(folder), as_path(out)
    check_target(out)
    found = usable(find(folder))
    page, sentences, warnings = render(found)
    write_text(out, page)
    kinds = [kind for kind, _ in found.every]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return Report(out, sentences, warnings, counts, len(page.encode()))


def render(found: Artefacts) -> tuple[str, list[str], list[str]]:
    """Return the page, its five sentences, and warnings; every text from outside is escaped.

    Args:
        found: What the page shows.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    parts, data, more = sections(found)
    sentences, warnings = summary(found), [*found.warnings, *more]
    loader = PackageLoader("truthheads.reporting")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["head"] = lambda value: re.fullmatch(r"L\d+H\d+", str(value)) is not None
    script = "".join(_own(environment, name) for name in ("report-draw.js", "report.js"))
    context: dict[str, Any] = {
        "title": _title(found),
        "version": metadata.version("truthheads"),
        "style": Markup(_own(environment, "report.css")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "data": Markup(_inside_script(dumps(data.json()))),
        "summary": sentences,
        "warnings": [*map(grounded, found.groundings), *warnings],
        "sections": parts,
        "has_heads": bool(data.maps),
        "files": counted(sum(1 for _ in found.every), "file"),
    }
    return environment.get_template("report.html").render(context).lstrip(), sentences, warnings


def usable(found: Artefacts) -> Artefacts:
    """Return the artefacts that can be shown, each tried by itself; the others are named in the warnings.

    Raises:
        ArtifactError: None can be shown.
    """
    kept = Artefacts(warnings=list(found.warnings))
    for kind, one in found.every:
        alone = Artefacts()
        alone.of(kind).append(one)
        try:
            sections(alone)
            summary(alone)
        except (
            TruthHeadsError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            kept.warnings.append(f"{one.path} was left out: it is damaged ({type(error).__name__}: {error})")
        else:
            kept.of(kind).append(one)
    if not any(kept.every):
        raise nothing_found("; ".join(kept.warnings))
    return kept


def _title(found: Artefacts) -> str:
    """Return a title with the models that the page is about."""
    metas = [one.item.meta for one in found.scores] + [one.item.meta for one in found.traces]
    named = [(meta.get("model") or {}).get("name") for meta in metas]
    names = list(dict.fromkeys(short_name(str(name)) for name in named if name))
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"Truthful heads: {shown}" if shown else "Truthful heads"


def _own(environment: Any, name: str) -> str:
    """Read a template file of this package."""
    return str(environment.loader.get_source(environment, name)[0])


def _inside_script(json: str) -> str:
    """Return JSON that cannot end the script element it stands in, nor begin a comment there."""
    return json.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
