"""The summary in five sentences: every number comes from an artefact; what was not measured is named."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from truthheads.benchmarks.registry import label, lower_is_better
from truthheads.data.cautions import CHOSEN_FROM, ranked_from
from truthheads.reporting.artifacts import Artefacts, Named
from truthheads.reporting.charts import best_gate, gate_origin, largest_first, made_of
from truthheads.reporting.detection import is_detection
from truthheads.reporting.wording import chance, counted, figure, listed, number, signed
from truthheads.results.comparison import ComparisonResult, PairResult
from truthheads.results.evaluation import BaselineMark, EvaluationResult, RunResult
from truthheads.results.grounding import GroundResult
from truthheads.results.scores import Scores
from truthheads.results.trace import Trace
from truthheads.stats.figures import FigureJson
from truthheads.stats.thresholds import CHANCE_SCORE, FORM_PROBE_WARNING_ACCURACY, SIGNIFICANCE_LEVEL


def summary(found: Artefacts) -> list[str]:
    """Return five sentences: scores, inheritance, evidence, gates, effect.

    Args:
        found: What the folder holds. A stage without an artefact gets a sentence that says so; a result that speaks
            against the method is said as plainly as one for it.
    """
    return [_scores(found), _lineage(found), _evidence(found), _gates(found), _effect(found)]


def main_scores(found: Artefacts) -> Named[Scores] | None:
    """Return the scores that the summary is about: the base's, which is the first of a comparison, else the first."""
    firsts = [model["name"] for one in largest_first(found) for model in one.item["models"][:1]]
    return next((one for one in found.scores if one.name in firsts), next(iter(found.scores), None))


def _scores(found: Artefacts) -> str:
    one = main_scores(found)
    if one is None:
        return "No Truth Scores are in this folder, so this page cannot say which heads carry the context."
    item, best = one.item, one.item.top(1)
    model = made_of(item.meta) or one.name
    if not best:
        return f"No head of {model} has a Truth Score."
    head, total = f"L{best[0][0]}H{best[0][1]}", int(item.values.isfinite().sum())
    value, interval = float(item.values[best[0]]), one.ends
    if item.caution is not None:
        asked = counted(item.questions or 0, "question")
        return (
            f"The {counted(total, 'head')} of {model} were scored on {asked}, too few to rank them (from "
            f"{ranked_from(total)} on a good head can be told from a lucky one), so no best head is named."
            f"{_form(item.meta)}"
        )
    others = f"; {counted(len(found.scores) - 1, 'more score file')} can be seen below" if len(found.scores) > 1 else ""
    if interval is None:
        text = f"of {counted(total, 'head')} of {model}, {head} has the highest score, {number(value)} {item.unit}"
        return f"{text[0].upper()}{text[1:]}; no samples were kept, so how sure that is cannot be said{others}."
    middle = CHANCE_SCORE.get(item.method, 0.5)
    above = int((np.nan_to_num(interval[0], nan=-np.inf) > middle).sum())
    shown = figure({"value": value, "low": interval[0][best[0]], "high": interval[1][best[0]]})
    meaning = {
        "probe": "tell better than chance whether an answer agrees with its context, without a look at the rest of the "
        f"model; the best, {head}, is right on {shown} of the answers (chance is 0.5)",
        "attribution": "push the model towards the answer that agrees with its context; the strongest, "
        f"{head}, by {shown} nats",
        "evidence": "look at the evidence more than at the rest of the context; the best, "
        f"{head}, with AUROC {shown} (chance is 0.5)",
    }.get(item.method, f"score above chance; the best, {head}, {shown}")
    return f"Of {total} heads of {model}, {above} {meaning}{others}.{_form(item.meta)}"


def _form(meta: Mapping[str, Any]) -> str:
    """Warn where the form of the answers alone tells truthful from untruthful; nothing where it does not."""
    form: FigureJson | None = ((meta.get("summary") or {}).get("form") or {}).get("accuracy")
    if not form or (form["value"] or 0) <= FORM_PROBE_WARNING_ACCURACY:
        return ""
    share = figure(form)
    return (
        f" But the form of the answers alone (length, punctuation) tells {share} of them, so scores may measure form."
    )


def _lineage(found: Artefacts) -> str:
    pairs = [pair for one in largest_first(found) for pair in one.item["pairs"] if not _itself(one.item, pair)]
    if not pairs:
        return "No two models were compared, so this page says nothing about whether scores were inherited."
    scored = [pair for pair in pairs if pair.get("pearson_within_layer")]
    by_verdict: dict[str, list[PairResult]] = {}
    for pair in _once(scored or pairs):
        by_verdict.setdefault(str(pair.get("verdict") or pair.get("weights_verdict")), []).append(pair)
    words = {
        "inherited": "use the same heads for the same work" if scored else "are kin",
        "partly": "share a part of it",
        "not related": "have nothing to do with each other",
        "can't tell": "cannot be told apart from chance",
    }
    parts = []
    for verdict in (*words, *sorted(set(by_verdict) - set(words))):
        members = by_verdict.get(verdict, [])
        if members:
            names = listed([_pair(pair) for pair in members], most=3)
            parts.append(f"{names} {words.get(verdict, 'are')} ({verdict}{_span(members)})")
    by = "Truth Scores" if scored else "weights"
    return f"Compared by {by}, {'; '.join(parts)}."


