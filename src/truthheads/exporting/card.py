"""The model card: what it is made from, the gate in figures, its evidence, and how to serve it."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from huggingface_hub import ModelCardData, metadata_load

from truthheads.models.sources import cached_id, gguf_path, reference, resolve
from truthheads.results.adapter_card import DEQUANTISED
from truthheads.results.gate import Gate
from truthheads.results.head_adapter import HeadAdapter
from truthheads.storage.files import as_path, as_text, dumps

CARD = "README.md"

LICENCE = ("license", "license_name", "license_link")

PLAIN = re.compile(r"[\w .:/+()-]{1,200}")
"""What is carried over of a licence: its name or address, and no second line."""

LONGEST = 160

ADAPTER = """```python
from peft import PeftModel
{load}
model = PeftModel.from_pretrained(base, {name!r})
```

The factors are multiplied in at run time. vLLM and SGLang do not serve IA³ adapters: give them the weights with the
gate inside, from `model.merge_and_unload().save_pretrained(FOLDER)` or
`truthheads export MODEL --gate GATE --to checkpoint --out FOLDER`.
"""

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
    """The model that the gate or adapter was applied to.

    Attributes:
        name: As people call it: a hub id, ``smollm2:reader``, or the last part of the path of a folder or GGUF file.
        reference: What a library loads it by: a hub id, or that last part.
        on_hub: True where the reference is a hub id, and names the very weights that it was made on.
        image: True where it takes images.
        folder: Where its files are, if they are at hand.
        gguf: The file whose weights were dequantised for it, or None.
    """

    name: str
    reference: str
    on_hub: bool
    image: bool
    folder: Path | None
    gguf: str | None = None


def base_of(name: str, folder: Path | None, image: bool) -> Base:
    """Name the model of an export as a card does: with nothing of where it lies on this machine.

    Args:
        name: As for ``load``.
        folder: Where its files are, if they are at hand.
        image: True where it takes images.
    """
    found, file = reference(name), gguf_path(name)
    if file is not None:  # its folder is a conversion in this machine's cache
        called = f"{found} ({file.name})" if name == "smollm2" else found
        return Base(called, found, False, image, folder, file.name)
    on_hub = not Path(resolve(name)).is_dir() or cached_id(as_path(name)) is not None
    return Base(found, found, on_hub, image, folder)


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
    name = as_text(name)
    article, what = ("a", "gate") if isinstance(remedy, Gate) else ("an", "adapter")
    # A folder on somebody's disk means nothing to a reader of the card, and may say what is not meant to be said.
    serving = (ADAPTER if to == "adapter" else CHECKPOINT).format(
        auto=auto, name=name, load=_loading(base, auto), what=what
    )
    parts = [
        f"---\n{_front(base, to).to_yaml()}\n---\n",
        f"# {plain(Path(name).name)}\n",
        f"{plain(base.name)} with {_said(remedy)} Such a change is meant to keep a model with the context that it is "
        "given; what was measured of this one stands under Evidence. Made with truthheads; nothing else was changed.\n",
        *([] if base.gguf is None else [DEQUANTISED.format(file=plain(base.gguf), what=f"{article} {what}")]),
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


def _loading(base: Base, auto: str) -> str:
    """Return the lines that load the base, as anybody can who has its file."""
    name = as_text(base.reference)
    if ":" in name:  # a model of a package that truthheads finds it by
        return f"import truthheads\n\nbase = truthheads.load({name!r}).network"
    asked = f'".", gguf_file={name!r}' if name.endswith(".gguf") else repr(name)
    return f"from transformers import {auto}\n\nbase = {auto}.from_pretrained({asked})"


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
