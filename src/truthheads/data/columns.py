"""Which layout a row has; where it has none, what its columns may be meant for."""

import difflib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from truthheads.data.layouts import SPELLINGS, Layout
from truthheads.data.lines import Row, plain_name
from truthheads.errors import DataError

MEANT = {
    "truthful": (
        "right_answer", "correct_answer", "true_answer", "gold_answer", "gold", "ground_truth", "ground_truths",
        "reference", "reference_answer", "expected_answer", "expected", "best_answer", "right", "correct", "chosen",
        "positive", "truth", "true", "good_answer", "good", "faithful", "faithful_answer", "supported_answer",
        "answers",
    ),
    "untruthful": (
        "wrong_answer", "incorrect_answer", "false_answer", "hallucinated_answer", "hallucination", "hallucinated",
        "wrong", "incorrect", "rejected", "negative", "distractor", "false", "bad_answer", "bad", "unfaithful",
        "unfaithful_answer", "unsupported_answer", "unsupported", "lie", "wrong_answers",
    ),
    "question": (*SPELLINGS["question"], "prompt", "instruction", "input", "problem"),
    "context": (
        *SPELLINGS["context"], "passage", "document", "article", "source", "premise", "paragraph",
        "reference_text",
    ),
    "answer": (
        *SPELLINGS["answer"], "output", "prediction", "completion", "generated_answer", "generated_text", "reply",
        "statement", "claim", "hypothesis", "summary",
    ),
    "label": (
        "labels", "target", "is_correct", "is_true", "is_supported", "supported", "verdict", "class", "gold_label",
        "hallucination_label", "is_hallucination", "is_hallucinated", "factual",
    ),
}  # fmt: skip
"""Columns of our own layouts, and names of columns that are likely to be meant for them. None is read as them: what is
called a right answer may be right about the world and not about the context."""

OWN = "pairs (question, truthful, untruthful) or singles (question, answer, label), with context or image beside them"

ANSWERED = ({"prompt", "text"}, {"image_id", "caption"}, {"image", "caption"}, {"answer_id", "text"})
"""Columns of answers to POPE and of captions, as models' scripts write them."""

PAIRS = "`truthheads data pairs FILE --model MODEL --out pairs.jsonl`"


def find_layout(path: Path, row: Row, columns: Collection[str], layouts: Sequence[Layout]) -> Layout:
    """Return the layout of a row.

    Args:
        path: Its file.
        row: The row as it stands there.
        columns: Its columns by their plain names, and those of ours that they are read as.
        layouts: What is known.

    Raises:
        DataError: It has none. The layout is named of which most columns are there, with those that are not; else our
            own ones. What columns may be meant for is said, and where a command makes what is missing.
    """
    found = next((layout for layout in layouts if layout.columns <= set(columns)), None)
    if found is not None:
        return found
    near = min((layout for layout in layouts if _may_be(layout, columns)), key=_lack(columns), default=None)
    missing = sorted(near.columns - set(columns)) if near is not None else []
    halves = any(layout.columns == {"question", "truthful"} for layout in layouts)
    own = OWN.replace("untruthful)", "untruthful, which may be missing)") if halves else OWN
    raise DataError(
        f"{path}:{row.place}: " + (_is_missing(missing) if near is not None else "columns of no known layout"),
        expected=own if near is None else f"{near.name} ({', '.join(sorted(near.columns))})",
        got=", ".join(sorted(row.columns)) or "no columns",
        fix=_cure(row, columns, near, missing, halves),
    )


def _may_be(layout: Layout, columns: Collection[str]) -> bool:
    """Return whether most columns of a layout are there, and one of those that are in no layout but such ones."""
    telling = layout.columns - MEANT.keys() or layout.columns
    return 2 * _lack(columns)(layout) < 1 and not telling.isdisjoint(columns)


def _lack(columns: Collection[str]) -> Callable[[Layout], float]:
    return lambda layout: len(layout.columns - set(columns)) / len(layout.columns)


def _is_missing(names: Sequence[str]) -> str:
    told = " and ".join(map(repr, names))
    return f"column {told} is missing" if len(names) == 1 else f"columns {told} are missing"


def _cure(row: Row, columns: Collection[str], near: Layout | None, missing: Sequence[str], halves: bool) -> str:
    """Say what helps: other names, a file with labels, or the command that makes the untruthful answers."""
    there = {plain_name(column) for column in row.columns}
    if any(one <= there for one in ANSWERED):
        return "a model's answers or captions: `truthheads evaluate answers pope` or `… answers chair` scores them"
    if near is not None and near.name == "POPE" and missing == ["label"]:
        return (
            "label is missing: this is a file of questions without labels; give POPE's own, with yes or no in each row"
        )
    meant = {old: new for old, new in _meant(row, columns).items() if near is None or new in missing}
    renamed = " and ".join(f"{column!r} to {name!r}" for column, name in meant.items())
    have = {*columns, *meant.values()}
    words = [f"rename {renamed}, if that is what they are" if renamed else ""]
    if "label" in missing and not renamed:
        words.append("add 'label': 1 where the context supports the answer, else 0")
    elif not renamed:
        words.append(
            f"add {' and '.join(map(repr, missing))}" if near else "rename the columns, or add the missing ones"
        )
    answered = "question" in have and not {"truthful", "answer"}.isdisjoint(have)
    if answered and not halves and "untruthful" not in have and (near is None or near.name in ("pairs", "singles")):
        words.append(f"where every answer is right, make the wrong ones: {PAIRS}")
    return "; ".join(filter(None, words))


def _meant(row: Row, columns: Collection[str]) -> dict[str, str]:
    """Find what columns may be meant for: from each one's name in the file to a column of ours that is not there."""
    found: dict[str, str] = {}
    for column in row.columns:
        plain = plain_name(column)
        told = next((name for name, others in MEANT.items() if plain in others), None)
        near = [] if plain.endswith("id") else difflib.get_close_matches(plain, MEANT, n=1, cutoff=0.8)
        name = told or (near[0] if near else None)
        if name is not None and plain not in MEANT and name not in columns and name not in found.values():
            found[column] = name
    return found
