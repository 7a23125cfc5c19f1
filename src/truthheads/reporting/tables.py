"""The page's tables: what every figure shows, in rows that can be read without it and downloaded as CSV."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from truthheads.benchmarks.registry import label, lower_is_better
from truthheads.plots.charts import STATES, candidate_state
from truthheads.reporting.artifacts import Artefacts, Named
from truthheads.reporting.charts import gate_origin, made_of
from truthheads.reporting.wording import chance, figure, number, signed
from truthheads.results.comparison import ComparisonResult
from truthheads.results.evaluation import EvaluationResult, RunResult
from truthheads.results.grounding import GroundResult
from truthheads.results.scores import Scores
from truthheads.results.tuning import TuningResult

TOP = 10

VERDICTS = {
    "inherited": "inherited: the same heads do the same work",
    "partly": "partly inherited",
    "not related": "not related: the heads have nothing to do with each other",
    "can't tell": "cannot tell from these figures",
}

SHOWN_STATES = {**STATES, "within": ""}

SAID = {"no evidence": "no evidence of a change"}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text.

    Attributes:
        title: Above the table, and the name of its CSV.
        columns: Their names; the first is the row's own.
        rows: Cells of each row, as many as columns.
        folded: Whether it is shown only when asked for.
        technical: Whether its cells are commands and hashes, which are set small.
        quiet: Numbers of rows that are controls.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    technical: bool = False
    quiet: frozenset[int] = frozenset()


def answers(one: Named[GroundResult]) -> list[Table]:
    """Return the first answers before and after that differ, and what every remedy did on the test rows."""
    told, found = one.item, one.item["answers"]
    assert found is not None
    title = (
        f"Before and with the {found['remedy']}: the first {len(found['shown'])} of {found['changed']} answers that "
        f"changed, of {found['asked']} held-out rows"
    )
    rows = [[pair["question"], pair["truthful"], pair["before"], pair["after"]] for pair in found["shown"]]
    figures, primary = [], told["primary"]
    for tried in told["remedies"]:
        verdict = tried["verdict"] if tried["tested"] else f"not tested: {tried['why']}"
        change = signed(tried["effect"][primary]) if tried["tested"] else "–"
        beyond = signed(tried["beyond_prompt"]) if tried["beyond_prompt"] else "–"
        harm = figure(tried["harm"]) if tried["harm"] else "–"
        figures.append([tried["name"], change, beyond, harm, SAID.get(str(verdict), str(verdict))])
    name = primary.replace("_", " ")
    columns = ["remedy", f"change of {name}", "beyond the instruction", "harm, nats a token", "verdict"]
    return [
        Table(title, ["question", "right answer", "before", "after"], rows),
        Table(f"What was tried, on {told['test_rows']} test rows", columns, figures),
    ]


def best_heads(one: Named[Scores]) -> Table:
    """Return the heads with the highest scores, with intervals where samples were kept."""
    item, interval = one.item, one.ends
    rows = []
    for at in item.top(TOP):
        low, high = (float(end[at]) for end in interval) if interval else (None, None)
        shown = figure({"value": float(item.values[at]), "low": low, "high": high})
        rows.append([f"L{at[0]}H{at[1]}", shown, number(float(item.auroc[at])), number(float(item.pair_accuracy[at]))])
    few = "" if item.caution is None else f" (no ranking: {item.questions} questions are too few)"
    title = f"Highest scores: {one.name}{few}"
    return Table(title, ["head", f"{item.unit} [95 % interval]", "AUROC", "pair accuracy"], rows, folded=True)


def models(found: Artefacts) -> Table:
    """Build the table of scored models: data, mean over heads, form probe, agreement of split halves."""
    rows = []
    for one in found.scores:
        told = one.item.meta.get("summary") or {}
        form = (told.get("form") or {}).get("accuracy")
        halves = (told.get("split_half") or {}).get("pearson")
        size = " × ".join(map(str, one.item.values.shape))
        whose = made_of(one.item.meta)
        rows.append([one.name, whose, size, figure(told.get("mean")), figure(halves, 2), figure(form)])
    columns = ["scores", "model and data", "layers × heads", "mean score", "agreement of halves", "by form alone"]
    return Table("Scores in this folder", columns, rows)


def pairs(one: Named[ComparisonResult]) -> Table:
    """Return every pair of a comparison with its figures and its verdict in words."""
    rows = []
    for pair in one.item["pairs"]:
        drift = pair.get("drift") or {}
        rows.append(
            [
                f"{pair['a']} – {pair['b']}",
                VERDICTS.get(str(pair.get("verdict")), str(pair.get("verdict") or "–"))
                if pair.get("pearson_within_layer")
                else f"{pair.get('verdict') or '–'}, by weights alone",
                figure(pair.get("pearson_within_layer"), 2),
                number(pair.get("noise_ceiling_within_layer"), 2),
                chance(pair.get("p_permutation")),
                figure(pair.get("pearson"), 2),
                ", ".join(f"{part} {number(value['value'], 3)}" for part, value in sorted(drift.items())) or "–",
            ]
        )
    columns = ["models", "verdict", "r within layers", "noise ceiling", "by chance", "r over all", "weight drift"]
    return Table(f"Pairs of models: {one.name}", columns, rows)


def claims(found: Artefacts) -> Table | None:
    """Build the table of correlations between Truth Scores and attention to the evidence, a row for each trace."""
    rows = []
    for one in found.traces:
        tested = ((one.item.meta.get("claim") or {}).get(one.item.position) or {}).items()
        for measure, figures in tested:
            within = figure(figures.get("within_layer"), 2)
            raw = figure(figures.get("spearman"), 2)
            rows.append([one.name, measure.replace("_", " "), within, chance(figures.get("p_permutation")), raw])
    columns = ["trace", "measure", "rank correlation with Truth Scores, within layers", "by chance", "over all heads"]
    return Table("Do truthful heads look at the evidence?", columns, rows) if rows else None


def finders(found: Artefacts) -> list[Table]:
    """Return for each trace the heads that find the evidence best."""
    columns = ["head", "AUROC [95 % interval]", "lift", "pointing rate", "share on sinks", "Truth Score"]
    made = []
    for one in found.traces:
        rows = []
        for at in one.item.top(TOP):
            low, high = (float(end[at]) for end in one.ends) if one.ends else (None, None)
            shown = figure({"value": float(one.item.auroc[at]), "low": low, "high": high})
            others = (one.item.lift, one.item.pointing, one.item.sink, one.item.truth)
            rows.append([f"L{at[0]}H{at[1]}", shown, *(number(float(array[at])) for array in others)])
        made.append(Table(f"Heads that find the evidence best: {one.name}", columns, rows, folded=True))
    return made


def gates(found: Artefacts) -> Table:
    """Return every gate: its origin, what it scales, how many heads it moves and how far."""
    rows = []
    for one in found.gates:
        gate = one.item
        span = f"{number(float(gate.gate.min()), 2)} to {number(float(gate.gate.max()), 2)}"
        there = gate.gate.numel() - len(gate.absent)
        mean = number(float(gate.gate.mean()))
        rows.append([one.name, gate_origin(gate), gate.site, f"{gate.moved} of {there}", span, mean, str(gate.clipped)])
    return Table("Gates", ["gate", "origin", "site", "heads changed", "factors", "mean", "raised to the floor"], rows)


def candidates(one: Named[TuningResult]) -> Table:
    """Return every candidate of a tuning run: what it gains, what it costs, whether it was chosen."""
    tuning, rows = one.item, []
    for at, entry in enumerate(tuning["path"]):
        harm = entry["harm"]["kl"]
        state = SHOWN_STATES[candidate_state(at, harm, guard=tuning["guard"], chosen=tuning["chosen"])]
        gain, pair = entry["effect"]["margin"], entry["effect"].get("pair_accuracy")
        rows.append([entry["name"], signed(gain, 3), signed(pair), figure(harm, 4), state])
    columns = ["candidate", "margin gained (nats)", "pair accuracy gained", "harm (nats a token)", ""]
    return Table(f"Candidates: {one.name}", columns, rows, folded=True)


def results(one: Named[EvaluationResult]) -> list[Table]:
    """Return an evaluation: every run, how far ahead of others each is, and every other figure of what was tried."""
    summary = one.item
    primary, runs = str(summary["primary"]), summary["runs"]
    name = primary.replace("_", " ") + (" (less is better)" if lower_is_better(str(summary["task"])) else "")
    rows = []
    for run in runs:
        controls = run.get("controls")
        rank = f"{controls['beaten']} of {controls['of']}" if controls and controls["of"] else "–"
        guard, tested, cost = run.get("guard"), run.get("p"), run.get("cost")
        harm = "none" if run.get("kind") == "baseline" else figure(guard["kl"] if guard else None)
        p = tested.get("holm") if tested else None
        if p is None and tested:
            p = tested.get("paired")
        value, effect = figure(run["metrics"].get(primary)), signed((run.get("effect") or {}).get(primary))
        rows.append(
            [
                _called(run),
                "–" if run["name"] == "none" else str(run.get("kind") or "–"),
                value,
                effect,
                chance(p),
                rank,
                harm,
                str(cost["in_words"]) if cost else "–",
                SAID.get(str(run.get("verdict")), str(run.get("verdict") or "–")),
            ]
        )
    columns = ["run", "kind", name, "change [95 %]", "by chance", "controls beaten", "harm (nats a token)", "cost"]
    columns += ["verdict"]
    quiet = frozenset(at for at, run in enumerate(runs) if run.get("kind") == "control")
    title = f"{label(str(summary['task']))}, {summary['rows']} rows: {one.name}"
    shown = [run for run in runs if run.get("kind") != "control"]
    names = sorted({metric for run in shown for metric in run["metrics"]})
    every = [[metric.replace("_", " ")] + [_both(run, metric) for run in shown] for metric in names]
    heads = ["figure", *map(_called, shown)]
    tables = [Table(title, columns, rows, quiet=quiet), Table(f"Every figure: {one.name}", heads, every, folded=True)]
    return [*tables, *_leads(one)]


def _called(run: RunResult) -> str:
    return "untouched" if run["name"] == "none" else str(run["name"])


def _leads(one: Named[EvaluationResult]) -> list[Table]:
    """Return how far runs are ahead of each other on the same rows, where there is more than one to compare."""
    leads = [(run["name"], other, lead) for run in one.item["runs"] for other, lead in (run.get("ahead") or {}).items()]
    best = one.item.get("best")
    if best and best["run"]:
        leads = [(best["run"], other, lead) for other, lead in best["ahead"].items()] + leads
    columns = ["run", "ahead of", f"by, in {str(one.item['primary']).replace('_', ' ')} [95 %]"]
    rows = [[name, other, signed(lead)] for name, other, lead in leads]
    return [Table(f"Paired differences: {one.name}", columns, rows, folded=True)] if rows else []


def _both(run: RunResult, metric: str) -> str:
    effect = (run.get("effect") or {}).get(metric)
    value = figure(run["metrics"].get(metric))
    return f"{value}; change {signed(effect)}" if effect else value


def provenance(found: Artefacts) -> Table:
    """Return how every artefact was made: command, model, data hash, rows, seed, versions."""
    rows = []
    for kind, one in found.every:
        if kind == "pictures":
            continue
        meta = one.item if isinstance(one.item, Mapping) else one.item.meta
        meta = {**(meta.get("settings") or {}), **(meta.get("meta") or {}), **meta}
        packages = meta.get("packages") or {}
        versions = ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
        seed = meta.get("seed")
        cells = [
            kind,
            str(meta.get("command") or "–"),
            _data(meta),
            "–" if seed is None else str(seed),
            versions or "–",
        ]
        rows.append([one.path, *cells])
    return Table(
        "How it was made", ["file", "kind", "command", "data (SHA-256)", "seed", "versions"], rows, technical=True
    )


def _data(meta: Mapping[str, Any]) -> str:
    """Return the hashes of the data an artefact rests on."""
    data = meta.get("data") or (meta.get("scores") or {}).get("data")
    if isinstance(data, Mapping):
        files = [data, *(data.get("files") or [])]
        return ", ".join(str(one["sha256"]) for one in files if one.get("sha256")) or "–"
    hashes = [str(model.get("data_sha256")) for model in meta.get("models") or [] if model.get("data_sha256")]
    return ", ".join(dict.fromkeys(hashes)) or "–"
