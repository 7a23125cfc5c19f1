"""Read questions: ours, HaluEval, NQ-Swap, RLHF-V, PhD, POPE, TruthfulQA."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from truthheads.artifacts import file_sha256
from truthheads.contradictions import Said, hashed
from truthheads.data import Question, Questions
from truthheads.errors import DataError
from truthheads.hubrows import address, on_hub
from truthheads.images import image_path
from truthheads.layouts import LAYOUTS, WITH_HALVES, BadField, Layout, checked
from truthheads.tables import Row, read_rows

ELSEWHERE = "a path inside the folder that images start from (the question file's own, or --images) or the current one"


def read_questions(
    path: str | Path,
    *,
    limit: int | None = None,
    skip_bad_rows: bool = False,
    images: str | Path | None = None,
    halves: bool = False,
) -> Questions:
    """Read questions from a JSONL, JSON, CSV or Parquet file of any known layout, or from a data set on the hub.

    Rows are read one at a time and, from 20,000 on, kept in a temporary file instead of memory.

    Args:
        path: The file, or ``hf://datasets/OWNER/NAME[@REVISION][/FILE][?split=…&config=…]``, which is streamed.
        limit: Read the first so many good rows; None reads all.
        skip_bad_rows: Leave bad rows out and count them instead of raising.
        images: Folder that image paths start from; None: the file's own.
        halves: Accept rows with a truthful answer alone (``truthful``, or ``answer`` without ``label``), for
            :func:`truthheads.make_pairs`.

    Returns:
        A sequence of :class:`Question`; ``.layout`` names the layout found, ``.skipped`` counts the bad rows,
        ``.alike`` the rows whose two answers are one in two forms, and ``.cautions`` says so in words.

    Raises:
        DataError: No such file, no known layout, no usable row, two rows with one id, or a bad row (unless
            skipped); the message names file, line and field. Always where the same answer to the same question with
            the same context and image is truthful in one row and untruthful in another: both rows are named.
    """
    path = Path(path)
    layout: Layout | None = None
    questions, streamed = Questions(path=address(path)), on_hub(path)
    seen: set[int] = set()
    said, word = Said(), "row"
    rows = hashlib.sha256()
    skipped = 0
    unknown: DataError | None = None
    for row in read_rows(path):
        if limit is not None and len(questions) >= limit:
            break
        try:
            if row.fields is None:
                raise BadField("", "one row", row.fault)
            if layout is None:
                try:
                    layout = _recognise(path, row, WITH_HALVES if halves else LAYOUTS)
                except DataError as error:
                    if not skip_bad_rows:
                        raise
                    unknown = unknown or error
                    skipped += 1
                    continue
            question = checked(layout.convert(row.fields, row.place.rpartition(" ")[2]))
            name = hashed(question.id)
            if name in seen:
                raise BadField("id", "an id of its own", question.id)
            image = _image(question, path.parent, images)
        except BadField as bad:
            if not skip_bad_rows:
                raise DataError(
                    f"{path}:{row.place}: " + (f"field {bad.field!r}" if bad.field else "the row"),
                    expected=bad.expected,
                    got=bad.got,
                    fix="mend the row, or pass --skip-bad-rows to go on without it",
                ) from bad
            skipped += 1
        else:
            seen.add(name)
            word, _, number = row.place.rpartition(" ")
            said.add(question, int(number), len(questions))
            if image is not None:
                question = replace(question, image=image)
            if streamed:
                rows.update(question.digest.to_bytes(8, "big", signed=True))
            if question.alike:
                questions.alike = questions.alike.and_at(row.place)
            questions.append(question)
    if layout is None and unknown is not None:
        raise unknown
    if layout is None or not questions:
        raise DataError(
            f"{path} holds no usable row",
            expected="at least one row of a known layout",
            got=f"0 good rows, {skipped} bad ones",
            fix="see the layouts in the README",
        )
    said.check(questions, path, word)
    questions.layout, questions.note, questions.skipped = layout.name, layout.note, skipped
    questions.sha256 = rows.hexdigest() if streamed else file_sha256(path)
    return questions


def _image(question: Question, beside: Path, images: str | Path | None) -> str | None:
    if question.image is None:
        return None
    try:
        return image_path(question.image, beside=beside, images=None if images is None else Path(images))
    except ValueError as error:
        raise BadField("image", ELSEWHERE, str(error)) from error


def _recognise(path: Path, row: Row, layouts: Sequence[Layout]) -> Layout:
    columns = set(row.fields or {})
    for layout in layouts:
        if layout.columns <= columns:
            return layout
    near = min(layouts, key=lambda layout: len(layout.columns - columns) / len(layout.columns))
    raise DataError(
        f"{path}:{row.place}: column {sorted(near.columns - columns)[0]!r} is missing",
        expected=" or ".join(f"{layout.name} ({', '.join(sorted(layout.columns))})" for layout in layouts),
        got=", ".join(sorted(map(str, columns))) or "no columns",
        fix="rename the columns, or add the missing one",
    )
