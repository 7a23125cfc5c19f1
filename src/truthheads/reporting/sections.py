"""The page's sections: two sentences on what was measured and how to read it, then figures and tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

from markupsafe import Markup

from truthheads.reporting import charts, detection, tables
from truthheads.reporting.artifacts import Artefacts
from truthheads.reporting.charts import Arrays, Bars, Matrix, Panel, Scatter, TuningPath, panels
from truthheads.reporting.sentences import asked_beside, judged
from truthheads.reporting.tables import Table
from truthheads.results.pictures import AttentionPicture

GROUPS = {
    "scores": (
        "Truth Scores",
        "How well each head alone tells an answer that agrees with its context from one that does not. Yellow heads "
        "tell best, dark ones are near the guess; all panels of one unit share their colours.",
    ),
    "evidence": (
        "Attention to the evidence",
        "How well each head's attention finds the words, or the part of the image, that settle the answer. Orange "
        "heads look there more than chance would, blue ones less.",
    ),
    "gates": (
        "Gates",
        "The factor that a gate multiplies each head's output with; 1 leaves a head as it is. Orange heads are made "
        "louder, blue ones quieter.",
    ),
    "drift": (
        "Weight drift",
        "How far each head's weights have moved between two models, relative to their size. Dark heads have stayed "
        "where they were; from 1 on nothing of the first model is left.",
    ),
}

MOST_PICTURE_BYTES = 4 * 2**20

MOST_ROWS = 4

KEYS = "choose a head by click, by arrow keys (Home: the largest), or by its name below"


class Chart(NamedTuple):
    """One figure of the page.

    Attributes:
        kind: ``map``, ``scatter``, ``matrix``, ``bars`` or ``path``.
        at: Its number among those of its kind.
        title: Above it.
        note: Below the title.
        told: What it is, for people who do not see it.
        heads: Whether heads can be chosen in it.
    """

    kind: str
    at: int
    title: str
    note: str
    told: str
    heads: bool = False


class Group(NamedTuple):
    """Figures that belong together, under a title of their own where it is not empty."""

    title: str
    intro: str
    charts: Sequence[Chart]
    wide: bool = True


@dataclass(slots=True)
class Section:
    """One section of the page: intro, sentences that lead, figures, tables, notes, pictures, drawings."""

    id: str
    title: str
    intro: str
    groups: list[Group] = field(default_factory=list)
    leads: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[tuple[str, list[AttentionPicture]]] = field(default_factory=list)
    drawings: list[Markup] = field(default_factory=list)


class PageJson(TypedDict):
    """What the page's script draws from, as JSON; the names are the script's."""

    arrays: list[list[float | None]]
    maps: list[Panel]
    scatters: list[Scatter]
    matrices: list[Matrix]
    bars: list[Bars]
    paths: list[TuningPath]


@dataclass(slots=True)
class PageData:
    """What the page's script draws from; the names are the script's."""

    arrays: Arrays = field(default_factory=Arrays)
    maps: list[Panel] = field(default_factory=list)
    scatters: list[Scatter] = field(default_factory=list)
    matrices: list[Matrix] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    paths: list[TuningPath] = field(default_factory=list)

    def json(self) -> PageJson:
        """Return it for the page."""
        return {
            "arrays": self.arrays.lists,
            "maps": self.maps,
            "scatters": self.scatters,
            "matrices": self.matrices,
            "bars": self.bars,
            "paths": self.paths,
        }


def sections(found: Artefacts) -> tuple[list[Section], PageData, list[str]]:
    """Return the sections for which there is something to show, what their figures are drawn from, and warnings."""
    data, warnings = PageData(), list[str]()
    made = [
        _answers(found),
        _heads(found, data),
        _lineage(found, data),
        _evidence(found, warnings),
        _gates(found),
        _tuning(found, data),
    ]
    made += [_evaluation(found, data), _detection(found), _provenance(found)]
    return [section for section in made if section is not None], data, warnings


def _answers(found: Artefacts) -> Section | None:
    shown = [one for one in found.groundings if one.item.get("answers")]
    if not shown:
        return None
    return Section(
        "answers",
        "Answers before and after",
        "What the model writes to rows that nothing was learned from, as it is and with the remedy. The rows are the "
        "first in which the two differ: none was picked by what it says.",
        tables=[table for one in shown for table in tables.answers(one)],
    )


def _heads(found: Artefacts, data: PageData) -> Section | None:
    data.maps = panels(found, data.arrays)
    if not data.maps:
        return None
    section = Section(
        "heads",
        "The heads, side by side",
        "Every small square is one attention head, with early layers at the bottom and late ones at the top; grey "
        f"means not measured. Point at a square for its value, and {KEYS}: it is marked in every panel.",
    )
    for group, (title, intro) in GROUPS.items():
        drawn = [
            Chart(
                "map",
                at,
                panel["title"],
                panel["note"],
                f"heat map of {' by '.join(map(str, panel['shape']))} heads",
                True,
            )
            for at, panel in enumerate(data.maps)
            if panel["group"] == group
        ]
        if drawn:
            section.groups.append(Group(title, intro, drawn, wide=False))
    if found.scores:
        section.tables = [tables.models(found), *(tables.best_heads(one) for one in found.scores)]
        section.notes = [
            "Mean score: over all heads. Agreement of halves: correlation between scores from two halves of the "
            "questions, the most that two models could agree. By form alone: what the answers' length and punctuation "
            "give away without reading them; 0.5 is nothing. Of many heads the best one is partly the luckiest: its "
            "score on new questions is likely a little lower."
        ]
    return section


def _lineage(found: Artefacts, data: PageData) -> Section | None:
    if not found.comparisons:
        return None
    section = Section(
        "lineage",
        "Are the scores inherited?",
        "Where one model was made from another, the same heads should do the same work, so their scores are compared "
        "here head by head. The correlation that counts is taken within layers, since depth alone makes any two models "
        "alike; read it against the noise ceiling, the most that two noisy measurements can agree.",
    )
    data.scatters = charts.scatters(found, data.arrays)
    drawn = []
    if data.scatters:
        note = "One point per head, coloured from early (dark) to late layers (yellow); broken line: equal scores."
        drawn.append(Chart("scatter", 0, "Scores of two models", note, "scatter of heads", True))
    for one in charts.largest_first(found):
        matrix, bars = charts.matrix(one.item), charts.agreement_bars(one.item)
        if matrix is not None:
            data.matrices.append(matrix)
            note = "Correlation within layers; orange: the same heads score high, white: no relation."
            drawn.append(Chart("matrix", len(data.matrices) - 1, f"Matrix of models: {one.name}", note, "matrix"))
        if bars is not None:
            data.bars.append(bars)
            note = "Bar: 95 % interval; upright line: noise ceiling."
            told = "correlation of each pair with its interval and ceiling"
            drawn.append(Chart("bars", len(data.bars) - 1, f"Agreement of pairs: {one.name}", note, told))
        section.tables.append(tables.pairs(one))
        for pair in one.item["pairs"]:
            section.notes += [f"{pair['a']} and {pair['b']}: {note}." for note in pair.get("notes") or []]
        section.notes += [f"{triple['in_words']}." for triple in one.item.get("triples") or []]
    section.notes = list(dict.fromkeys(section.notes))
    section.groups = [Group("", "", drawn)] if drawn else []
    return section


def _evidence(found: Artefacts, warnings: list[str]) -> Section | None:
    if not found.traces and not found.pictures:
        return None
    claims = tables.claims(found)
    section = Section(
        "evidence",
        "Do truthful heads look at the evidence?",
        "For each question it is known which words or which part of the image settle the answer, and how much every "
        "head attends to them was measured where the answer is given. An AUROC of 0.5 is looking blindly, 1 is looking "
        "at the evidence before all else; the pictures show what the best heads look at, beside the worst.",
        tables=[*([claims] if claims else []), *tables.finders(found)],
    )
    room = MOST_PICTURE_BYTES
    for one in found.pictures:
        drawn = one.item.pictures
        rows, left_out = [], len(drawn[MOST_ROWS:])
        for row in drawn[:MOST_ROWS]:
            size = _size(row)
            if size > room:
                left_out += 1
                continue
            room -= size
            rows.append(row)
        if left_out:
            warnings.append(f"{one.path}: {left_out} of {len(drawn)} rows are left out to keep this page small")
        if rows:
            section.pictures.append((one.item.title.strip() or one.name, rows))
    return section


def _size(row: AttentionPicture) -> int:
    """Return about how many bytes a row of pictures takes on the page."""
    pieces = sum(90 + len(piece.text) for panel in row.panels for piece in panel.pieces)
    return len(row.image) + pieces + sum(110 * (len(panel.cells) + len(row.boxes)) for panel in row.panels)


def _gates(found: Artefacts) -> Section | None:
    if not found.gates:
        return None
    return Section(
        "gates",
        "The gates",
        "A gate multiplies each head's output by one fixed factor: above 1 a head is louder, below 1 quieter. The heat "
        "maps above show every factor; this table says where they come from and how far they go.",
        tables=[tables.gates(found)],
    )


def _tuning(found: Artefacts, data: PageData) -> Section | None:
    if not found.tunings:
        return None
    section = Section(
        "tuning",
        "How the gate was chosen",
        "Every candidate was tried on questions kept for it: up is more margin between the truthful and the untruthful "
        "answer, right is more harm to text that has nothing to do with them. Only candidates whose interval ends left "
        "of the guard may be chosen, and the gain flatters the gate, since the same questions chose it.",
    )
    for one in found.tunings:
        path = charts.tuning_path(one.item)
        if path is not None:
            data.paths.append(path)
            chart = Chart("path", len(data.paths) - 1, f"Gain and harm: {one.name}", "", "scatter of candidates")
            section.groups.append(Group("", "", [chart]))
        section.tables.append(tables.candidates(one))
        why = str(one.item.get("why") or "")
        section.notes += [f"{one.name}: {why}."] if why else []
    return section


def _detection(found: Artefacts) -> Section | None:
    judged = detection.judged_detectors(found.evaluations, found.detectors)
    if not judged:
        return None
    section = Section(
        "detection",
        "Do the heads tell which answers are supported?",
        "A detector reads a few heads at an answer's last token and says how probable it is that the context supports "
        "the answer. An AUROC of 0.5 is guessing, 1 is always right. The heads tell something only where their curve "
        "lies above those of log P, of the answers' form and of their length, drawn in grey; in the second drawing "
        "points on the broken line keep what the probabilities promise.",
    )
    for one in judged:
        section.drawings.append(detection.curves(one))
        section.leads.append(f"{one.name}: {one.figures['verdict']}.")
        section.tables += detection.detection_tables(one)
    return section


def _evaluation(found: Artefacts, data: PageData) -> Section | None:
    evaluations = [one for one in found.evaluations if not detection.is_detection(one.item)]
    if not evaluations:
        return None
    section = Section(
        "evaluation",
        "What helps?",
        "The same benchmark was run on the model as it is, with each gate or adapter, with what a user could do "
        "without them (an instruction, context-aware decoding), and with controls: gates and adapters of the same size "
        "that do not know which head is which. A run has helped only where the interval of its change lies wholly on "
        "the good side of 0, and it tells something about heads only where it also beats its controls.",
    )
    for one in evaluations:
        bars = charts.effect_bars(one.item)
        if bars is not None:
            data.bars.append(bars)
            note = "Blue: what was tried; grey: controls."
            chart = Chart("bars", len(data.bars) - 1, f"Change in each run: {one.name}", note, "changes with intervals")
            section.groups.append(Group("", "", [chart]))
        section.leads.append(f"{judged(one.item)}.")
        section.tables += tables.results(one)
        section.notes += [str(note) for note in one.item.get("notes") or []]
        section.notes += asked_beside(one.item)
    return section


def _provenance(found: Artefacts) -> Section:
    return Section(
        "provenance",
        "How it was made",
        "Every file that this page was made from, with the command that wrote it, the hash of its data, its seed and "
        "the versions of what computed it. The same command on the same data gives the same file, byte by byte.",
        tables=[tables.provenance(found)],
    )
