"""Yes/no answers: read them as ours and as the released evaluators do, and compute both kinds of figures."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtri

from truthheads.benchmarks.base import Answer, Prediction
from truthheads.benchmarks.rows import digest
from truthheads.stats.resampling import Curve, Measured, Metric, Sums

Verdict = Literal["yes", "no"]

Parser = Callable[[str], Verdict | None]
"""From an answer's text to yes, no, or None where it is neither."""


def strict(text: str) -> Verdict | None:
    """Return the first word where it is yes or no and the other of the two does not occur in the first sentence.

    Case, and quotes, stars or blanks before the first word, do not matter: ``**Yes**, there is`` is yes;
    ``Yes and no`` and ``There is no dog`` are neither.
    """
    words = re.findall(r"\w+", re.split(r"[.!?\n]", text.strip().lstrip("*_\"'“‘`([").casefold(), maxsplit=1)[0])
    if not words or words[0] not in ("yes", "no"):
        return None
    if words[0] == "yes":
        return None if "no" in words else "yes"
    return None if "yes" in words else "no"


def released(text: str) -> Verdict | None:
    """Parse an answer as the method's released POPE tasks do: yes or no where the text begins with it as a word.

    Case is ignored. ``Yes and no`` is yes. The A-OKVQA task first cuts the text at its first comma, which never
    changes the result, since nothing but the beginning is looked at.

    Source:
        ``pope_process_results`` of the released evaluation tasks.
    """
    found = re.match(r"(yes|no)\b", text.lower().strip())
    return None if found is None else "yes" if found.group(1) == "yes" else "no"


def released_halueval(text: str) -> Verdict:
    """Parse an answer as the method's released HaluEval task does: as :func:`released`, and no for everything else.

    The text is first cut at its first blank line.

    Source:
        ``halueval_process_results`` of the released evaluation tasks, where ``unknown`` contains ``no``.
    """
    return released(text.split("\n\n")[0]) or "no"


