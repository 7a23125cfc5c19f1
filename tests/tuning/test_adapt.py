"""Head adapters that are trained: only chosen heads move, the network is left alone, and the gain is a gain."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import truthheads as th
from planted import PLANTED_HEAD, planted_model, planted_questions
from truthheads.errors import ActivationError, ArtifactError, GateError, ModelError, ShapeError, TruthHeadsError
from truthheads.models.answer_logprobs import pair_effects, pair_logprobs
from truthheads.models.head_modules import HeadPlace, locate_places
from truthheads.models.prompts import Encoded, encode
from truthheads.results.head_adapter import HeadAdapter
from truthheads.results.scores import Scores
from truthheads.results.tuning import Tuning
from truthheads.tuning import adapt as training
from truthheads.tuning.adapt import AdaptSchedule, adapt, falling, plan_steps
from truthheads.tuning.heads import drawn, largest, mean_gradients
from truthheads.tuning.lora_layers import lora_layers
from truthheads.tuning.training_state import TrainingState
from truthheads.tuning.tune import tune
from zoo import MULTIMODAL, ROWS, ZooRow, runner, text_inputs

if TYPE_CHECKING:
    from truthheads.models.load import Model

LAYER, HEAD = PLANTED_HEAD
EVERY = (*ROWS, *MULTIMODAL)
BY_NAME = {row.name: row for row in EVERY}
IDS = torch.randint(20, 270, (2, 9), generator=torch.Generator().manual_seed(0))
QUICK = AdaptSchedule(epochs=3, rate=0.02, kl_first=1.0, kl_last=0.1)


@pytest.fixture(scope="module")
def planted(wrap: "Callable[..., Model]") -> "Model":
    made = planted_model()
    return wrap(made.network, made.tokenizer, "planted")


@pytest.fixture(scope="module")
def adapted_one(planted: "Model") -> Tuning:
    # 0.1 of the planted model's heads
    return tune(planted, planted_questions(60), method="adapt", guard=0.5, training=QUICK, controls=2, rank=2)


def state_of(network: PreTrainedModel) -> dict[str, Any]:
    """Return everything of a network that training could leave changed."""
    return {
        "tensors": {name: value.clone() for name, value in network.state_dict().items()},
        "modules": {name: id(module) for name, module in network.named_modules()},
        "flags": {name: (one.requires_grad, one.grad) for name, one in network.named_parameters()},
        "hooks": sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in network.modules()),
        "names": set(vars(network)),
        "mode": [one.training for one in network.modules()],
    }


def check_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    kept = before.pop("tensors"), after.pop("tensors")
    assert before == after
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


# --- only the chosen heads -------------------------------------------------------------------------------------------


def outside(adapter_updates: Any, places: list[HeadPlace]) -> list[float]:
    """Return the largest number of each update outside the rows and columns of the chosen heads."""
    found = []
    for name, update in adapter_updates.items():
        a, b = update.a.clone(), update.b.clone()
        for place in places:
            if place.query.module == name:
                b[place.query.start : place.query.start + place.query.width] = 0
            if place.output.module == name:
                a[:, place.output.start : place.output.start + place.output.width] = 0
        queries = any(place.query.module == name for place in places)
        found.append(float((b if queries else a).abs().max()))
    return found


@pytest.mark.parametrize("row", EVERY, ids=str)
def test_training_moves_the_chosen_heads_of_every_architecture_and_nothing_else(
    row: ZooRow, model_of: "Callable[[ZooRow], Model]"
) -> None:
    """Three steps of AdamW with weight decay on PEFT's layers, then hook = the trained network."""
    model = model_of(row)
    network = runner(row, model.network)
    places = [place for place in locate_places(model.network, model.layout) if place.head in (0, 2)]
    before = state_of(model.network)
    with lora_layers(model.network, places, rank=2, generator=torch.Generator().manual_seed(0)) as layers:
        assert len(layers.names) == 2 * len(model.layout.layers)
        optimiser = torch.optim.AdamW(layers.parameters, lr=0.1, weight_decay=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            logits = network(input_ids=IDS, **text_inputs(row, torch.ones_like(IDS))).logits
            logits.log_softmax(-1)[..., 20].mean().backward()
            optimiser.step()
        with torch.inference_mode():
            trained = network(input_ids=IDS, **text_inputs(row, torch.ones_like(IDS))).logits
        updates = layers.updates(layers.parameters)
    check_same(before, state_of(model.network))
    assert outside(updates, places) == [0.0] * len(updates)
    inside = [float((update.b @ update.a).abs().max()) for update in updates.values()]
    assert sum(size > 0 for size in inside) >= len(inside) / 2  # a router may leave out a path
    with th.adapted(model, HeadAdapter(updates, "base", tuple(places))), torch.inference_mode():
        hook = network(input_ids=IDS, **text_inputs(row, torch.ones_like(IDS))).logits
    torch.testing.assert_close(hook, trained, atol=1e-5 * max(1.0, float(trained.abs().max())), rtol=0)


def test_averages_over_the_path_stay_0_outside_the_heads(planted: "Model") -> None:
    questions = planted_questions(16)
    places = drawn(locate_places(planted.network, planted.layout), 0.3, seed=0, turn=1)
    schedule = replace(QUICK, rank=2, decay=0.5, epochs=2)
    texts = [[5, 20, 30, 40], [6, 21, 31, 41]]
    points = adapt(planted, encode(planted, questions), texts, places, schedule=schedule, batch_tokens=400, seed=0)
    for point in points:
        assert outside(point.updates, places) == [0.0] * len(point.updates)
    assert [point.epoch for point in points] == [1, 2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("no luck")])
