"""``score`` end to end against the released procedure on the same model and data."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.forward import fresh_score
from bench.inputs import embedded, nqswap, smollm2
from bench.timing import Outcome, Took, timed
from truthheads.data.answers import list_answers
from truthheads.data.questions import Question
from truthheads.models.hooks import intercepted
from truthheads.models.load import Model
from truthheads.models.prompts import prompt_of
from truthheads.scoring.probes import paper_folds, paper_probe

NAME = "score-vs-released"


def run(*, quick: bool) -> list[Outcome]:
    """Measure on NQ-Swap, or on generated rows where its file is not there.

    ``score`` runs before, amid and after the released procedure, which is too slow to be run more than once.
    """
    rows = 10 if quick else 100
    long = nqswap(rows)
    questions = embedded(rows) if long is None else long
    data = "embedded" if long is None else "nqswap"
    fast, full = smollm2(), smollm2("fp32")
    middle = len(questions) // 2
    slow = Released(full)
    scored = [timed(lambda: fresh_score(fast, questions))]
    costs = [timed(lambda: slow.read(questions[:middle]))]
    scored.append(timed(lambda: fresh_score(fast, questions)))
    costs += [timed(lambda: slow.read(questions[middle:])), timed(lambda: slow.fit(questions))]
    scored.append(timed(lambda: fresh_score(fast, questions)))
    whole = Took(sum(cost.wall for cost in costs), sum(cost.cpu for cost in costs))
    headless = whole.wall - slow.head_seconds
    detail = {
        "score_seconds": [cost.wall for cost in scored],
        "score_dtype": str(fast.dtype).removeprefix("torch."),
        "released_seconds": whole.wall,
        "released_parts": {
            "forward": costs[0].wall + costs[1].wall - slow.head_seconds,
            "language-model head": slow.head_seconds,
            "AdamW probes": costs[2].wall,
        },
        "ratio_without_language_model_head": headless / sorted(cost.wall for cost in scored)[1],
    }
    ratios = [whole.wall / cost.wall for cost in scored]
    cpu = [whole.cpu / cost.cpu for cost in scored]
    return [Outcome(f"{NAME} ({data})", ratios, ">= 10", f"{len(questions)} rows", cpu_ratios=cpu, detail=detail)]


class Released:
    """The paper's procedure: one text after the other through the whole causal model, then AdamW on all heads at once.

    Nothing is shared between the answers of a question. The language-model head runs because stock transformers runs
    it when a causal model is called; its seconds are counted apart.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.rows: list[Tensor] = []
        self.head_seconds = 0.0

    def read(self, questions: Sequence[Question]) -> None:
        """Keep z of the last token of every answer."""
        model = self.model
        captured: dict[int, Tensor] = {}

        def capture(layer: int, z: Tensor) -> None:
            captured[layer] = z[0, -1].float().cpu()

        with torch.inference_mode(), intercepted(model, capture):
            for question in questions:
                for answer in question.answers:
                    text = f"{prompt_of(question)} {answer.text.strip()}"
                    inputs: Any = model.tokenizer(text, return_tensors="pt").to(model.device)
                    hidden = model.network.base_model(**inputs, use_cache=False).last_hidden_state
                    start = time.perf_counter()
                    model.network.get_output_embeddings()(hidden)
                    self.head_seconds += time.perf_counter() - start
                    self.rows.append(torch.cat([captured[head.index] for head in model.layout.layers]))

    def fit(self, questions: Sequence[Question]) -> None:
        """Fit the probes of all heads on the released folds."""
        z = torch.stack(self.rows, 1)
        label = torch.from_numpy(list_answers(questions).label).float()
        paper_probe(z, label, torch.from_numpy(paper_folds(len(label))))