def _itself(comparison: ComparisonResult, pair: PairResult) -> bool:
    """Return whether both sides are one model, scored on two data sets."""
    models = {one["name"]: one.get("model") for one in comparison["models"]}
    return models.get(pair["a"]) is not None and models.get(pair["a"]) == models.get(pair["b"])


def _once(pairs: list[PairResult]) -> list[PairResult]:
    """Return pairs without those that a second comparison repeats."""
    return list({(pair["a"], pair["b"]): pair for pair in reversed(pairs)}.values())[::-1]


def _pair(pair: PairResult) -> str:
    return f"{pair['a']}\u2009/\u2009{pair['b']}"


def _span(pairs: list[PairResult]) -> str:
    """Return the correlation within layers: of one pair with its interval, of several from least to largest."""
    known = [within for pair in pairs if (within := pair.get("pearson_within_layer"))]
    if not known:
        return ""
    if len(known) == 1:
        return f", r within layers {figure(known[0], 2)}"
    values = sorted(value for one in known if (value := one["value"]) is not None)
    return f", r within layers {number(values[0], 2)} to {number(values[-1], 2)}" if values else ""


def _evidence(found: Artefacts) -> str:
    if not found.traces:
        return "Attention was not traced, so this page does not say whether the truthful heads look at the evidence."
    one = next((trace for trace in found.traces if trace.item.meta.get("claim")), found.traces[0])
    item = one.item
    best = item.top(1)
    whose = made_of(item.meta) or one.name
    if not best:
        return f"The trace of {whose} names no evidence that could be looked at."
    if item.caution is not None:
        asked = counted(item.questions or 0, "question")
        return (
            f"Attention of {whose} was traced on {asked}, too few to rank heads or to say whether the truthful ones "
            "look at the evidence."
        )
    low, high = (end[best[0]] for end in one.ends) if one.ends else (None, None)
    found_by = figure({"value": float(item.auroc[best[0]]), "low": low, "high": high})
    head = f"L{best[0][0]}H{best[0][1]}"
    text = f"Of all heads of {whose}, {head} finds the evidence best (AUROC {found_by}, chance 0.5)"
    answers = [answer for trace in found.traces if (answer := _claimed(trace.item))]
    if not answers:
        return f"{text}; whether the truthful heads are the ones that look was not tested."
    if len(answers) == 1:
        claim, figures = answers[0]
        return f"{text}{', and' if claim == FOUND else ', but'} {claim} {figures}."
    counts = [(claim, [figures for said, figures in answers if said == claim]) for claim in (FOUND, NO_SIGN, REVERSED)]
    parts = [f"in {len(each)} of {len(answers)} traces {claim} {each[0]}" for claim, each in counts if each]
    return f"{text}; {', '.join(parts)}."


FOUND = "heads with higher Truth Scores find it better"

NO_SIGN = "there is no sign that heads with higher Truth Scores find it better"

REVERSED = "heads with higher Truth Scores find it worse"


def _claimed(item: Trace) -> tuple[str, str] | None:
    """Say whether heads with high Truth Scores look at the evidence, with the figures; None where it was not tested."""
    tested = ((item.meta.get("claim") or {}).get(item.position) or {}).get("auroc")
    if not tested:
        return None
    within, p = tested["within_layer"], tested.get("p_permutation")
    figures = f"(rank correlation within layers {figure(within, 2)}, {chance(p)})"
    if p is None or p >= SIGNIFICANCE_LEVEL or not (within["low"] > 0 or within["high"] < 0):
        return NO_SIGN, figures
    return (FOUND if within["value"] > 0 else REVERSED), figures


def _gates(found: Artefacts) -> str:
    if not found.gates and not found.tunings:
        return "No gate was built, so no head was made louder or quieter."
    text = ""
    if found.gates:
        few = len(found.gates) <= 2
        each = [f"{one.name} ({gate_origin(one.item)})" if few else one.name for one in found.gates]
        least = min(float(one.item.gate.min()) for one in found.gates)
        most = max(float(one.item.gate.max()) for one in found.gates)
        span = f"heads are scaled by {number(least, 2)} to {number(most, 2)}"
        text = f"{counted(len(each), 'gate')} {'was' if len(each) == 1 else 'were'} built, {listed(each)}; {span}"
    if found.tunings:
        tuning = found.tunings[0].item
        at = tuning["chosen"]
        if at is None:
            tuned = "tuning chose none of its candidates, since none gained enough within the guard"
        else:
            entry = tuning["path"][at]
            tuned = (
                f"tuning chose {entry['name']}: {signed(entry['effect']['margin'], 2)} nats of margin on its own dev "
                f"questions for {figure(entry['harm']['kl'], 3)} nats a token on text that has nothing to do with them"
            )
        dev = (tuning.get("rows") or {}).get("dev_groups", CHOSEN_FROM)
        if dev < CHOSEN_FROM:
            tuned += f", but judged on {counted(dev, 'dev question')}, too few to tell a good gate from a lucky one"
        text = f"{text}, and {tuned}" if text else f"{tuned[0].upper()}{tuned[1:]}"
    return f"{text}."


