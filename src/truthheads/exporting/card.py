"""The model card: what it is made from, the gate in figures, its evidence, and how to serve it."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from huggingface_hub import ModelCardData, metadata_load

from truthheads.models.sources import SMOLLM2_HUB_ID, reference, resolve
from truthheads.results.gate import Gate
from truthheads.results.head_adapter import HeadAdapter
from truthheads.storage.files import as_text, dumps

CARD = "README.md"

LICENCE = ("license", "license_name", "license_link")

PLAIN = re.compile(r"[\w .:/+()-]{1,200}")
"""What is carried over of a licence: its name or address, and no second line."""

LONGEST = 160

ADAPTER = """```python
from peft import PeftModel
{first}
model = PeftModel.from_pretrained(base, {name!r})
```

The factors are multiplied in at run time. vLLM and SGLang do not serve IA³ adapters: give them the weights with the
gate inside, from `model.merge_and_unload().save_pretrained(FOLDER)` or
`truthheads export MODEL --gate GATE --to checkpoint --out FOLDER`.
"""

TRANSFORMERS = """from transformers import {auto}

base = {auto}.from_pretrained({base})"""

FAMILY = """
import truthheads as th

base = th.load({base}).network"""

CHECKPOINT = """The {what} is inside the weights. Nothing has to be installed for it, and nothing runs slower.

```python
from transformers import {auto}

model = {auto}.from_pretrained({name!r})
```

