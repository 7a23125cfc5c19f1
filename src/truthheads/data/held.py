"""Rows that a person holds in memory: dictionaries, a DataFrame of pandas or polars, a data set of ``datasets``.

None of these packages is imported here: an object of theirs is known by what it can do.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from truthheads.data.lines import Row, made_row
from truthheads.data.questions import Question, write_questions
from truthheads.errors import DataError
from truthheads.storage.files import dumps, replaced

if TYPE_CHECKING:
    from pathlib import Path

    RowsLike: TypeAlias = str | Path | Iterable[Mapping[str, object]]
    QuestionsLike: TypeAlias = Sequence[Question] | RowsLike
else:  # what holds no rows is answered in our words, not in those of a type checker at run time
    RowsLike = QuestionsLike = object

WANTED = (
    "a question file, hf://datasets/OWNER/NAME, a list of dictionaries, a DataFrame, a datasets.Dataset, or what "
    "read_questions returned"
)


def held_rows(data: Any) -> Iterator[Row]:
    """Return the rows of something in memory, in order.

    Args:
        data: Dictionaries, a DataFrame, a pyarrow Table, or a data set (also a streamed one).

    Raises:
        DataError: It is nothing that has rows, or an item is no row.
    """
    return (made_row(place, fields) for place, fields in _placed(data))


def _placed(data: Any) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield each row's place and its fields as they are called there."""
    for number, item in enumerate(_items(data), start=1):
        if not isinstance(item, Mapping):
            raise _unusable(f"item {number} is no row", _kind(item))
        yield f"row {number}", {str(name): _plain(value) for name, value in item.items()}


def write_held(path: "Path", data: Any) -> "Path":
    """Write rows in memory to a JSONL file, as they are, and return its path; TruthHeadsError where they are none."""
    if isinstance(data, Sequence) and len(data) and all(isinstance(one, Question) for one in data):
        return write_questions(path, data)
    with replaced(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for place, fields in _placed(data):
            try:
                lines.write(dumps(fields) + "\n")
            except (TypeError, ValueError) as error:
                raise _unusable(f"{place} cannot be written as JSON", str(error)) from error
    return path


def _items(data: Any) -> Iterable[Any]:
    if hasattr(data, "itertuples") and hasattr(data, "columns"):  # pandas
        return (dict(zip(data.columns, row, strict=True)) for row in data.itertuples(index=False, name=None))
    if hasattr(data, "iter_rows"):  # polars
        return data.iter_rows(named=True)  # type: ignore[no-any-return]
    if hasattr(data, "to_batches") and hasattr(data, "schema"):  # pyarrow
        return (row for batch in data.to_batches() for row in batch.to_pylist())
    if isinstance(data, Mapping):
        if data and all(hasattr(value, "features") for value in data.values()):
            names = ", ".join(map(repr, data))
            raise DataError(
                "this is a data set with its splits",
                expected="one split of it",
                got=f"a {type(data).__name__} of {names}",
                fix=f"give one of them: data[{next(iter(data))!r}]",
            )
        raise DataError(
            "a single dictionary is no list of rows",
            expected=WANTED,
            got=f"a dictionary of {', '.join(map(str, list(data)[:6]))}",
            fix="put it into a list; of a dictionary of columns, give pandas.DataFrame(columns)",
        )
    if isinstance(data, Iterable) and not isinstance(data, str | bytes):
        return data
    raise _unusable("what was given holds no rows", _kind(data))


def _unusable(problem: str, got: str) -> DataError:
    return DataError(
        problem, expected=WANTED, got=got, fix="give one dictionary for each row, such as {'question': …, 'answer': …}"
    )


def _kind(value: object) -> str:
    name, module = type(value).__name__, type(value).__module__
    return repr(value)[:60] if module == "builtins" else f"{module}.{name}"


def _plain(value: Any) -> Any:
    """Return a cell as JSON has it: arrays and their numbers as Python's, None for what stands for nothing."""
    if hasattr(value, "tolist"):  # numpy
        value = value.tolist()
    if value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return {str(name): _plain(one) for name, one in value.items()} if isinstance(value, Mapping) else value
