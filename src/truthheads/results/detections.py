"""What a detector says of answers: one line of ``detections.jsonl`` each."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, cast

import numpy as np
from jaxtyping import Float

from truthheads.errors import ArtifactError
from truthheads.results.frames import as_frame
from truthheads.stats.calibration import Cuts
from truthheads.storage.files import dumps, replaced, unwritable

Verdict = Literal["supported", "not supported", "unsure"]

VERDICTS: tuple[Verdict, ...] = ("supported", "not supported", "unsure")

OURS = ("id", "supported", "verdict", "sentences")
"""Columns of ours; a row's own column of such a name is written with ``row_`` in front."""


class Sentence(NamedTuple):
    """One sentence of an answer.

    Attributes:
        start: Its first character in the answer.
        end: The one behind its last.
        supported: Probability that the context supports it.
    """

    start: int
    end: int
    supported: float


class DetectionsMeta(TypedDict, total=False):
    """How detections were made: model, data, detector, cuts and prompt."""

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    detector: Mapping[str, Any]
    low: float | None
    high: float | None
    chat: bool
    truncate: bool
    warnings: list[str]


class DetectionsSummary(TypedDict):
    """The JSON result of ``truthheads detect``: how many answers got which verdict, and how it was made."""

    rows: int
    verdicts: dict[str, int]
    mean: float | None
    meta: DetectionsMeta
    out: str


class DetectionRow(TypedDict):
    """One row of the table."""

    id: str
    supported: float
    verdict: Verdict
    sentences: int
    least: float
    answer: str


@dataclass(frozen=True, slots=True)
class Detection:
    """What a detector says of one answer.

    Attributes:
        id: The row's.
        supported: Probability that the context supports the answer.
        verdict: By the detector's threshold, or by the cuts that a wanted precision gave.
        sentences: The answer's sentences; one sentence has the probability of the answer.
        answer: The answer.
        label: True where the row says that it is supported, False where it says that it is not, else None.
        kind: The row's kind, if it has one.
        columns: The row's own columns.
    """

    id: str
    supported: float
    verdict: Verdict
    sentences: tuple[Sentence, ...]
    answer: str
    label: bool | None = None
    kind: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """Return the line of ``detections.jsonl``: our columns beside the row's own."""
        own = {f"row_{name}" if name in OURS[1:] else name: value for name, value in self.columns.items()}
        pair = own.get("answer") not in (None, self.answer) or "answer" not in own
        said: dict[str, Any] = {"answer": self.answer} if pair else {}
        if self.label is not None and own.get("label") is None:
            said["label"] = int(self.label)
        if self.kind is not None and "kind" not in own:
            said["kind"] = self.kind
        sentences = [one._asdict() for one in self.sentences]
        ours = {"id": self.id, "supported": self.supported, "verdict": self.verdict, "sentences": sentences}
        return dumps({**own, **said, **ours})

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> "Detection":
        """Read what :meth:`line` wrote.

        Raises:
            LookupError, TypeError, ValueError: It is no such line.
        """
        verdict = cast(Verdict, line["verdict"])
        if verdict not in VERDICTS:
            raise ValueError(f"verdict {verdict!r}")
        label = line.get("label")
        return cls(
            id=str(line["id"]),
            supported=float(line["supported"]),
            verdict=verdict,
            sentences=tuple(
                Sentence(int(one["start"]), int(one["end"]), float(one["supported"]))
                for one in line.get("sentences") or ()
            ),
            answer=str(line.get("answer", "")),
            label=bool(label) if label in (0, 1) else None,
            kind=None if line.get("kind") is None else str(line["kind"]),
            columns={name: value for name, value in line.items() if name not in OURS},
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Detections:
    """What a detector says of answers, in the order of their rows.

    Attributes:
        rows: One for each answer.
        meta: How they were made; empty where they were read from a file.
    """

    rows: Sequence[Detection]
    meta: DetectionsMeta = field(default_factory=lambda: DetectionsMeta())

    @property
    def probability(self) -> Float[np.ndarray, " rows"]:
        """Probability that the context supports each answer."""
        return np.array([row.supported for row in self.rows], dtype=float)

    @property
    def counts(self) -> dict[str, int]:
        """How many answers got each verdict."""
        return {verdict: sum(row.verdict == verdict for row in self.rows) for verdict in VERDICTS}

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Detection]:
        return iter(self.rows)

    def __getitem__(self, at: int) -> Detection:
        return self.rows[at]

    def table(self) -> list[DetectionRow]:
        """Return the answers as rows: probability, verdict, number of sentences and the least supported of them."""
        return [
            {
                "id": row.id,
                "supported": row.supported,
                "verdict": row.verdict,
                "sentences": len(row.sentences),
                "least": min((one.supported for one in row.sentences), default=row.supported),
                "answer": row.answer,
            }
            for row in self.rows
        ]

    def to_pandas(self) -> Any:
        """Return :meth:`table` as a data frame."""
        return as_frame(self.table())

    def __repr__(self) -> str:
        told = ", ".join(f"{count} {verdict}" for verdict, count in self.counts.items() if count)
        return f"Detections({len(self.rows)} answers: {told})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(row.id)}</td><td>{row.supported:.3f}</td><td>{row.verdict}</td>"
            f"<td>{escape(row.answer[:SHOWN_CHARACTERS])}</td></tr>"
            for row in self.rows[:SHOWN]
        )
        head = "<tr><th>id</th><th>supported</th><th>verdict</th><th>answer</th></tr>"
        return f"<p>{escape(repr(self))}</p><table>{head}{rows}</table>"

    def save(self, path: str | Path) -> None:
        """Write one JSON object a line.

        Raises:
            ArtifactError: The file could not be written.
        """
        try:
            with replaced(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as lines:
                lines.writelines(row.line() + "\n" for row in self.rows)
        except OSError as error:
            raise unwritable(Path(path), error) from error

    @classmethod
    def load(cls, path: str | Path) -> "Detections":
        """Read a file of detections.

        Raises:
            ArtifactError: It is missing, or a line is no detection.
        """
        return cls(list(read_detections(Path(path))))


SHOWN, SHOWN_CHARACTERS = 20, 200
"""What a notebook shows of the first answers."""


def read_detections(path: Path) -> Iterator[Detection]:
    """Yield the lines of a file one by one.

    Raises:
        ArtifactError: It is missing, or a line is no detection.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield Detection.of(json.loads(line))
                except (LookupError, TypeError, ValueError, AttributeError) as error:
                    raise ArtifactError(
                        f"{path}:line {number} is no detection",
                        expected="an object with id, supported and verdict",
                        got=line[:80].strip() or "an empty line",
                        fix="write it again with `truthheads detect`",
                    ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path} cannot be read", expected="a file of detections", got=str(error), fix="check the path"
        ) from error


def verdict_of(probability: float, cuts: Cuts) -> Verdict:
    """Return the verdict on a probability."""
    if probability >= cuts.high:
        return "supported"
    return "not supported" if probability < cuts.low else "unsure"