```
vllm serve {name}
python -m sglang.launch_server --model-path {name}
```
"""

SITES = {
    "z": "what each head puts out, before the output projection (the projection's input columns)",
    "output": "one block of the output projection's output for each head (its rows and bias)",
}


class Base(NamedTuple):
    """The model that the gate was applied to.

    Attributes:
        name: As people call it: a hub id, ``smollm2:reader``, or the last part of a folder's path.
        reference: What a library loads it by: a hub id or a folder.
        on_hub: True where the reference is a hub id.
        image: True where it takes images.
        folder: Where its files are, if they are at hand.
    """

    name: str
    reference: str
    on_hub: bool
    image: bool
    folder: Path | None


def base_of(name: str, folder: Path | None, image: bool) -> Base:
    """Return the model of an export by its name; what an adapter is to name is never a folder of the cache.

    Args:
        name: As for ``load``.
        folder: Where its files are, if they are at hand.
        image: True where it takes images.
    """
    base = reference(name)
    if base == SMOLLM2_HUB_ID or not Path(resolve(name)).is_dir():
        return Base(base, base, True, image, folder)
    path = Path(base)
    return Base(path.name if path.exists() else base, base, False, image, folder)


def write_card(
    folder: Path, remedy: Gate | HeadAdapter, base: Base, *, to: Literal["adapter", "checkpoint"], name: str
) -> None:
    """Write ``README.md``.

    Args:
        folder: Where to.
        remedy: The gate, or the adapter that is inside the weights.
        base: The model without it.
        to: What was exported.
        name: What the export will be called: its folder, or its repository on the hub.
    """
    auto = "AutoModelForImageTextToText" if base.image else "AutoModelForCausalLM"
    name, what = as_text(name), "gate" if isinstance(remedy, Gate) else "adapter"
    # A folder on somebody's disk means nothing to a reader of the card, and may say what is not meant to be said.
    shown = as_text(base.reference if base.on_hub else base.name)
    load = f'"FOLDER", gguf_file={shown!r}' if shown.endswith(".gguf") else repr(shown)
    first = (FAMILY if ":" in shown else TRANSFORMERS).format(auto=auto, base=load)
    serving = (ADAPTER if to == "adapter" else CHECKPOINT).format(auto=auto, name=name, first=first, what=what)
    parts = [
        f"---\n{_front(base, to).to_yaml()}\n---\n",
        f"# {plain(Path(name).name)}\n",
        f"{plain(base.name)} with {_said(remedy)} Such a change is meant to keep a model with the context that it is "
        "given; what was measured of this one stands under Evidence. Made with truthheads; nothing else was changed.\n",
        "## How to run it\n",
        serving,
        *(_gate(remedy) if isinstance(remedy, Gate) else _adapter(remedy)),
    ]
    settings = list(_flat({key: value for key, value in remedy.meta.items() if key != "evidence"}))
    if settings:
        parts += ["How it was made:\n", _table(("setting", "value"), settings)]
    parts += ["## Evidence\n", _evidence(remedy.meta.get("evidence"), what)]
    (folder / CARD).write_text(as_text("\n".join(parts)), encoding="utf-8")


def _said(remedy: Gate | HeadAdapter) -> str:
    if isinstance(remedy, Gate):
        return f"a gate on its attention heads: {remedy.describe()['moved']} of its heads are made louder or softer."
    if not remedy.heads:
        return f"a LoRA of rank {remedy.rank} in {len(remedy.updates)} of its modules."
    return f"an update of rank {remedy.rank} of the queries and outputs of {len(remedy.heads)} of its attention heads."


def _gate(gate: Gate) -> list[str]:
    figures = [(key.replace("_", " "), _text(value)) for key, value in gate.describe().items()]
    parts = ["## The gate\n", f"Scales {SITES[gate.site]}.\n", _table(("", ""), figures)]
    if gate.moved:
        rows = [(row["head"], f"{row['factor']:.4f}") for row in gate.table()]
        parts += ["Farthest from 1:\n", _table(("head", "factor"), rows)]
    return parts


def _adapter(adapter: HeadAdapter) -> list[str]:
    figures = [(key.replace("_", " "), _text(value)) for key, value in adapter.describe().items() if key != "base"]
    rows = [tuple(map(_text, row.values())) for row in adapter.table(10)]
    named = tuple(adapter.table(1)[0])
    return ["## The adapter\n", _table(("", ""), figures), "Largest updates:\n", _table(named, rows)]


def _front(base: Base, to: str) -> ModelCardData:
    kept: dict[str, Any] = {}
    source = None if base.folder is None else base.folder / CARD
    if source is not None and source.is_file():
        try:
            theirs = metadata_load(source) or {}
        except Exception:  # somebody else's card, in whatever state: its licence is worth a try, not a failure
            theirs = {}
        kept = {key: theirs[key] for key in LICENCE if PLAIN.fullmatch(str(theirs.get(key, "")))}
    return ModelCardData(
        base_model=base.reference if base.on_hub else None,
        library_name="peft" if to == "adapter" else "transformers",
        pipeline_tag="image-text-to-text" if base.image else "text-generation",
        tags=["truthheads", "attention-heads", *(["ia3"] if to == "adapter" else [])],
        **kept,
    )


def _evidence(found: Any, what: str) -> str:
    if not isinstance(found, Mapping) or not found:
        return f"None was measured with this {what}. Test it on your own questions before you rely on it.\n"
    rows = [(str(name), _figure(value)) for name, value in found.items()]
    return _table(("measure", "value [95 % interval]"), rows)


def _figure(value: Any) -> str:
    if not isinstance(value, Mapping) or "value" not in value:
        return _text(value)
    middle, low, high = (value.get(key) for key in ("value", "low", "high"))
    return _text(middle) if low is None or high is None else f"{_text(middle)} [{_text(low)}, {_text(high)}]"


def _flat(value: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{before}{key}"
        if isinstance(item, Mapping):
            rows += _flat(item, f"{name}.")
        elif item is not None:
            rows.append((name, _text(item)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "not measured" if value != value else f"{value:.4g}"
    text = as_text(value) if isinstance(value, str) else "–" if value is None else dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = [head, tuple("---" for _ in head), *(tuple(map(plain, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


def plain(text: str) -> str:
    """Escape text from outside as one line of plain Markdown: without tags, links or table columns."""
    return re.sub(r"[\\`|]|(?<=\])\(", r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))
