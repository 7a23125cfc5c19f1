"""Rows of HaluEval as lm-evaluation-harness is to see them; it loads this file by its path, so it imports nothing."""

from typing import Any


def both_shown(rows: Any) -> Any:
    """Return two rows for each of HaluEval's: its right answer shown, and its hallucinated one.

    Args:
        rows: A ``datasets.Dataset`` with question, knowledge, right_answer and hallucinated_answer.

    Raises:
        ValueError: Both answers of a row are the same: one answer cannot count as right and as hallucinated.
    """

    def split(batch: dict[str, list[str]], numbers: list[int]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {
            "knowledge": [], "question": [], "shown": [], "hallucinated": [], "group": [],
        }  # fmt: skip
        for number, knowledge, question, right, wrong in zip(
            numbers,
            batch["knowledge"],
            batch["question"],
            batch["right_answer"],
            batch["hallucinated_answer"],
            strict=True,
        ):
            if right.strip() == wrong.strip():
                raise ValueError(f"row {number + 1}: right_answer and hallucinated_answer are the same: {right!r:.60}")
            for answer, hallucinated in ((right, False), (wrong, True)):
                for name, value in zip(made, (knowledge, question, answer, hallucinated, question), strict=True):
                    made[name].append(value)
        return made

    return rows.map(split, batched=True, with_indices=True, remove_columns=rows.column_names)
