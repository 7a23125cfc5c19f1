"""Rows of HaluEval as lm-evaluation-harness is to see them; it loads this file by its path, so it imports nothing."""

from typing import Any


def both_shown(rows: Any) -> Any:
    """Return two rows for each of HaluEval's: its right answer shown, and its hallucinated one.

    Args:
        rows: A ``datasets.Dataset`` with question, knowledge, right_answer and hallucinated_answer.
    """

    def split(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {
            "knowledge": [], "question": [], "shown": [], "hallucinated": [], "group": [],
        }  # fmt: skip
        for knowledge, question, right, wrong in zip(
            batch["knowledge"], batch["question"], batch["right_answer"], batch["hallucinated_answer"], strict=True
        ):
            for answer, hallucinated in ((right, False), (wrong, True)):
                for name, value in zip(made, (knowledge, question, answer, hallucinated, question), strict=True):
                    made[name].append(value)
        return made

    return rows.map(split, batched=True, remove_columns=rows.column_names)
