"""How numbers are written on the page."""

from collections.abc import Sequence

from truthheads.stats.figures import FigureJson

MINUS = "\u2212"


def number(value: float | int | None, digits: int = 3) -> str:
    """Return a number with a true minus sign, or a dash where nothing was measured."""
    if value is None or value != value:
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text.lstrip("-")


def figure(found: FigureJson | None, digits: int = 3) -> str:
    """Return a figure with its 95 % interval, or a dash."""
    if not found or found.get("value") is None:
        return "–"
    low, high = found.get("low"), found.get("high")
    interval = "" if low is None or high is None else f" [{number(low, digits)}, {number(high, digits)}]"
    return number(found["value"], digits) + interval


def signed(found: FigureJson | None, digits: int = 3) -> str:
    """Return a difference with its sign and interval, or a dash."""
    text = figure(found, digits)
    return f"+{text}" if found and (found.get("value") or 0) > 0 and text[0].isdigit() else text


def chance(p: float | int | None) -> str:
    """Return a p value; below 0.001 as such."""
    if p is None:
        return "–"
    return "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.3f}"


def listed(names: Sequence[str], *, most: int = 4) -> str:
    """Return names as a list in words; beyond ``most`` the rest is counted."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def counted(count: int, name: str) -> str:
    """Return a number with its noun: ``1 head``, ``3 heads``."""
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def short_name(name: str) -> str:
    """Return the last part of what is a path; a hub id such as ``owner/name`` stays whole."""
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    local = len(parts) > 2 or name[:1] in ("/", ".", "~") or "\\" in name
    return parts[-1] if local and parts else name
