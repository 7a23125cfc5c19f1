"""What every command checks before it loads anything: data, model, device, dtype and output. All complaints at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from truthheads.cli import console
from truthheads.cli.options import How
from truthheads.errors import SeveralErrors, TruthHeadsError

if TYPE_CHECKING:
    from truthheads.data.questions import Question, Questions
    from truthheads.models.load import Model

R = TypeVar("R")


class Complaints:
    """What is wrong with what a command was given."""

    def __init__(self) -> None:
        self.found: list[TruthHeadsError] = console.put_off()

    def of(self, check: Callable[[], R]) -> R | None:
        """Make a check and hand back its value; None where it complains, which is kept."""
        try:
            return check()
        except TruthHeadsError as error:
            self.found.append(error)
            return None

    def of_questions(
        self,
        data: Path,
        *,
        limit: int | None,
        skip_bad_rows: bool,
        images: Path | None,
        encoding: str | None,
        label_true: str | None,
        halves: bool = False,
        answers: bool = False,
        columns: bool = False,
    ) -> "Questions | None":
        """Read the rows as the options of every command say; None where they cannot be read."""
        from truthheads.data.readers import read_questions

        return self.of(
            lambda: read_questions(
                data,
                limit=limit,
                skip_bad_rows=skip_bad_rows,
                images=images,
                halves=halves,
                encoding=encoding,
                label_true=label_true,
                answers=answers,
                columns=columns,
            )
        )

    def of_target(self, path: Path | None) -> None:
        """Check that a file can be written, where one is wanted."""
        from truthheads.storage.files import check_target

        if path is not None:
            self.of(lambda: check_target(path))

    def of_plot(self, path: Path | None) -> None:
        """Check that a chart can be written, where one is wanted."""
        from truthheads.plots.charts import check_suffix

        if path is not None:
            self.of(lambda: check_suffix(path))
            self.of_target(path)

    def of_neutral(self, path: Path | None) -> None:
        """Check that a file of unrelated text can be read, where one is given."""
        from truthheads.models.neutral_text import read_neutral

        if path is not None:
            self.of(lambda: read_neutral(path))

    def of_model(self, model: str, how: How) -> None:
        """Check that a model is there and can be placed as it is asked for."""
        from truthheads.models.load import loading_faults

        self.found += loading_faults(model, **how)


@contextmanager
def all_at_once() -> Iterator[Complaints]:
    """Collect complaints, of which the end of the block makes one error.

    Raises:
        TruthHeadsError: The complaint, or SeveralErrors.
    """
    wrong = Complaints()
    yield wrong
    if len(wrong.found) == 1:
        raise wrong.found[0]
    if wrong.found:
        raise SeveralErrors(wrong.found)


def tell_reading(questions: "Questions") -> None:
    """Say how a file was read and how its rows are grouped; ``--json`` has it in the description of the data."""
    console.out.print(f"read: {questions.reading}", markup=False)


def usable(
    model: "Model",
    questions: "Questions",
    *,
    skip_bad_rows: bool,
    skip_missing: bool,
    chat: bool,
    truncate: bool,
    asked: "Callable[[Question], Question] | None" = None,
) -> "Questions":
    """Return the questions that a model can take; what is left out is counted among the bad rows.

    Args:
        model: The model.
        questions: The questions.
        skip_bad_rows: Leave out rows that are too long for the model, or whose image is damaged.
        skip_missing: Leave out rows whose image is not there.
        chat: As for the command.
        truncate: As for the command.
        asked: From a question to what of it is put before the model; None: all of it.

    Raises:
        DataError: None is left.
    """
    from truthheads.errors import DataError
    from truthheads.models.prompts import with_images
    from truthheads.models.row_lengths import unusable_rows

    if skip_missing:
        questions = with_images(model, questions)
    if skip_bad_rows:
        put = questions if asked is None else [asked(one) for one in questions]
        gone = unusable_rows(model, put, chat=chat, truncate=truncate)
        if len(gone) == len(questions):
            raise gone[0].error
        if gone:
            more = f", and {len(gone) - 1} more" if len(gone) > 1 else ""
            console.note(f"left out: {gone[0].error.problem}{more}")
        questions = questions.without([one.question for one in gone])
    if not questions:
        raise DataError(
            "no row is left",
            expected="one row or more that the model can take",
            got=f"{questions.skipped} rows left out",
            fix="check --images, or leave --skip-missing out to see what is missing",
        )
    return questions
