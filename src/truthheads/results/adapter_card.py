"""The model card of a head adapter: what it is made from, how to run it, and what was measured of it."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from truthheads.models.sources import LONGEST
from truthheads.storage.files import as_text, dumps

CARD = "README.md"

HUB = re.compile(r"[\w.-]+/[\w.-]+")

LONGEST_CELL = 160

PEFT = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({load})
model = PeftModel.from_pretrained(base, "FOLDER")  # this folder
```

`vllm serve {base} --enable-lora --lora-modules grounded=FOLDER` serves it; with this package,
`truthheads export {base} --adapter FOLDER --to checkpoint --out merged` writes a model that needs no adapter.
"""

OWN = """```python
import truthheads as th

model = th.load({base!r})
with th.adapted(model, th.HeadAdapter.load("FOLDER")):  # this folder
    ...
```
"""


def adapter_card(
    base: str, figures: Mapping[str, object], table: Sequence[Mapping[str, object]], meta: Mapping[str, Any]
) -> str:
    """Return the text of ``README.md``.

    Args:
        base: What the adapter belongs to, as its settings name it.
        figures: The adapter in figures.
        table: Its heads, or its modules.
        meta: Where it came from; ``evidence`` holds what was measured.
    """
    path = Path(base)
    there = len(base) <= LONGEST and path.exists()
    named = path.name if there else base  # a path on somebody's disk means nothing to a reader
    on_hub = not there and HUB.fullmatch(base) is not None
    load = f'"FOLDER", gguf_file="{named}"' if named.endswith(".gguf") else repr(named)
    front = ModelCardData(
        base_model=base if on_hub else None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["truthheads", "attention-heads", "lora"],
    )
    rows = [(key.replace("_", " "), named if key == "base" else _text(value)) for key, value in figures.items()]
    parts = [
        f"---\n{front.to_yaml()}\n---\n",
        f"# An adapter for {_plain(named)}\n",
        "A low-rank update (LoRA) of the query rows and output columns of chosen attention heads. It is meant to keep "
        "the model with the context that it is given; what was measured of it stands under Evidence. Made with "
        "truthheads.\n",
        "## How to run it\n",
        OWN.format(base=named) if ":" in named else PEFT.format(load=load, base=named),
        "## The adapter\n",
        _table(("", ""), rows),
        "Largest updates:\n",
        _table(tuple(table[0]), [tuple(map(_text, row.values())) for row in table[:10]]) if table else "",
        "## Evidence\n",
        _evidence(meta.get("evidence")),
    ]
    return as_text("\n".join(parts))


def _evidence(found: object) -> str:
    if not isinstance(found, Mapping) or not found:
        return "None was measured with this adapter. Test it on your own questions before you rely on it.\n"
    return _table(("measure", "value [95 % interval]"), [(str(name), _figure(value)) for name, value in found.items()])


def _figure(value: object) -> str:
    if not isinstance(value, Mapping) or "value" not in value:
        return _text(value)
    middle, low, high = (value.get(key) for key in ("value", "low", "high"))
    return _text(middle) if low is None or high is None else f"{_text(middle)} [{_text(low)}, {_text(high)}]"


def _text(value: object) -> str:
    if isinstance(value, float):
        return "not measured" if value != value else f"{value:.4g}"
    text = as_text(value) if isinstance(value, str) else dumps(value)
    return text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL]} …"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *(tuple(map(_plain, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _plain(text: str) -> str:
    """Escape text from outside as one line of plain Markdown: without tags, links or table columns."""
    return re.sub(r"[\\`|]|(?<=\])\(", r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))
