"""The report's section on detectors: ROC and reliability curves, figures in tables, the most confident mistakes."""

from collections.abc import Sequence
from typing import NamedTuple, cast

from markupsafe import Markup

from truthheads.reporting.artifacts import Named
from truthheads.reporting.tables import Table
from truthheads.reporting.wording import figure, signed
from truthheads.results.detector import DetectionFigures, Detector
from truthheads.results.evaluation import DetectionEvaluation, EvaluationResult, Mistake

SIDE, MARGIN = 260, 34

NAMES = {"calibration_error": "expected calibration error", "auroc": "AUROC", "f1": "F1"}


class Judged(NamedTuple):
    """A detector's figures, and where they come from."""

    name: str
    figures: DetectionFigures
    mistakes: Sequence[Mistake]


def judged_detectors(
    evaluations: Sequence[Named[EvaluationResult]], detectors: Sequence[Named[Detector]]
) -> list[Judged]:
    """Collect what is known of detectors: on rows of their own that were left out, and on rows of others."""
    found = [Judged(f"{one.name} (rows left out of fitting)", one.item.figures, []) for one in detectors]
    for one in evaluations:
        if is_detection(one.item):
            told = cast(DetectionEvaluation, one.item)
            found.append(Judged(one.name, told["detection"], told["mistakes"]))
    return found


def is_detection(summary: EvaluationResult) -> bool:
    """Return whether a summary is that of a detector."""
    return summary.get("task") == "detect" and "detection" in summary


def detection_tables(one: Judged) -> list[Table]:
    """Return a detector's figures, those of simpler scores, and its most confident mistakes."""
    figures = one.figures
    rows = [[NAMES.get(name, name.replace("_", " ")), figure(value), ""] for name, value in figures["metrics"].items()]
    rows += [[f"AUROC, {kind}", figure(value), ""] for kind, value in figures["kinds"].items()]
    rows += [
        [f"AUROC of {name}", figure(told["auroc"]), signed(told["gain"])] for name, told in figures["baselines"].items()
    ]
    counted = f"{figures['rows']} answers, {figures['supported']} of them supported"
    tables = [Table(f"{one.name}: {counted}", ["figure", "95 %", "what the heads add"], rows)]
    if one.mistakes:
        wrong = [
            [
                told["id"],
                f"{told['supported']:.3f}",
                "supported" if told["label"] else "not supported",
                _cut(told["answer"]),
                _cut(told["question"]),
                _cut(told["context"]),
            ]
            for told in one.mistakes
        ]
        columns = ["row", "said to be supported", "is", "answer", "question", "context"]
        tables.append(Table(f"Most confident mistakes: {one.name}", columns, wrong, folded=True))
    return tables


def _cut(text: str, most: int = 400) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]} …"


def curves(one: Judged) -> Markup:
    """Draw the ROC curves of a detector and of simpler scores, and its reliability, as one SVG each."""
    figures = one.figures
    lines = [(name, list(zip(curve["false_positive"], curve["true_positive"], strict=True)))
             for name, curve in figures["roc"].items() if curve["true_positive"]]  # fmt: skip
    lines.sort(key=lambda line: line[0] == "detector")  # drawn last, on top
    told = figures["reliability"]
    points = list(zip(told["probability"], told["share"], strict=True))
    roc = _plot("ROC", "unsupported answers let through", "supported answers let through", lines, f"ROC of {one.name}")
    kept = _plot(
        "Reliability", "probability that was said", "share that is supported", [("detector", points)],
        f"reliability of {one.name}", dots=True,
    )  # fmt: skip
    return Markup('<div class="curves">{}{}</div>').format(roc, kept)


def _plot(
    title: str, across: str, up: str, lines: Sequence[tuple[str, list[tuple[float, float]]]], told: str, *,
    dots: bool = False,
) -> Markup:  # fmt: skip
    size = SIDE + 2 * MARGIN
    parts = [
        Markup('<rect class="frame" x="{}" y="{}" width="{}" height="{}"/>').format(MARGIN, MARGIN, SIDE, SIDE),
        Markup('<path class="even" d="{}"/>').format(_path([(0.0, 0.0), (1.0, 1.0)])),
    ]
    for name, points in lines:
        own = "own" if name == "detector" else "other"
        parts.append(Markup('<path class="{}" d="{}"><title>{}</title></path>').format(own, _path(points), name))
        for x, y in points if dots else []:
            at = _at(x, y)
            parts.append(Markup('<circle class="own" cx="{}" cy="{}" r="3"><title>{}</title></circle>').format(
                *at, f"{x:.2f} said, {y:.2f} supported"))  # fmt: skip
    parts += [
        Markup('<text x="{}" y="{}">{}</text>').format(MARGIN, MARGIN - 10, title),
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(size / 2, size - 10, across),
        Markup('<text transform="translate(14 {}) rotate(-90)" text-anchor="middle">{}</text>').format(size / 2, up),
    ]
    return Markup('<svg class="curve" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        size, size, told, Markup("").join(parts)
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{'L' if at else 'M'}{x} {y}" for at, (x, y) in enumerate(_at(*point) for point in points))


def _at(x: float, y: float) -> tuple[float, float]:
    return round(MARGIN + SIDE * x, 1), round(MARGIN + SIDE * (1 - y), 1)
