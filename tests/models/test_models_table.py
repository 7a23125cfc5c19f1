"""docs/models.md says what the suite runs."""

from pathlib import Path

from models_table import table

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_is_the_table_of_what_is_tested() -> None:
    assert PAGE.read_text(encoding="utf-8") == table(), "write it again: python tests/models_table.py > docs/models.md"
