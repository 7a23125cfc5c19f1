"""The model card: what it is made from, the gate in figures, its evidence, and how to serve it."""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from huggingface_hub import ModelCardData, metadata_load

from truthheads.results.gate import Gate
from truthheads.storage.files import as_text, dumps

CARD = "README.md"

LICENCE = ("license", "license_name", "license_link")

PLAIN = re.compile(r"[\w .:/+()-]{1,200}")
"""What is carried over of a licence: its name or address, and no second line."""

LONGEST = 160

ADAPTER = """```python
from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, {name!r})
```

The factors are multiplied in at run time. vLLM and SGLang do not serve IA³ adapters: give them the weights with the
gate inside, from `model.merge_and_unload().save_pretrained(FOLDER)` or
`truthheads export MODEL --gate GATE --to checkpoint --out FOLDER`.
"""

CHECKPOINT = """The gate is inside the weights. Nothing has to be installed for it, and nothing runs slower.

```python
from transformers import {auto}

model = {auto}.from_pretrained({name!r})
```

```
vllm serve {name}
python -m sglang.launch_server --model-path {name}
```
"""

DEQUANTISED = """It was made on the weights of the GGUF file {file}, dequantised. These are not the weights that the
file was quantised from: on those a gate acts a little differently, so test it there before you rely on it.
"""

SITES = {
    "z": "what each head puts out, before the output projection (the projection's input columns)",
    "output": "one block of the output projection's output for each head (its rows and bias)",
}


class Base(NamedTuple):
    """The model that the gate was applied to.

    Attributes:
        name: As people call it: a hub id, ``smollm2:reader``, or the last part of the path of a folder or GGUF file.
        reference: What a library loads it by: a hub id, or that last part.
        on_hub: True where the reference is a hub id, and names the very weights that the gate was made on.
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


def write_card(folder: Path, gate: Gate, base: Base, *, to: Literal["adapter", "checkpoint"], name: str) -> None:
    """Write ``README.md``.

    Args:
        folder: Where to.
        gate: The gate.
        base: The model without it.
        to: What was exported.
        name: What the export will be called: its folder, or its repository on the hub.
    """
    auto = "AutoModelForImageTextToText" if base.image else "AutoModelForCausalLM"
    name = as_text(name)
    # A folder on somebody's disk means nothing to a reader of the card, and may say what is not meant to be said.
    serving = (ADAPTER if to == "adapter" else CHECKPOINT).format(auto=auto, name=name, base=as_text(base.reference))
    figures = gate.describe()
    parts = [
        f"---\n{_front(base, to).to_yaml()}\n---\n",
        f"# {plain(Path(name).name)}\n",
        f"{plain(base.name)} with a gate on its attention heads: {figures['moved']} of its heads are made louder or "
        "softer. Such gates are meant to keep a model with the context that it is given; what was measured of this one "
        "stands under Evidence. Made with truthheads; nothing else was changed.\n",
        *([] if base.gguf is None else [DEQUANTISED.format(file=plain(base.gguf))]),
        "## How to run it\n",
        serving,
        "## The gate\n",
        f"Scales {SITES[gate.site]}.\n",
        _table(("", ""), [(key.replace("_", " "), _text(value)) for key, value in figures.items()]),
    ]
    if gate.moved:
        rows = [(row["head"], f"{row['factor']:.4f}") for row in gate.table()]
        parts += ["Farthest from 1:\n", _table(("head", "factor"), rows)]
    settings = list(_flat({key: value for key, value in gate.meta.items() if key != "evidence"}))
    if settings:
        parts += ["How it was made:\n", _table(("setting", "value"), settings)]
    parts += ["## Evidence\n", _evidence(gate.meta.get("evidence"))]
    (folder / CARD).write_text(as_text("\n".join(parts)), encoding="utf-8")


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


def _evidence(found: Any) -> str:
    if not isinstance(found, Mapping) or not found:
        return "None was measured with this gate. Test it on your own questions before you rely on it.\n"
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


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    cells = [head, ("---", "---"), *((plain(left), plain(right)) for left, right in rows)]
    return "\n".join(f"| {left} | {right} |" for left, right in cells) + "\n"


def plain(text: str) -> str:
    """Escape text from outside as one line of plain Markdown: without tags, links or table columns."""
    return re.sub(r"[\\`|]|(?<=\])\(", r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))
