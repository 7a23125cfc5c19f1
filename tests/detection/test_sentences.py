"""Sentences of an answer, the tokens that end them, and answers written in sentences."""

from typing import TYPE_CHECKING, Any

import pytest

from planted import planted_model
from truthheads.detection.sentences import closing_tokens, split_sentences
from truthheads.errors import DataError
from truthheads.synthetic.claims import make_claims

if TYPE_CHECKING:
    from collections.abc import Callable

    from truthheads.models.load import Model


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Paris", ["Paris"]),
        ("It is red. It was blue.", ["It is red.", "It was blue."]),
        ("  It is red.  ", ["It is red."]),
        ("Dr. Smith met J. Doe at 3.5 p.m. in St. Ives. So!", ["Dr. Smith met J. Doe at 3.5 p.m. in St. Ives.", "So!"]),
        ("Why? Because it rained.", ["Why?", "Because it rained."]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ("- one\n- two", ["- one", "- two"]),
        ("1. Wash it.\n2. Dry it.", ["1. Wash it.", "2. Dry it."]),
        ("It grew 5 % etc. and fell.", ["It grew 5 % etc. and fell."]),
        ("...", ["..."]),
    ],
)  # fmt: skip
def test_sentences(text: str, sentences: list[str]) -> None:
    assert [text[start:end] for start, end in split_sentences(text)] == sentences


def test_the_tokens_that_end_sentences(wrap: "Callable[..., Model]", tokenizer: Any) -> None:
    """Bytes as tokens: the token that ends a sentence is the byte before its end."""
    model = wrap(planted_model().network, tokenizer)
    text = "It is réd. It was blue."
    ids = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
    ends = [end for _, end in split_sentences(text)]
    found = closing_tokens(model, ids, text, ends)
    assert found[-1] == len(ids) - 1
    assert tokenizer.decode(ids[: found[0] + 1]).strip() == "It is réd."


def test_claims_differ_in_one_value() -> None:
    rows = make_claims(40, seed=1, split="dev")
    assert [row.kind for row in rows[:4]] == ["sentence", "summary", "sentence", "summary"]
    for row in rows:
        good, bad = str(row.truthful), str(row.untruthful)
        assert good != bad
        assert good.endswith(".") and bad.endswith(".")
        assert (
            len(split_sentences(good))
            == len(split_sentences(bad))
            == (1 if row.kind == "sentence" else pytest.approx(3, abs=1))
        )
    assert any(not row.question for row in rows)
    assert [one.context for one in make_claims(10, seed=1, split="dev")] == [one.context for one in rows[:10]]
    with pytest.raises(DataError, match="cannot be written"):
        make_claims(0, seed=0)
