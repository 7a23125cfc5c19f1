"""Read questions in our layout and in those of the field: HaluEval, NQ-Swap, RLHF-V, POPE, TruthfulQA, RAGTruth."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from truthheads.data.columns import find_layout
from truthheads.data.contradictions import Said, hashed
from truthheads.data.fields import BadField
from truthheads.data.grouping import Grouping
from truthheads.data.held import QuestionsLike, RowsLike, held_rows
from truthheads.data.hub import address, on_hub
from truthheads.data.images import image_path
from truthheads.data.layouts import (
    FOR_DETECTION,
    LABEL_WORDS,
    LAYOUTS,
    WITH_HALVES,
    Layout,
    checked,
    label_word,
    respelled,
)
from truthheads.data.lines import Row
from truthheads.data.questions import Question, QuestionRows, Questions
from truthheads.data.ragtruth import open_rows
from truthheads.data.tables import read_rows
from truthheads.errors import DataError
from truthheads.storage.files import as_path, file_sha256

IMAGE_PATH_RULE = (
    "a path inside the folder that images start from (the question file's own, or --images) or the current one"
)


LOOKED_AT = 1000
"""Rows in which the words are looked up that a file has for labels."""

RIGHT = ("supported", "supports", "true", "correct", "faithful", "entailment", "consistent", "factual", "right", "pass")
"""Words that are likely to be the label of a truthful answer."""


def as_questions(data: QuestionsLike, *, halves: bool = False, answers: bool = False) -> Sequence[Question]:
    """Return the questions that a person means: those given, or those of a file, a table or rows in memory.

    Args:
        data: Questions, or anything that :func:`read_questions` reads.
        halves: As there.
        answers: As there; the rows' own columns are kept, and rows in memory need not all have the same ones.

    Raises:
        DataError: It is none of these, or a row cannot be used.
    """
    paired = getattr(data, "questions", None)  # what make_pairs returned; a DataFrame may have such a column
    given = paired if isinstance(paired, list) else data
    if isinstance(given, QuestionRows):
        return given
    if isinstance(given, Sequence) and not isinstance(given, str) and all(isinstance(one, Question) for one in given):
        return cast("Sequence[Question]", given)
    return read_questions(cast("RowsLike", given), halves=halves, answers=answers, columns=answers)


IN_MEMORY = Path("rows in memory")
"""What stands for the file where there is none; relative paths of images start from the current folder."""


def read_questions(
    path: RowsLike,
    *,
    limit: int | None = None,
    skip_bad_rows: bool = False,
    images: str | Path | None = None,
    halves: bool = False,
    encoding: str | None = None,
    label_true: str | None = None,
    answers: bool = False,
    columns: bool = False,
) -> Questions:
    """Read questions from a file of any known layout, from a data set on the hub, or from rows in memory.

    Rows are read one at a time and, from 20,000 on, kept in a temporary file instead of memory. Of RAGTruth's two files
    either may be given; the other one is found beside it.

    Args:
        path: A JSONL, JSON, CSV or Parquet file, or ``hf://datasets/OWNER/NAME[@REVISION][/FILE][?split=…&config=…]``,
            which is streamed. Or rows in memory: dictionaries, a DataFrame, a ``datasets.Dataset``.
        limit: Read the first so many good rows; None reads all.
        skip_bad_rows: Leave bad rows out and count them instead of raising.
        images: Folder that image paths start from; None: the file's own.
        halves: Accept rows with a truthful answer alone (``truthful``, or ``answer`` without ``label``), for
            :func:`truthheads.make_pairs`.
        encoding: Encoding of text files; None: UTF-8.
        label_true: The label of truthful answers, in place of 1, true, yes and gold; every other label is not.
        answers: Accept answers without a label, rows without a question, and summaries with their source, for
            :func:`truthheads.detect`.
        columns: Keep every row's own columns in ``Question.columns``.

    Returns:
        A sequence of :class:`Question`; ``.layout`` names the layout found, ``.read_as`` says what else was found out
        about the file and how its rows are grouped, ``.skipped`` counts the bad rows, ``.alike`` the rows whose two
        answers are one in two forms, and ``.cautions`` says so in words.

    Raises:
        DataError: No such file, no known layout, no usable row, two rows with one id, or a bad row (unless
            skipped); the message names file, line and field. Always where the same answer to the same question with
            the same context and image is truthful in one row and untruthful in another: both rows are named.
    """
    read_as: list[str] = []
    held = None if isinstance(path, str | Path) else path
    if isinstance(path, str | Path):
        file, rows = open_rows(as_path(path), encoding=encoding, tell=read_as.append)
    else:
        file, rows = IN_MEMORY, held_rows(path)
    layouts = FOR_DETECTION if answers else WITH_HALVES if halves else LAYOUTS
    reading = _Reading(file, layouts, skip_bad_rows, images, label_true, held=held, columns=columns, several=answers)
    for row in rows:
        if limit is not None and len(reading.questions) >= limit:
            break
        try:
            reading.add(row)
        except BadField as bad:
            if not skip_bad_rows:
                raise reading.refusal(row, bad, encoding) from bad
            reading.skipped += 1
    return reading.done(read_as)


class _Reading:
    """One file while it is read."""

    def __init__(
        self,
        path: Path,
        layouts: tuple[Layout, ...],
        skip_bad_rows: bool,
        images: str | Path | None,
        label_true: str | None,
        *,
        held: RowsLike | None,
        columns: bool,
        several: bool,
    ) -> None:
        self.columns, self.several = columns, several and held is not None
        self.held, self.streamed = held, held is not None or on_hub(path)
        self.path, self.layouts, self.skip_bad_rows, self.images = path, layouts, skip_bad_rows, images
        self.label_true = None if label_true is None else label_word(label_true)
        self.layout: Layout | None = None
        self.unknown: DataError | None = None
        self.questions = Questions(path=address(path) if held is None else "")
        self.said, self.grouping, self.word = Said(), Grouping(), "row"
        self.seen: set[int] = set()
        self.rows = hashlib.sha256()
        self.labels: Counter[str] = Counter()
        self.spelled: dict[str, str] = {}
        self.skipped = self.unlabelled = 0

    def add(self, row: Row) -> None:
        """Add a row.

        Raises:
            BadField: It cannot be used.
            DataError: No layout fits the first one.
        """
        if row.fields is None:
            raise BadField("", "one row", row.fault)
        other = respelled(row.fields)
        fields: Mapping[str, object] = {**row.fields, **{name: row.fields[column] for name, column in other.items()}}
        if self.layout is None or (self.several and not self.layout.columns <= fields.keys()):
            try:
                self.layout = find_layout(self.path, row, fields.keys(), self.layouts)
            except DataError as error:
                if not self.skip_bad_rows:
                    raise
                self.unknown = self.unknown or error
                self.skipped += 1
                return
            self._check_label_true()
        used = other if self.layout.columns & {"truthful", "answer"} else {}
        fields = self._labelled(fields)
        question = checked(self.layout.convert(fields, row.place.rpartition(" ")[2]))
        name = hashed(question.id)
        if name in self.seen:
            raise BadField("id", "an id of its own", question.id)
        image = _image(question, self.path.parent, self.images)
        self.seen.add(name)
        self.spelled |= {ours: row.spelled(column) for ours, column in used.items() if ours not in self.spelled}
        self.word, _, number = row.place.rpartition(" ")
        self.said.add(question, int(number), len(self.questions))
        question = self.grouping.add(question)  # by the image as the file names it
        if image is not None:
            question = replace(question, image=image)
        if self.columns:
            own = {row.spelled(column): as_json(value) for column, value in row.fields.items()}
            question = replace(question, columns=own)
        if self.streamed:
            self.rows.update(question.digest.to_bytes(8, "big", signed=True))
        if question.alike:
            self.questions.alike = self.questions.alike.and_at(row.place)
        self.unlabelled += not question.labelled
        self.questions.append(question)

    def _labelled(self, fields: Mapping[str, object]) -> Mapping[str, object]:
        """Return a row's fields with its label as 1 or 0 where ``label_true`` says which is which."""
        assert self.layout is not None
        if self.label_true is None or not self.layout.labelled or fields.get("label") is None:
            return fields
        self.labels[str(fields["label"]).strip()] += 1
        return {**fields, "label": int(label_word(fields["label"]) == self.label_true)}

    def _check_label_true(self) -> None:
        assert self.layout is not None
        if self.label_true is not None and not self.layout.labelled:
            raise DataError(
                f"--label-true does nothing here: {self.path} has the layout {self.layout.name}",
                expected="rows with one answer and its label",
                got=f"--label-true {self.label_true}",
                fix="leave --label-true out",
            )

    def refusal(self, row: Row, bad: BadField, encoding: str | None) -> DataError:
        """Return the error for a row that cannot be used."""
        fix = "correct the row, or pass --skip-bad-rows to leave it out"
        if bad.expected == LABEL_WORDS and isinstance((row.fields or {}).get("label"), str | int | float):
            fix = f"{self._which_label(row, encoding)}; or {fix}"
        column = self.spelled.get(bad.field, row.spelled(bad.field))
        return DataError(
            f"{self.path}:{row.place}: " + (f"field {column!r}" if bad.field else "the row"),
            expected=bad.expected,
            got=bad.got,
            fix=fix,
        )

    def _which_label(self, bad: Row, encoding: str | None) -> str:
        """Return how to say which label is that of truthful answers, from the labels that there are."""
        again = iter((bad,))
        if self.held is None:
            again = read_rows(self.path, encoding=encoding)
        elif not isinstance(self.held, Iterator):  # whose rows are gone
            again = held_rows(self.held)
        found = (row.fields.get("label") for row in islice(again, LOOKED_AT) if row.fields)
        words = list(dict.fromkeys(str(value).strip() for value in found if value is not None))
        likely = [word for name in RIGHT for word in words if word.casefold() == name]
        told = ", ".join(map(repr, words[:6])) + (", …" if len(words) > 6 else "")
        return (
            f"say which label is that of truthful answers: --label-true {likely[0] if likely else 'WORD'} (of {told})"
        )

    def done(self, read_as: Iterable[str]) -> Questions:
        """Return the questions, once every row is there.

        Raises:
            DataError: There is none, or two contradict each other.
        """
        if self.layout is None and self.unknown is not None:
            raise self.unknown
        if self.layout is None or not self.questions:
            raise DataError(
                f"{self.path} holds no usable row",
                expected="at least one row of a known layout",
                got=f"0 good rows, {self.skipped} bad ones",
                fix="see the layouts in the README",
            )
        others = [word for word in sorted(self.labels) if label_word(word) != self.label_true]
        if self.labels and len(others) == len(self.labels):
            raise DataError(
                f"{self.path}: no row has the label {self.label_true!r} that --label-true names",
                expected="the label of truthful answers",
                got=", ".join(sorted(self.labels)[:8]),
                fix="give one of these as --label-true",
            )
        self.said.check(self.questions, self.path, self.word)
        grouped = self.grouping.settle(self.questions)
        found = (
            self.questions
            if grouped is None
            else Questions(grouped, path=self.questions.path, alike=self.questions.alike)
        )
        names = [f"{ours} from the column {column!r}" for ours, column in self.spelled.items()]
        if self.labels:
            names.append(f"label {self.label_true!r} is truthful, {', '.join(map(repr, others)) or 'nothing'} is not")
        found.layout, found.skipped, found.note = self.layout.name, self.skipped, self.layout.note
        if self.unlabelled and self.layouts is not FOR_DETECTION:  # where whether they are right is what is asked
            found.note = UNLABELLED.format(count=self.unlabelled)
        found.read_as = [*read_as, *names, self.grouping.told()]
        found.sha256 = self.rows.hexdigest() if self.streamed else file_sha256(self.path)
        return found


UNLABELLED = "Nothing says whether the answers of {count} rows are right: they are taken as truthful."


def _image(question: Question, beside: Path, images: str | Path | None) -> str | None:
    if question.image is None:
        return None
    try:
        return image_path(question.image, beside=beside, images=None if images is None else Path(images))
    except ValueError as error:
        raise BadField("image", IMAGE_PATH_RULE, str(error)) from error


def as_json(value: Any) -> Any:
    """Return a cell as JSON can hold it; what JSON does not know becomes text."""
    if isinstance(value, Mapping):
        return {str(key): as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [as_json(one) for one in value]
    if isinstance(value, np.generic):
        return as_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