def test_the_network_is_left_as_it_was_found_after_an_error(
    error: Any, planted: "Model", monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(planted.network)
    calls = []

    def broken(*given: Any, **named: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return whole(*given, **named)

    whole = training.learning_margins
    monkeypatch.setattr(training, "learning_margins", broken)
    with pytest.raises(BaseException, match="no luck" if isinstance(error, RuntimeError) else None):
        tune(planted, planted_questions(20), method="adapt", training=QUICK)
    assert len(calls) == 3
    check_same(before, state_of(planted.network))


def test_the_network_is_left_as_it_was_found(planted: "Model") -> None:
    before, state = state_of(planted.network), torch.random.get_rng_state()
    tune(planted, planted_questions(20), method="adapt", training=replace(QUICK, epochs=1), controls=1)
    check_same(before, state_of(planted.network))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_gradient_that_is_not_finite_is_one_error(planted: "Model", monkeypatch: pytest.MonkeyPatch) -> None:
    margins = training.learning_margins
    monkeypatch.setattr(training, "learning_margins", lambda *given: margins(*given) * torch.inf)
    with pytest.raises(ActivationError, match="gradient of the adapter"):
        tune(planted, planted_questions(20), method="adapt", training=QUICK)


# --- what is trained -------------------------------------------------------------------------------------------------


def test_the_loss_is_softplus_of_the_margin_and_the_weighted_kl(planted: "Model") -> None:
    """The first step's numbers, by hand: B is 0, so that the model is itself, KL 0."""
    encoded = encode(planted, planted_questions(6))
    places = locate_places(planted.network, planted.layout)
    schedule = AdaptSchedule(epochs=1, questions=6, rank=2)
    points = adapt(planted, encoded, [[5, 20, 30]], places, schedule=schedule, batch_tokens=60, seed=0)
    plain = pair_logprobs(planted, encoded, batch_tokens=1000)
    margin = plain[:, 0] - plain[:, 1]
    assert points[0].loss == pytest.approx(float(np.log1p(np.exp(-margin)).mean()), rel=1e-4)
    assert points[0].kl == pytest.approx(0, abs=1e-6)


def test_batches_of_any_size_give_the_same_gradients(planted: "Model") -> None:
    encoded = encode(planted, planted_questions(6))
    places = locate_places(planted.network, planted.layout)
    schedule = AdaptSchedule(epochs=2, questions=6, rank=2)
    found = [
        adapt(planted, encoded, [[5, 20, 30]], places, schedule=schedule, batch_tokens=tokens, seed=0)
        for tokens in (60, 10_000)
    ]
    for name, update in found[0][-1].updates.items():
        torch.testing.assert_close(update.b, found[1][-1].updates[name].b, atol=1e-4, rtol=1e-3)


def test_steps_hold_questions_of_similar_length_and_each_of_them_once(planted: "Model") -> None:
    encoded = encode(planted, planted_questions(21))
    steps = plan_steps(encoded, 4)
    assert sorted(i for step in steps for i in step) == list(range(21)) and len(steps) == 5
    longest = [max(encoded[i].length for i in step) for step in steps]
    shortest = [min(encoded[i].length for i in step) for step in steps]
    assert all(high <= low for high, low in zip(longest[:-1], shortest[1:], strict=True))
    assert plan_steps(encoded[:1], 8) == [[0]]


def test_the_weight_of_the_kl_falls_by_equal_ratios() -> None:
    schedule = AdaptSchedule(epochs=3, kl_first=100.0, kl_last=1.0)
    assert [falling(schedule, epoch) for epoch in range(3)] == pytest.approx([100, 10, 1])
    assert falling(replace(schedule, epochs=1), 0) == 100


def test_the_adapter_gains_on_questions_never_seen_within_the_guard(planted: "Model", adapted_one: Tuning) -> None:
    adapter = adapted_one.adapter
    assert adapter is not None and PLANTED_HEAD in adapter.heads
    chosen = adapted_one.result["path"][adapted_one.result["chosen"]]  # type: ignore[index]
    assert chosen["harm"]["kl"]["high"] <= 0.5 and chosen["effect"]["margin"]["low"] > 0
    encoded = encode(planted, planted_questions(120)[60:])
    plain, after = (pair_logprobs(planted, encoded, batch_tokens=2000, gate=one) for one in (None, adapter))
    assert pair_effects(plain, after, np.arange(60), seed=0)["margin"].low > 0


def test_controls_are_other_heads_and_the_difference_is_paired(planted: "Model", adapted_one: Tuning) -> None:
    controls = adapted_one.result["controls"]
    assert [one["name"] for one in controls] == ["random-1", "random-2"]
    assert all(len(one["heads"]) == len(adapted_one.result["heads"]) for one in controls)
    assert controls[0]["heads"] != controls[1]["heads"] != adapted_one.result["heads"]
    assert [[place.name for place in one.places] for one in adapted_one.controls] == [one["heads"] for one in controls]
    chosen = adapted_one.result["path"][adapted_one.result["chosen"]]  # type: ignore[index]
    for one in controls:
        for measure, figure in one["difference"].items():
            gap = chosen["effect"][measure]["value"] - one["effect"][measure]["value"]  # type: ignore[operator]
            assert figure["value"] == pytest.approx(gap, abs=1e-6)
            assert figure["low"] <= figure["value"] <= figure["high"]


LAYER_HEAD = f"L{LAYER}H{HEAD}"


def test_one_rule_chooses_adapters_and_gates(planted: "Model", adapted_one: Tuning) -> None:
    result = adapted_one.result
    allowed = [
        (entry["effect"]["margin"]["value"], at)
        for at, entry in enumerate(result["path"])
        if entry["harm"]["kl"]["high"] <= 0.5 and entry["effect"]["margin"]["low"] > 0
    ]
    assert result["chosen"] == max(allowed)[1]
    gate = tune(planted, planted_questions(60), guard=0.5)
    assert gate.adapter is None and set(gate.result) <= set(result)
    for key in ("rows", "neutral", "ungated"):
        assert gate.result[key] == result[key]  # type: ignore[literal-required]


def test_nothing_is_claimed_where_labels_are_a_coin(planted: "Model", tmp_path: Path) -> None:
    coin = np.random.default_rng(0).integers(0, 2, 60)
    questions = [
        replace(question, truthful=question.untruthful, untruthful=question.truthful) if side else question
        for question, side in zip(planted_questions(60), coin, strict=True)
    ]
    found = tune(planted, questions, method="adapt", guard=0.05, dev_share=0.5, training=QUICK)
    assert found.adapter is None and found.result["chosen"] is None and "no adapter" in found.result["why"]
    with pytest.raises(ArtifactError, match="no adapter to write"):
        found.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


# --- which heads -----------------------------------------------------------------------------------------------------


def test_heads_by_attribution_are_those_that_the_scores_name(planted: "Model") -> None:
    questions = planted_questions(24)
    scores = th.score(planted, questions, method="attribution")
    own = mean_gradients(planted, encode(planted, questions), batch_tokens=400)
    torch.testing.assert_close(own, scores.values.float(), atol=1e-5, rtol=1e-4)
    places = locate_places(planted.network, planted.layout)
    by_scores = tune(planted, questions, method="adapt", scores=scores, training=replace(QUICK, epochs=1), guard=9.0)
    wanted = [place.name for place in largest(places, own.abs(), 0.1)]
    assert by_scores.result["heads"] == wanted and LAYER_HEAD in wanted


def test_heads_by_truth_by_chance_and_all(planted: "Model") -> None:
    questions, places = planted_questions(24), locate_places(planted.network, planted.layout)
    values = torch.zeros(planted.layout.shape, dtype=torch.float64)
    values[1, 1], values[0, 0] = 0.9, float("nan")
    scores = Scores.of("probe", values, meta={"model": {"name": "planted"}})
    quick = replace(QUICK, epochs=1)

    def chosen(choose: Any, **more: Any) -> list[str]:
        return tune(planted, questions, method="adapt", choose=choose, training=quick, **more).result["heads"]

    assert "L1H1" in chosen("truth", scores=scores, heads=0.01)
    assert len(chosen("all")) == len(places)
    assert chosen("random") == chosen("random") != chosen("random", seed=1)


def test_a_head_without_a_score_comes_last() -> None:
    from truthheads.models.head_modules import ModuleSpan

    span = ModuleSpan("m", 0, 1)
    places = [HeadPlace(0, head, span, span) for head in range(3)]
    assert [place.head for place in largest(places, torch.tensor([[float("nan"), -1.0, 2.0]]), 0.67)] == [1, 2]
    assert len(largest(places, torch.zeros(1, 3), 0.01)) == 1


def test_bad_settings_are_one_clear_error(planted: "Model") -> None:
    questions = planted_questions(12)
    probe = Scores.of("probe", torch.rand(planted.layout.shape).double(), meta={})
    other = Scores.of("attribution", torch.rand(2, 3).double(), meta={})
    attempts: list[tuple[type[TruthHeadsError], str, dict[str, Any]]] = [
        (GateError, "needs Truth Scores", {"choose": "truth"}),
        (GateError, "from scores by probe", {"scores": probe}),
        (GateError, "--heads must be above 0", {"heads": 0.0}),
        (GateError, "--heads must be above 0", {"heads": 1.5}),
        (GateError, "with these settings", {"rank": 0}),
        (GateError, "with these settings", {"epochs": 0}),
        (GateError, "all heads are chosen", {"choose": "all", "controls": 1}),
        (GateError, "guard", {"guard": -1.0}),
        (ShapeError, "does not fit", {"scores": other}),
    ]
    for kind, words, settings in attempts:
        with pytest.raises(kind, match=words):
            tune(planted, questions, method="adapt", **settings)
    with pytest.raises(ModelError, match="with an adapter in it"):
        tune(replace(planted, adapter="LORA adapter in x"), questions, method="adapt")


# --- what is written, and going on ------------------------------------------------------------------------------------


def test_one_seed_gives_one_folder_with_its_controls(planted: "Model", adapted_one: Tuning, tmp_path: Path) -> None:
    adapted_one.save(tmp_path / "a")
    again = tune(planted, planted_questions(60), method="adapt", guard=0.5, training=QUICK, controls=2, rank=2)
    again.save(tmp_path / "b")
    files = sorted(file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*") if file.is_file())
    own = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert {str(file) for file in files} == own | {"tuning.json"} | {
        f"controls/random-{turn}/{name}" for turn in (1, 2) for name in own
    }
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    read = HeadAdapter.load(tmp_path / "a")
    assert read.digest == adapted_one.adapter.digest and read.meta["method"] == "adapt"  # type: ignore[union-attr]
    assert HeadAdapter.load(tmp_path / "a" / "controls" / "random-2").digest == adapted_one.controls[1].digest
    result = json.loads((tmp_path / "a" / "tuning.json").read_text())
    assert result["heads"] and result["frontier"] and len(result["controls"]) == 2
    assert set(result["controls"][0]["difference"]["pair_accuracy"]) == {"value", "low", "high"}


def test_a_killed_training_goes_on_from_its_last_epoch_to_the_same_adapter(
    planted: "Model", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = planted_questions(24)
    encoded, places = encode(planted, questions), locate_places(planted.network, planted.layout)[:3]
    texts = [[5, 20, 30, 40], [6, 21, 31, 41], [7, 22, 32]]
    state = TrainingState.of(tmp_path / "state.safetensors", "this training")
    steps: list[int] = []

    def run(state: TrainingState | None) -> list[Any]:
        steps.clear()

        def told(done: int, total: int) -> None:
            assert total == 300 * each
            steps.append(done)

        return adapt(
            planted, encoded, texts, places, schedule=QUICK, batch_tokens=400, seed=3, state=state, progress=told
        )

    each = len(plan_steps(encoded, QUICK.questions))
    whole = run(None)
    margins, calls = training.learning_margins, [0]

    def killed(model: "Model", batch: list[Encoded]) -> Tensor:
        calls[0] += 1
        if calls[0] > 2 * each + 1:  # in the third epoch
            raise KeyboardInterrupt
        return margins(model, batch)

    monkeypatch.setattr(training, "learning_margins", killed)
    with pytest.raises(KeyboardInterrupt):
        run(state)
    monkeypatch.setattr(training, "learning_margins", margins)
    rest = run(state)
    assert steps[0] == 200 * each and steps[-1] == 300 * each  # two epochs were there already
    for one, other in zip(whole, rest, strict=True):
        assert (one.epoch, one.loss, one.kl) == (other.epoch, other.loss, other.kl)
        assert all(torch.equal(update.b, other.updates[name].b) for name, update in one.updates.items())
        assert all(torch.equal(update.a, other.updates[name].a) for name, update in one.updates.items())
    assert run(TrainingState.of(state.path, "another training")) and steps[0] == 100


def test_a_run_that_is_stopped_again_and_again_writes_the_same_bytes(planted: "Model", tmp_path: Path) -> None:
    """In the neutral texts, the attribution, the training, the judging, and those of a control."""
    settings: dict[str, Any] = {"training": replace(QUICK, epochs=2), "guard": 9.0, "controls": 1, "batch_tokens": 300}
    questions, stopped = planted_questions(24), 0
    tune(planted, questions, method="adapt", **settings).save(tmp_path / "whole")

    def stop(done: int, total: int) -> None:
        nonlocal stopped
        if done > total * (stopped + 1) / 12:
            stopped += 1
            raise KeyboardInterrupt

    while True:
        try:
            found = tune(planted, questions, method="adapt", **settings, work_dir=tmp_path / "w", progress=stop)
            break
        except KeyboardInterrupt:
            assert stopped < 12
    found.save(tmp_path / "again")
    assert stopped >= 6
    names = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    assert len(names) == 7  # adapter, card, settings and tuning.json; those of the control without the last
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_progress_ends_at_its_total_and_never_falls(planted: "Model") -> None:
    seen: list[tuple[int, int]] = []
    tune(
        planted,
        planted_questions(20),
        method="adapt",
        training=replace(QUICK, epochs=2),
        controls=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    done = [one for one, _ in seen]
    assert done == sorted(done) and len({total for _, total in seen}) == 1 and seen[-1][0] == seen[-1][1]
    assert len(seen) > 8


def test_an_adapter_names_the_users_file_and_never_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from truthheads.models.sources import SMOLLM2_HUB_ID, reference

    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert reference("model.gguf") == reference(str(tmp_path / "model.gguf")) == "model.gguf"  # not where it lies
    snapshot = tmp_path / "hub" / "models--owner--model" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    assert reference(str(snapshot)) == "owner/model"
    assert reference("smollm2") == SMOLLM2_HUB_ID
    assert reference("smollm2:reader") == "smollm2:reader"
    assert reference("owner/model") == "owner/model"
