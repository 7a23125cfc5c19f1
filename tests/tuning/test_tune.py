"""Learned and searched gates: they find the planted head, keep the guard, and claim nothing where nothing is."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from planted import PLANTED_HEAD, planted_model, planted_questions
from truthheads.errors import DataError, GateError, ShapeError, TruthHeadsError
from truthheads.models.answer_logprobs import pair_effects, pair_figures, pair_logprobs, right_pairs
from truthheads.models.neutral_text import (
    LENGTH,
    NeutralTexts,
    divergence,
    measure_harm,
    neutral_ids,
    own_text,
    read_neutral,
)
from truthheads.models.prompts import encode, prompt_of
from truthheads.results.gate import Gate, gated
from truthheads.results.tuning import Tuning
from truthheads.scoring.score import score
from truthheads.stats.figures import Figure
from truthheads.storage.kept_results import JOURNAL
from truthheads.tuning import learn as learning
from truthheads.tuning.adapt import AdaptSchedule
from truthheads.tuning.learn import Schedule, learn
from truthheads.tuning.tune import frontier, tune

if TYPE_CHECKING:
    from truthheads.models.load import Model

LAYER, HEAD = PLANTED_HEAD


class Calls:
    """Counts the forward passes through a network."""

    def __init__(self, model: "Model") -> None:
        self.count = 0
        self.handle = model.network.base_model.register_forward_hook(self.add)

    def add(self, *_: Any) -> None:
        self.count += 1

    def take(self) -> int:
        """Return how many there were since the last call."""
        count, self.count = self.count, 0
        return count


@pytest.fixture(scope="module")
def planted(wrap: "Callable[..., Model]") -> "Model":
    made = planted_model()
    return wrap(made.network, made.tokenizer, "planted")


@pytest.fixture(scope="module")
def learned(planted: "Model") -> Tuning:
    return tune(planted, planted_questions(60), guard=0.05, schedule=Schedule(epochs=3, rate=0.05))


def test_log_probabilities_are_those_of_each_answer_read_alone(planted: "Model") -> None:
    questions = planted_questions(6)
    found = pair_logprobs(planted, encode(planted, questions), batch_tokens=200)
    for question, row in zip(questions, found, strict=True):
        for answer, value in zip(question.answers, row, strict=True):
            prompt = planted.tokenizer(prompt_of(question)).input_ids
            whole = planted.tokenizer(f"{prompt_of(question)} {answer.text}").input_ids
            with torch.inference_mode():
                logits = planted.network(torch.tensor([whole])).logits[0].log_softmax(-1)
            wanted = sum(float(logits[at - 1, whole[at]]) for at in range(len(prompt), len(whole)))
            assert value == pytest.approx(wanted, abs=1e-4)


def test_a_gate_at_work_is_the_gate_of_the_block(planted: "Model") -> None:
    encoded = encode(planted, planted_questions(8))
    factors = torch.ones(planted.layout.shape)
    factors[LAYER, HEAD] = 0.0
    gate = Gate(factors)
    through = pair_logprobs(planted, encoded, batch_tokens=500, gate=gate)
    with gated(planted, gate):
        inside = pair_logprobs(planted, encoded, batch_tokens=500)
    np.testing.assert_array_equal(through, inside)
    plain = pair_logprobs(planted, encoded, batch_tokens=500)
    assert (plain[:, 0] - plain[:, 1]).mean() > 1 > abs((through[:, 0] - through[:, 1]).mean())


def test_pair_figures_of_a_worked_case() -> None:
    before = np.array([[-1.0, -2.0], [-3.0, -1.0], [-2.0, -2.0], [-1.0, -4.0]])
    after = before + np.array([1.0, 0.0])
    groups = np.arange(4)
    # margins 1, -2, 0, 3: right 1, 0, 1/2, 1; one nat more makes them 2, -1, 1, 4: right 1, 0, 1, 1
    assert pair_figures(before, groups, seed=0)["pair_accuracy"].value == pytest.approx(2.5 / 4)
    effect = pair_effects(before, after, groups, seed=0)
    assert effect["margin"] == pytest.approx((1.0, 1.0, 1.0))
    assert effect["pair_accuracy"].value == pytest.approx(0.5 / 4)
    np.testing.assert_array_equal(right_pairs(np.array([1.0, 0.0, -1.0])), [1.0, 0.5, 0.0])


def test_divergence_is_the_definition(planted: "Model") -> None:
    rows = [[5, 20, 30, 40, 22], [7, 21, 33]]
    factors = 1 + 0.5 * torch.randn(planted.layout.shape, generator=torch.Generator().manual_seed(0))
    gate = Gate(factors)
    harm = measure_harm(planted, rows, gate)
    for row, kl, loss in zip(rows, harm.kl, harm.loss, strict=True):
        ids = torch.tensor([row])
        with torch.inference_mode():
            plain = planted.network(ids).logits[0, :-1].log_softmax(-1)
            with gated(planted, gate):
                changed = planted.network(ids).logits[0, :-1].log_softmax(-1)
        each = [(p.exp() * (p - q)).sum() for p, q in zip(plain, changed, strict=True)]
        assert kl == pytest.approx(float(sum(each)) / len(each), abs=1e-5)
        rise = [float(plain[at, token] - changed[at, token]) for at, token in enumerate(row[1:])]
        assert loss == pytest.approx(np.mean(rise), abs=1e-5)
    assert (harm.kl > 0).all()


def test_a_gate_of_ones_does_no_harm(planted: "Model") -> None:
    harm = measure_harm(planted, [[5, 20, 30, 40]], Gate(torch.ones(planted.layout.shape)))
    assert harm.kl.tolist() == harm.loss.tolist() == [0.0]


def test_the_untouched_model_reads_neutral_texts_once_as_many_as_fit(
    planted: "Model", monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [[5, 20, 30 + at, 40, 22, 9 + at][: 3 + at % 3] for at in range(20)]
    gates = [Gate(torch.full(planted.layout.shape, factor)) for factor in (0.5, 0.8)]
    passes: list[int] = []
    handle = planted.network.register_forward_hook(lambda *_: passes.append(1))
    found = {}
    for most, expected in ((2**30, 3 + 3 + 3), (0, 2 * (3 + 3))):  # three batches: read once and twice changed, or
        monkeypatch.setattr("truthheads.models.neutral_text.KEPT_BYTES", most)
        texts = NeutralTexts(planted, rows)
        passes.clear()
        found[most] = [measure_harm(planted, texts, gate) for gate in gates]
        assert len(passes) == expected and len(texts) == 20
    handle.remove()
    for kept, again in zip(*found.values(), strict=True):
        assert kept.kl.tolist() == again.kl.tolist() and kept.loss.tolist() == again.loss.tolist()


def test_own_text_is_sampled_from_the_model_and_leaves_the_generator_alone(planted: "Model") -> None:
    before = torch.random.get_rng_state()
    first, again, other = (own_text(planted, 5, length=20, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert all(len(row) > 20 for row in first)
    assert torch.equal(before, torch.random.get_rng_state())


def test_neutral_text_comes_from_contexts_and_samples_or_from_a_file(planted: "Model", tmp_path: Path) -> None:
    questions = planted_questions(10)
    rows = neutral_ids(planted, questions, texts=12, length=16, seed=3)
    contexts = {tuple(planted.tokenizer(question.context).input_ids[:16]) for question in questions}
    assert len(rows) == 12 and sum(tuple(row) in contexts for row in rows) == 6
    path = tmp_path / "neutral.txt"
    path.write_text("one text\nof two lines\n\n\nanother text\n\n", encoding="utf-8")
    assert read_neutral(path) == ["one text\nof two lines", "another text"]
    lines = tmp_path / "neutral.jsonl"
    lines.write_text('{"text": "one"}\n\n{"text": "two"}\n', encoding="utf-8")
    assert read_neutral(lines) == ["one", "two"]
    assert len(neutral_ids(planted, questions, path=path)) == 2


@pytest.mark.parametrize("content", [b"", b"only one", b"\xff\xfe\x00", b'{"body": "x"}'])
def test_neutral_text_that_cannot_be_used_is_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="neutral text"):
        read_neutral(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_neutral(tmp_path / "missing.txt")


def test_learning_finds_the_planted_head(learned: Tuning) -> None:
    gate = learned.gate.gate
    assert divmod(int((gate - 1).argmax()), gate.shape[1]) == PLANTED_HEAD
    chosen = learned.result["path"][learned.result["chosen"]]
    assert chosen["effect"]["margin"]["low"] > 0


def test_the_guard_holds_on_text_that_was_not_learned_from(planted: "Model", learned: Tuning) -> None:
    assert learned.result["path"][learned.result["chosen"]]["harm"]["kl"]["high"] <= 0.05
    within = [entry for entry in learned.result["path"] if entry["harm"]["kl"]["high"] <= 0.05]
    best = max(entry["effect"]["margin"]["value"] for entry in within)
    assert learned.result["path"][learned.result["chosen"]]["effect"]["margin"]["value"] == best
    tight = tune(planted, planted_questions(60), guard=0.001, schedule=Schedule(epochs=3, rate=0.05))
    if tight.result["chosen"] is not None:
        assert tight.result["path"][tight.result["chosen"]]["harm"]["kl"]["high"] <= 0.001
    assert (tight.gate.gate - 1).abs().max() < (learned.gate.gate - 1).abs().max()


def test_the_gain_is_there_on_questions_never_seen(planted: "Model", learned: Tuning) -> None:
    encoded = encode(planted, planted_questions(120)[60:])
    plain, after = (pair_logprobs(planted, encoded, batch_tokens=2000, gate=gate) for gate in (None, learned.gate))
    effect = pair_effects(plain, after, np.arange(60), seed=0)
    assert effect["margin"].low > 0
    controls = [learned.gate.control("shuffled", seed=seed) for seed in range(8)]
    elsewhere = [gate for gate in controls if gate.gate[PLANTED_HEAD] < learned.gate.gate[PLANTED_HEAD]]
    assert len(elsewhere) > 3
    for gate in elsewhere:
        shuffled = pair_logprobs(planted, encoded, batch_tokens=2000, gate=gate)
        assert pair_effects(shuffled, after, np.arange(60), seed=0)["margin"].low > 0


def test_nothing_is_claimed_where_labels_are_a_coin(planted: "Model") -> None:
    coin = np.random.default_rng(0).integers(0, 2, 60)
    questions = [
        replace(question, truthful=question.untruthful, untruthful=question.truthful) if side else question
        for question, side in zip(planted_questions(60), coin, strict=True)
    ]
    tuning = tune(planted, questions, guard=0.05, dev_share=0.5, schedule=Schedule(epochs=2, rate=0.05))
    assert tuning.result["chosen"] is None
    assert bool((tuning.gate.gate == 1).all())
    assert "no gate" in tuning.result["why"]


def test_bounds_hold_and_the_pull_keeps_factors_near(planted: "Model") -> None:
    questions = planted_questions(30)
    encoded, texts = encode(planted, questions), neutral_ids(planted, questions, texts=8, length=16)
    ones = torch.ones(planted.layout.shape)

    def last(**settings: float) -> torch.Tensor:
        schedule = replace(Schedule(epochs=3, rate=0.2, kl_first=0.0001, kl_last=0.0001), **settings)
        points = learn(
            planted, encoded, texts, ones, site="z", temperature=5.0, schedule=schedule, batch_tokens=400, seed=0
        )
        return list(points)[-1].factors

    free, bounded, pulled = last(), last(low=0.9, high=1.1), last(pull=1e4)
    assert free.max() > 1.1 and free.min() >= 0 and free.max() <= 2
    assert bounded.min() >= 0.9 and bounded.max() <= 1.1
    assert (pulled - 1).abs().mean() < (free - 1).abs().mean()


def test_learning_touches_neither_weights_nor_hooks(planted: "Model") -> None:
    before = {name: value.clone() for name, value in planted.network.state_dict().items()}
    tune(planted, planted_questions(20), schedule=Schedule(epochs=1))
    after = planted.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in planted.network.modules())
    assert all(parameter.grad is None for parameter in planted.network.parameters())


@pytest.mark.parametrize("method", ["learn", "grid"])
def test_stopped_tuning_goes_on_from_its_last_batch_to_the_same_bytes(
    planted: "Model", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    questions = planted_questions(24)
    settings: dict[str, Any] = {"guard": 0.05, "batch_tokens": 300, "schedule": Schedule(epochs=2)}
    if method == "grid":
        scores = score(planted, questions)
        settings = {"method": "grid", "scores": scores, "strengths": (0.5, 1.0), "norms": ("centred",), "guard": 0.05}
    monkeypatch.setattr(learning, "SAVED_EVERY_SECONDS", 0.0)
    passes = Calls(planted)
    tune(planted, questions, **settings).save(tmp_path / "whole" / "gate.safetensors")
    once = passes.take()
    stopped = 0

    def stop(done: int, total: int) -> None:
        nonlocal stopped
        if done > total * (stopped + 1) / 20:
            stopped += 1
            raise KeyboardInterrupt

    while True:
        try:
            tuning = tune(planted, questions, **settings, work_dir=tmp_path / "w", progress=stop)
            break
        except KeyboardInterrupt:
            assert stopped < 20
    tuning.save(tmp_path / "again" / "gate.safetensors")
    assert stopped >= 3
    # At each stop a batch is under way, of sampled texts at most, and is made again.
    assert passes.take() <= once + stopped * (LENGTH + 4)
    for name in ("gate.safetensors", "tuning.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    passes.handle.remove()


def test_the_grid_chooses_by_its_rule(planted: "Model") -> None:
    questions = planted_questions(60)
    scores = score(planted, questions)
    tuning = tune(planted, questions, method="grid", scores=scores, guard=0.05, strengths=(0.1, 0.5, 1.0))
    assert len(tuning.result["path"]) == 3 * 2 * 2
    allowed = [
        (entry["effect"]["margin"]["value"], at)
        for at, entry in enumerate(tuning.result["path"])
        if entry["harm"]["kl"]["high"] <= 0.05 and entry["effect"]["margin"]["low"] > 0
    ]
    assert tuning.result["chosen"] == max(allowed)[1]
    gate = tuning.gate.gate
    assert gate[LAYER, HEAD] == gate[LAYER].max() > 1


def test_frontier_takes_the_best_within_each_level() -> None:
    def entry(name: str, harm: float, gain: float) -> dict[str, object]:
        figures = [{"value": value, "low": value, "high": value} for value in (harm, gain)]
        return {"name": name, "harm": {"kl": figures[0]}, "effect": {"margin": figures[1]}}

    rows = frontier([entry("a", 0.002, 1.0), entry("b", 0.02, 3.0), entry("c", 0.05, 2.0)])
    assert [row["name"] for row in rows] == ["a", "a", "b", "b"]
    assert frontier([])[0]["effect"] is None


def test_one_seed_gives_one_file(planted: "Model", tmp_path: Path) -> None:
    for name in ("a", "b"):
        tune(planted, planted_questions(24), schedule=Schedule(epochs=1), seed=5).save(
            tmp_path / name / "gate.safetensors"
        )
    for file in ("gate.safetensors", "tuning.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    result = json.loads((tmp_path / "a" / "tuning.json").read_text())
    assert set(result["path"][0]["effect"]) == {"pair_accuracy", "margin", "logp_truthful"}
    assert set(result["path"][0]["harm"]["kl"]) == {"value", "low", "high"}
    assert Gate.load(tmp_path / "a" / "gate.safetensors").meta["method"] == "learn"


def test_bad_input_is_one_clear_error(planted: "Model") -> None:
    questions = planted_questions(6)
    single = replace(questions[0], untruthful=None)
    attempts: list[tuple[type[TruthHeadsError], str, Callable[[], object]]] = [
        (DataError, "needs pairs", lambda: tune(planted, [single])),
        (DataError, "needs pairs", lambda: tune(planted, [])),
        (DataError, "split", lambda: tune(planted, questions[:1])),
        (GateError, "made from scores", lambda: tune(planted, questions, method="grid")),
        (GateError, "guard", lambda: tune(planted, questions, guard=0.0)),
        (GateError, "bounds", lambda: tune(planted, questions, schedule=Schedule(low=1.5))),
        (ShapeError, "does not fit", lambda: tune(planted, questions, base_gate=Gate(torch.ones(3, 4)))),
    ]
    for kind, words, attempt in attempts:
        with pytest.raises(kind, match=words):
            attempt()


def test_a_relatives_gate_is_where_learning_starts(planted: "Model") -> None:
    target = torch.ones(planted.layout.shape)
    target[LAYER, HEAD] = 1.4
    tuning = tune(
        planted,
        planted_questions(24),
        base_gate=Gate(target),
        guard=0.5,
        schedule=Schedule(epochs=1, rate=1e-4, pull=10.0),
    )
    first = tuning.result["path"][0]["gate"]
    assert first["max"] == pytest.approx(1.4, abs=0.01)


def test_divergence_carries_gradients_to_the_gate_alone(planted: "Model") -> None:
    from truthheads.models.hooks import intercepted

    gate = torch.full(planted.layout.shape, 1.2, requires_grad=True)

    def under() -> object:
        return intercepted(planted, lambda layer, z: z * gate[layer, :, None])

    with torch.enable_grad():
        kl, _ = divergence(planted, [[5, 20, 30, 40]], under)
        (gradient,) = torch.autograd.grad(kl.sum(), gate)
    assert bool(torch.isfinite(gradient).all()) and float(gradient.abs().max()) > 0


@pytest.mark.parametrize("method", ["learn", "adapt"])
def test_the_last_point_alone_is_judged_with_weaker_versions_until_one_is_within_the_guard(
    planted: "Model", method: str, tmp_path: Path
) -> None:
    """The same training as of the whole path, fewer judged candidates; the model writes its neutral texts once."""
    questions, guard = planted_questions(60), 0.02
    training = AdaptSchedule(rate=0.02, kl_first=1.0, kl_last=0.1)
    how: dict[str, Any] = {"method": method, "guard": guard, "training": training, "epochs": 3, "samples_dir": tmp_path}
    whole = tune(planted, questions, **how)
    written = (tmp_path / JOURNAL).read_bytes()
    last = tune(planted, questions, whole_path=False, **how)
    assert (tmp_path / JOURNAL).read_bytes() == written != b""
    names, judged = [one["name"] for one in whole.result["path"]], last.result["path"]
    assert judged[0] == whole.result["path"][names.index("epoch 3")]
    highs = [Figure.of(one["harm"]["kl"]).high for one in judged]
    assert len(judged) < len(names) and all(high > guard for high in highs[:-1]) and highs[-1] <= guard
    assert last.result["settings"]["neutral"] is None