def original_pope(text: str) -> Verdict:
    """Parse as POPE's own evaluator does: no where its first sentence has ``No``, ``no`` or ``not``, else yes.

    Words are what stands between single blanks once commas are gone; whatever is not no is yes, an empty answer too.

    Source:
        ``evaluate.py`` of POPE.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in words for word in ("No", "not", "no")) else "yes"


def original_halueval(text: str) -> Verdict | None:
    """Parse an answer as HaluEval's own evaluator does: whichever of ``Yes`` and ``No`` stands anywhere in the text.

    Capitals matter, parts of words count (``Not`` is no), both or neither is a failure.

    Source:
        ``evaluate.py`` of HaluEval.
    """
    text = text.replace(".", "")
    yes, no = "Yes" in text, "No" in text
    return None if yes == no else "yes" if yes else "no"


POPE_PARSERS: dict[str, Parser] = {"strict": strict, "released": released, "original": original_pope}

HALUEVAL_PARSERS: dict[str, Parser] = {"strict": strict, "released": released_halueval, "original": original_halueval}

LOGITS = "logits"


def parse_with(parsers: Mapping[str, Parser]) -> Callable[[Prediction, Answer, Any], Prediction]:
    """Make the parser of a yes/no line: the text, both log-probabilities, and how each parser reads the answer."""

    def parse(line: Prediction, answer: Answer, _: Any) -> Prediction:
        assert answer.yes is not None and answer.no is not None
        said = {name: reads(answer.text) for name, reads in parsers.items()}
        parsed = {LOGITS: "yes" if answer.yes > answer.no else "no", **said}
        return {**line, "answer": answer.text, "yes": answer.yes, "no": answer.no, "parsed": parsed}

    return parse


def f1(precision: Any, recall: Any) -> Any:
    """Return the harmonic mean; 0 where both are 0 or one is not defined."""
    return np.nan_to_num(2 * precision * recall / (precision + recall))


def sensitivity(sums: Sums, of: str) -> Any:
    """Return d′ = z(TPR) − z(FPR), one half added to every count: what a shift of the yes-rate leaves alone.

    Source:
        Macmillan and Creelman (2005), Detection Theory, chapter 1; the correction is Hautus (1995).
    """
    hits, alarms = sums[f"{of}:tp"], sums[f"{of}:fp"]
    return ndtri((hits + 0.5) / (sums["yes"] + 1)) - ndtri((alarms + 0.5) / (sums["no"] + 1))


def _metrics(of: str) -> dict[str, Metric]:
    """Return the figures of one reading of the answers; an answer that is neither yes nor no is wrong."""
    tp, fp, tn, said = f"{of}:tp", f"{of}:fp", f"{of}:tn", f"{of}:said"
    return {
        "accuracy": lambda s: (s[tp] + s[tn]) / s["n"],
        "precision": lambda s: s[tp] / (s[tp] + s[fp]),
        "recall": lambda s: s[tp] / s["yes"],
        "f1": lambda s: f1(s[tp] / (s[tp] + s[fp]), s[tp] / s["yes"]),
        "balanced_accuracy": lambda s: (s[tp] / s["yes"] + s[tn] / s["no"]) / 2,
        "tpr_minus_fpr": lambda s: s[tp] / s["yes"] - s[fp] / s["no"],
        "sensitivity": lambda s: sensitivity(s, of),
        "yes_rate": lambda s: (s[tp] + s[fp]) / s["n"],
        "unparsed": lambda s: 1 - s[said] / s["n"],
    }


def _released(of: str, *, as_pope: bool) -> dict[str, Metric]:
    """Return the figures as a released evaluator computes them, over every row as it stands in the files.

    Args:
        of: The parser.
        as_pope: The method's released tasks: an unparsed yes-item is no false negative, and the yes-rate is that of
            the gold answers. Otherwise as POPE's and HaluEval's own evaluators.
    """
    tp, fp, tn, fn = (f"{of}:all:{name}" for name in ("tp", "fp", "tn", "fn"))

    def precision(s: Sums) -> Any:
        return np.nan_to_num(s[tp] / (s[tp] + s[fp]))

    def recall(s: Sums) -> Any:
        return np.nan_to_num(s[tp] / (s[tp] + s[fn]))

    return {
        f"accuracy_{of}": lambda s: (s[tp] + s[tn]) / s["all"],
        f"precision_{of}": precision,
        f"recall_{of}": recall,
        f"f1_{of}": lambda s: f1(precision(s), recall(s)),
        f"yes_rate_{of}": (lambda s: s["all:yes"] / s["all"]) if as_pope else (lambda s: (s[tp] + s[fp]) / s["all"]),
    }


def two_golds(lines: Iterable[Prediction]) -> list[tuple[Prediction, Prediction]]:
    """Return the items that one prompt asks and that have different gold answers, the first two of each prompt."""
    first: dict[str | None, Prediction] = {}
    found: dict[str | None, tuple[Prediction, Prediction]] = {}
    for line in lines:
        before = first.setdefault(line["prompt"], line)
        if before["gold"] != line["gold"]:
            found.setdefault(line["prompt"], (before, line))
    return list(found.values())


def measure_yesno(lines: Sequence[Prediction], *, seed: int = 0) -> Measured:
    """Compute the figures of yes/no predictions.

    The figures without a suffix come from the logits where there are any, else from the strict parser; a question
    that stands in several splits counts once in them; two rows that give it different gold answers count both, so that
    no figure depends on their order. ``_strict`` is the strict parser beside logits; ``_released``
    and ``_original`` are the released evaluators' rules; ``_random`` and the like are single splits.

    Args:
        lines: Predictions of one run: ``gold``, ``parsed``, ``group``, ``prompt``, and ``yes``, ``no`` where known.
        seed: Random seed of the halves for the calibrated accuracy.
    """
    gold = np.array([line["gold"] == "yes" for line in lines])
    first: dict[tuple[str | None, str], int] = {}
    once = np.array([first.setdefault((line["prompt"], line["gold"]), at) == at for at, line in enumerate(lines)])
    logits = bool(lines) and all(line.get("yes") is not None for line in lines)
    readings = [name for name in (LOGITS, *POPE_PARSERS) if name in lines[0]["parsed"] and (logits or name != LOGITS)]
    main = readings[0]
    features: dict[str, Float[np.ndarray, " items"]] = {
        "n": once * 1.0, "yes": gold * once, "no": ~gold * once, "all": np.ones(len(lines)), "all:yes": gold * 1.0,
    }  # fmt: skip
    metrics = dict(_metrics(main))
    for name in readings:
        said = [line["parsed"].get(name) for line in lines]
        yes, no = np.array([word == "yes" for word in said]), np.array([word == "no" for word in said])
        counts = {"tp": yes & gold, "fp": yes & ~gold, "tn": no & ~gold, "fn": no & gold, "said": yes | no}
        features |= {f"{name}:{key}": count * once for key, count in counts.items()}
        features |= {f"{name}:all:{key}": count * 1.0 for key, count in counts.items()}
        if name == "strict" and main != "strict":
            metrics |= {f"{key}_strict": metric for key, metric in _metrics(name).items()}
        elif name not in (LOGITS, "strict"):
            metrics |= _released(name, as_pope=name == "released")
    splits = sorted({str(line.get("split") or "") for line in lines} - {""})
    for split in splits if len(splits) > 1 else []:
        inside = np.array([line.get("split") == split for line in lines])
        part = {key: features[f"{main}:all:{key}"] * inside for key in ("tp", "fp", "tn", "said")}
        part |= {"n": inside * 1.0, "yes": gold & inside, "no": ~gold & inside}
        features |= {f"{split}:{key}": value * 1.0 for key, value in part.items()}
        metrics |= {f"{key}_{split}": _inside(metric, split, main) for key, metric in _metrics(main).items()}
    curves = {}
    if logits:
        margin = np.array([line["yes"] for line in lines], dtype=float)
        margin -= np.array([line["no"] for line in lines], dtype=float)
        curves["auroc"] = Curve(margin[once], gold[once], np.flatnonzero(once))
        names = [str(line["group"]) for line in lines]
        features["calibrated"] = calibrated(margin, gold, names, seed=seed) * once
        metrics["calibrated_accuracy"] = lambda s: s["calibrated"] / s["n"]
    features = {name: np.asarray(value, dtype=float) for name, value in features.items()}
    right = features[f"{main}:tp"] + features[f"{main}:tn"] > 0
    groups = [str(line["group"]) for line in lines]
    return Measured(features, groups, metrics, "accuracy", curves=curves, right=right)


def _inside(metric: Metric, split: str, main: str) -> Metric:
    names = {"n": "n", "yes": "yes", "no": "no"} | {f"{main}:{key}": key for key in ("tp", "fp", "tn", "said")}
    return lambda sums: metric({name: sums[f"{split}:{key}"] for name, key in names.items()})


def calibrated(
    margin: Float[np.ndarray, " items"], gold: Bool[np.ndarray, " items"], groups: Sequence[str], *, seed: int
) -> Bool[np.ndarray, " items"]:
    """Return which items are right at the threshold that is best on the other half of the groups.

    Each half is the other's dev split, so every item is tested once, never at a threshold that it helped to choose.
    """
    half = np.array([int(digest(str(seed), group), 16) % 2 == 0 for group in groups])
    right = np.zeros(len(margin), dtype=bool)
    for test in (half, ~half):
        if test.any():
            threshold = best_threshold(margin[~test], gold[~test])
            right[test] = (margin[test] > threshold) == gold[test]
    return right


def best_threshold(margin: Float[np.ndarray, " items"], gold: Bool[np.ndarray, " items"]) -> float:
    """Return the threshold above which yes is right most often; 0 where there is no item, the lowest of equals.

    Thresholds are tried below all margins and midway between neighbours.
    """
    if not len(margin):
        return 0.0
    values, place = np.unique(margin, return_inverse=True)
    ups = np.bincount(place, gold, minlength=len(values))
    downs = np.bincount(place, ~gold, minlength=len(values))
    right = ups.sum() + np.r_[0.0, (downs - ups).cumsum()]  # yes above: every gold yes right; then one value goes over
    at = int(right.argmax())
    edges = np.r_[values[0] - 1.0, (values[1:] + values[:-1]) / 2, values[-1] + 1.0]
    return float(edges[at])
