"""``truthheads cache``: what was converted or put together once and is kept, and how to get rid of it."""

import datetime
from typing import Annotated

import typer
from rich.markup import escape

from truthheads.cli import console
from truthheads.cli.console import guarded
from truthheads.cli.help import RUN
from truthheads.cli.options import IdleSeed, Json
from truthheads.errors import ModelError
from truthheads.storage import cache
from truthheads.storage.cache import GIGABYTE, CacheEntry
from truthheads.storage.files import dumps

COLUMNS = ["name", "what it is", "made from", "size", "last used"]


@guarded
def list_cache(seed: IdleSeed = None, json: Json = False) -> None:
    """Show what is kept, how large it is and when it was last used."""
    kept, folder, most = cache.entries(), cache.cache_dir(), cache.limit()
    total = sum(entry.size for entry in kept)
    if json:
        held = [{**entry._asdict(), "path": str(entry.path), "name": entry.name} for entry in kept]
        typer.echo(dumps({"folder": str(folder), "limit": most, "size": total, "entries": held}))
        return
    console.out.print(f"{escape(str(folder))}: {_size(total)} of at most {_size(most)}")
    if kept:
        rows = [[one.name, one.kind, one.made_from or "–", _size(one.size), _day(one)] for one in kept]
        console.out.print(console.grid("", COLUMNS, rows))


@guarded
def clear(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help="Names of `cache list`, their beginnings, or the file it was made from."
        ),
    ] = None,
    unused_for: Annotated[
        float | None,
        typer.Option(
            "--unused-for",
            metavar="DAYS",
            min=0,
            rich_help_panel=RUN,
            help="Entries unused for so many days or longer.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", rich_help_panel=RUN, help="All entries.")] = False,
    seed: IdleSeed = None,
    json: Json = False,
) -> None:
    """Remove what is kept; it is made again when it is needed."""
    kept = cache.entries()
    named = {name: [entry for entry in kept if _is_called(entry, name)] for name in names or ()}
    strange = [name for name, found in named.items() if not found]
    if strange:
        raise ModelError(
            "the cache has nothing of this name",
            expected=f"one of its {len(kept)} names" if kept else "nothing: the cache is empty",
            got=", ".join(strange),
            fix="see `truthheads cache list`",
        )
    if not names and unused_for is None and not everything:
        raise ModelError(
            "nothing to remove is named",
            expected="names, --unused-for DAYS or --all",
            got="none of them",
            fix="see `truthheads cache list`",
        )
    old = cache.unused_for(unused_for) if unused_for is not None else []
    chosen = (
        kept if everything else [one for one in kept if one in old or any(one in found for found in named.values())]
    )
    freed = cache.remove(chosen)
    if json:
        typer.echo(dumps({"removed": [entry.name for entry in chosen], "freed": freed}))
        return
    console.out.print(f"removed: {len(chosen)} of {len(kept)}, {_size(freed)}")


def _is_called(entry: CacheEntry, name: str) -> bool:
    return bool(name.rstrip("…")) and (entry.name.startswith(name.rstrip("…")) or entry.made_from == name)


def _size(count: int) -> str:
    return f"{count / GIGABYTE:.2f} GB" if count >= GIGABYTE / 100 else f"{count / 10**6:.1f} MB"


def _day(entry: CacheEntry) -> str:
    return datetime.datetime.fromtimestamp(entry.used, datetime.UTC).date().isoformat()
