"""Number words and digits: one value, one answer; nothing else becomes a number."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from num2words import num2words

from truthheads.data.numerals import in_digits, is_number, numerals
from truthheads.data.questions import occurrences

BIG = st.one_of(st.integers(0, 3_000), st.integers(0, 10**15 - 1), st.integers(1, 999).map(lambda n: n * 10**6))


@given(number=BIG)
def test_every_number_is_its_words(number: int) -> None:
    words = str(num2words(number))  # "two million, one hundred and five thousand and three"
    assert in_digits(words) == str(number)
    assert in_digits(words.replace("-", " ").replace(",", "").title()) == str(number)
    assert in_digits(words.replace(" and ", " ")) == str(number)
    assert in_digits(f"{number:,}") == str(number)
    assert is_number(words) and is_number(f"{number:,}")


@given(number=BIG.filter(bool))
def test_every_place_in_an_order_is_its_words(number: int) -> None:
    digits = str(num2words(number, to="ordinal_num"))
    assert in_digits(str(num2words(number, to="ordinal"))) == digits
    assert in_digits(digits) == digits


@pytest.mark.parametrize(("text", "digits"), [
    ("three", "3"),
    ("Twenty-One", "21"),
    ("twenty one", "21"),
    ("one hundred and five", "105"),
    ("a hundred", "100"),
    ("two thousand", "2000"),
    ("nineteen hundred", "1900"),
    ("3 million", "3000000"),
    ("1.5 billion", "1500000000"),
    ("1,000", "1000"),
    ("3.0", "3"),
    ("3.50", "3.5"),
    (".5", "0.5"),
    ("0.5", "0.5"),
    ("third", "3rd"),
    ("twenty second", "22nd"),
    ("eleventh", "11th"),
    ("one hundred and twelfth", "112th"),
    ("1,000th", "1000th"),
    ("two or three", "2 or 3"),
    ("two hundred and three hundred", "200 and 300"),
    ("two million and three million", "2000000 and 3000000"),
    ("five and six", "5 and 6"),
    ("one two three", "1 2 3"),
    ("twenty, one", "20, 1"),
    ("ten twenty", "10 20"),
    ("three dogs.", "3 dogs."),
    ("one of them", "1 of them"),
    (f"1{'0' * 40}1", f"1{'0' * 40}1"),
    ("nineteen ninety", "19 90"),  # a year as it is spoken is left in its parts
])  # fmt: skip
def test_texts_worked_by_hand(text: str, digits: str) -> None:
    assert in_digits(text) == digits


@pytest.mark.parametrize("text", [
    "someone", "no one", "Everyone", "any one", "anyone", "stone", "tone", "often", "tend", "weight", "hundreds",
    "thousands of them", "seconds", "1.2.3", "9:30", "3/4", "3-5", "007", "B-52", "B52", "1990", "May 3, 1990", "II",
    "3D", "drei", "", "fort", "sixties", "555-1234", "1,5",
])  # fmt: skip
def test_what_is_no_number_word_stays(text: str) -> None:
    assert in_digits(text) == text


def test_only_a_text_that_is_a_number_is_one() -> None:
    assert is_number("twenty-one.") and is_number("3rd") and is_number(" 1,000 ")
    assert not any(map(is_number, ("three dogs", "one two", "no one", "Seven Years War", "", "B52")))


def test_numerals_say_where_they_stand() -> None:
    text = "She had twenty-one cats and 3 dogs."
    assert [(text[one.start : one.end], one.digits) for one in numerals(text)] == [("twenty-one", "21"), ("3", "3")]


def test_an_answer_is_found_in_a_context_in_either_spelling() -> None:
    context = "In 1990 twenty-one ships left; 3 dogs, 30 cats and 3.5 tons of fish stayed on the third day."

    def found(answer: str) -> list[str]:
        return [context[start:end] for start, end in occurrences(context, answer)]

    assert found("21") == ["twenty-one"]
    assert found("21 ships") == ["twenty-one ships"]
    assert found("three dogs") == ["3 dogs"]
    assert found("three") == ["3"]
    assert found("3rd day") == ["third day"]
    assert found("one") == found("five") == found("Five ships") == []
    assert found("thirty") == ["30"]
    assert found("ships") == ["ships"]
    assert found("3") == ["3"]  # and not the 3 of 3.5


def test_an_answer_that_stands_as_it_is_has_only_these_spans() -> None:
    context = "One of the 1 percent."
    assert [context[start:end] for start, end in occurrences(context, "1")] == ["1"]


@given(text=st.text(alphabet="one two-hundred, and 13.thseconda", max_size=40))
def test_any_text_is_read_and_what_is_in_digits_stays(text: str) -> None:
    found = numerals(text)
    ends = [0, *(one.end for one in found)]
    assert all(end <= one.start < one.end <= len(text) for end, one in zip(ends, found, strict=False))
    # Alone, each number reads as it does in its text.
    assert [in_digits(text[one.start : one.end]) for one in found] == [one.digits for one in found]


@pytest.mark.real_data
def test_numbers_among_real_answers(reference_data: Path) -> None:
    from truthheads.data.tables import read_rows

    rows = [row.fields or {} for row in read_rows(reference_data / "nqswap.parquet")][:300]
    answers = [text for fields in rows for side in ("sub_answer", "org_answer") for text in fields[side]]
    spelled = [text for text in answers if in_digits(text) != text]
    assert set(spelled) == {
        "three", "seven", "five", "fourth season", "1,000", "nine", "third season", "Eight", "Six", "eleven", "eighth",
        "two",
    }  # fmt: skip
    assert len(spelled) == 15
