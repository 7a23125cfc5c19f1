"""Head adapters to choose from: on the heads that a rule picks, and, as controls, on heads drawn at random."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from truthheads.choices import HeadChoice
from truthheads.errors import GateError, ModelError
from truthheads.models.answer_logprobs import pair_effects
from truthheads.models.head_modules import HeadPlace, locate_places
from truthheads.models.load import Model
from truthheads.models.prompts import Encoded
from truthheads.models.sources import gguf_path, reference
from truthheads.results.head_adapter import HeadAdapter
from truthheads.results.scores import Scores
from truthheads.results.tuning import ControlResult
from truthheads.tuning.adapt import AdaptSchedule, adapt
from truthheads.tuning.candidates import CandidateEvaluator, RunSettings, judge_path, strongest
from truthheads.tuning.heads import check_choice, drawn, largest, mean_gradients
from truthheads.tuning.training_state import AdapterPoint, TrainingState


class HeadRule(NamedTuple):
    """Which heads an adapter changes, and what it is compared with.

    Attributes:
        choose: By what heads are chosen.
        share: How many of all heads.
        scores: What they are chosen by; None: attributions on the training rows.
        controls: Adapters on as many heads drawn at random.
    """

    choose: HeadChoice = "attribution"
    share: float = 0.1
    scores: Scores | None = None
    controls: int = 0


class AdapterRun(NamedTuple):
    """What was trained.

    Attributes:
        places: The heads that the rule chose; their candidates are with the evaluator.
        controls: What each control gains and costs.
        adapters: The controls themselves.
    """

    places: list[HeadPlace]
    controls: list[ControlResult]
    adapters: tuple[HeadAdapter, ...]


def check_rule(model: Model, rule: HeadRule, schedule: AdaptSchedule) -> None:
    """Raise where an adapter cannot be trained in this way.

    Raises:
        GateError: A setting is out of range.
        ModelError: The model is a base with an adapter in it already.
        ShapeError: Scores of another shape than the model.
    """
    check_choice(model, rule.choose, rule.share, rule.scores)
    if schedule.rank < 1 or schedule.epochs < 1 or rule.controls < 0:
        raise GateError(
            "an adapter cannot be trained with these settings",
            expected="--rank and --epochs of 1 or more, --controls of 0 or more",
            got=f"rank {schedule.rank}, epochs {schedule.epochs}, controls {rule.controls}",
            fix="try --rank 8 --epochs 4",
        )
    if rule.controls and (rule.choose == "all" or rule.share == 1):
        raise GateError(
            "--controls are adapters on other heads, and all heads are chosen",
            expected="--controls 0 with all heads",
            got=str(rule.controls),
            fix="leave --controls out, or change fewer heads (--heads 0.1)",
        )
    if model.adapter is not None:
        raise ModelError(
            f"{model.name} is a base with an adapter in it, and a second adapter would name neither",
            expected="whole weights",
            got=model.adapter,
            fix="merge the adapter into its base first (merge_and_unload, then save_pretrained)",
        )


def tune_adapter(
    model: Model,
    encoded: Sequence[Encoded],
    neutral: Sequence[Sequence[int]],
    judge: CandidateEvaluator,
    rule: HeadRule,
    schedule: AdaptSchedule,
    settings: RunSettings,
    *,
    guard: float,
) -> AdapterRun:
    """Train and judge the adapter of the chosen heads, then one of each control.

    Args:
        model: The model.
        encoded: Questions to learn from.
        neutral: Neutral texts to learn from.
        judge: Keeps the candidates of the chosen heads. Trainings are kept where it keeps its results, so that a run
            that was killed goes on.
        rule: Which heads.
        schedule: How they are trained.
        settings: How questions are put.
        guard: Largest harm allowed.
    """
    seed, folder, runs = settings["seed"], judge.kept.folder, 1 + rule.controls
    everything = locate_places(model.network, model.layout)
    read = [(item.prefix, item.tails, item.image) for item in encoded]
    chosen = _chosen(model, encoded, everything, rule, settings, judge)
    base, transposed = reference(model.name), model.layout.layers[0].transposed
    meta: dict[str, object] = {"shape": model.layout.shape}
    if (file := gguf_path(model.name)) is not None:
        meta |= {"gguf": file.name}
    trains = (model.fingerprint, str(model.dtype), settings, read, neutral, schedule_json(schedule))

    def trained(name: str, places: list[HeadPlace], by: CandidateEvaluator, turn: int) -> None:
        state = None if folder is None else TrainingState.of(folder / f"{name}.safetensors", trains, places)
        points = adapt(
            model,
            encoded,
            neutral,
            places,
            schedule=schedule,
            batch_tokens=settings["batch_tokens"],
            seed=seed,
            state=state,
            progress=by.parts.part("learning", turn=turn, turns=runs),
        )

        def made(point: AdapterPoint, share: float) -> HeadAdapter:
            whole = HeadAdapter(point.updates, base, tuple(places), transposed, meta)
            return whole if share == 1 else whole.scaled(share)

        judge_path(by, points, made, guard)

    trained("adapter", chosen, judge, 0)
    controls, adapters = [], []
    best = judge.after[strongest(judge.path, guard)]
    for turn in range(1, rule.controls + 1):
        name, places = f"random-{turn}", drawn(everything, rule.share, seed=seed, turn=turn)
        other = judge.again(f"{name}, ", first=turn * (judge.candidates // runs))
        trained(name, places, other, turn)
        at = strongest(other.path, guard)
        entry, adapter = other.path[at], other.changes[at]
        assert isinstance(adapter, HeadAdapter)
        difference = pair_effects(other.after[at], best, judge.groups, seed=seed)
        control: ControlResult = {
            "name": name,
            "heads": [place.name for place in places],
            "candidate": entry["name"],
            "effect": entry["effect"],
            "harm": entry["harm"],
            "difference": {measure: figure.json() for measure, figure in difference.items()},
        }
        controls.append(control)
        adapters.append(adapter)
    return AdapterRun(chosen, controls, tuple(adapters))


def schedule_json(schedule: Any) -> dict[str, float | int]:
    """Return the settings of a schedule as JSON holds them."""
    return {name: getattr(schedule, name) for name in schedule.__slots__}


def _chosen(
    model: Model,
    encoded: Sequence[Encoded],
    everything: Sequence[HeadPlace],
    rule: HeadRule,
    settings: RunSettings,
    judge: CandidateEvaluator,
) -> list[HeadPlace]:
    if rule.choose == "all":
        return list(everything)
    if rule.choose == "random":
        return drawn(everything, rule.share, seed=settings["seed"], turn=0)
    if rule.choose == "truth":
        assert rule.scores is not None
        return largest(everything, rule.scores.values.float(), rule.share)
    if rule.scores is not None:
        values = rule.scores.values.float()
    else:
        told = judge.parts.part("attribution")
        values = mean_gradients(model, encoded, batch_tokens=settings["batch_tokens"], kept=judge.kept, progress=told)
    return largest(everything, values.abs(), rule.share)