def _effect(found: Artefacts) -> str:
    evaluations = [one for one in found.evaluations if not is_detection(one.item)]
    parts = [part for one in evaluations[:3] if (part := judged(one.item))]
    if not parts:
        return "No gate was evaluated on a benchmark, nor an adapter, so this page does not say whether they help."
    more = len(evaluations) - 3
    joined = "; ".join([*parts[:1], *(part[:1].lower() + part[1:] for part in parts[1:])])
    return f"{joined}{f'; {more} more in the table' if more > 0 else ''}."


def judged(summary: EvaluationResult) -> str:
    """Sum up an evaluation in one sentence, without its full stop: its gates, or the best of all that was tried."""
    best, primary = best_gate(summary), str(summary["primary"])
    name = primary.replace("_", " ")
    begun = f"On {label(str(summary['task']))} ({summary['rows']} rows)"
    if "best" in summary and any(run.get("kind") in ("adapter", "baseline") for run in summary["runs"]):
        return f"{begun} {summary['best']['in_words']}"
    if best is None:
        plain = figure(summary["runs"][0]["metrics"].get(primary))
        return f"{begun} the ungated model reaches {name} {plain}; no gate was run to compare"
    name += " (less is better)" if lower_is_better(str(summary["task"])) else ""
    gates = [run for run in summary["runs"] if run.get("kind") == "gate"]
    better = [str(run["name"]) for run in gates if str(run.get("verdict")).startswith("better")]
    worse = [str(run["name"]) for run in gates if run.get("verdict") == "worse"]
    bad = f"; {listed(worse)} made it worse" if worse and best["name"] not in worse else ""
    changed = f"changed {name} by {signed(best['effect'][primary])}{_rank(best)}{bad}"
    if best["name"] in better:
        return f"{begun} the gate {best['name']} is {best['verdict']}: it {changed}"
    if better:
        return f"{begun} {listed(better)} helped, and {best['name']}, whose change is largest but not sure, {changed}"
    if best["name"] in worse:
        who = f"the gate {best['name']}" if len(gates) == 1 else f"even the best of {len(gates)} gates, {best['name']},"
        return f"{begun} {who} made it worse: it {changed}"
    if len(gates) == 1:
        return f"{begun} the gate {best['name']} did not help measurably: it {changed}"
    return f"{begun} none of the {len(gates)} gates helped measurably: the best, {best['name']}, {changed}"


def asked_beside(summary: EvaluationResult) -> list[str]:
    """Say how each baseline was asked, and why there is no harm to measure."""
    marks: Mapping[str, BaselineMark] = (summary.get("settings") or {}).get("baselines") or {}
    told = []
    for name, mark in marks.items():
        if "text" in mark:
            how = f"begins every prompt with “{mark['text']}”"
        else:
            alpha = number(mark.get("alpha"), 2)
            how = f"is context-aware decoding, (1 + {alpha}) × logits with the context − {alpha} × logits without it"
        told.append(
            f"{name} {how}. The model stays as it is, and text without a context comes out as before: there is no harm "
            "to measure."
        )
    return told


def _rank(run: RunResult) -> str:
    controls = run.get("controls")
    if not controls or not controls["of"]:
        return ", without controls"
    beaten, of = controls["beaten"], controls["of"]
    if of == 1:
        return f", {'' if beaten else 'not '}ahead of its only control"
    return f", ahead of {'none' if not beaten else 'all' if beaten == of else beaten} of its {counted(of, 'control')}"


def grounded(one: Named[GroundResult]) -> str:
    """Say what ``truthheads ground`` decided, and why."""
    told = one.item
    remedy = told.get("remedy", "gate")
    model = {"gate": "gated model", "adapter": "adapted model"}.get(str(remedy), "model")
    tested = f"on {told['test_rows']} test rows the verdict is “{told['verdict']}”"
    if told["better"]:
        text = f"The {model} was written to {told['exported']}: {tested}"
        beaten = told.get("controls") or {}
        text += ", and it beats every control" if beaten and beaten["beaten"] == beaten["of"] else ""
        best = next((tried for tried in told.get("remedies", []) if tried["name"] == remedy), None)
        ahead = best["beyond_prompt"] if best is not None else None
        return text + (f", {signed(ahead)} beyond an instruction to use the context." if ahead else ".")
    if told["anyway"] and told["exported"]:
        return (
            f"The {model} was written to {told['exported']} because --export-anyway was given; nothing shows that "
            f"it is better: {tested}."
        )
    return " ".join([f"No model was written: {tested}.", *told.get("advice", [])])
