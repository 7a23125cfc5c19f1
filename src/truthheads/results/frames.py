"""Tables of results as data frames, where pandas is installed."""

from collections.abc import Sequence
from typing import Any

from truthheads.errors import TruthHeadsError


def as_frame(rows: Sequence[Any]) -> Any:
    """Return rows as a pandas data frame.

    Raises:
        TruthHeadsError: pandas is not installed.
    """
    try:
        import pandas as pd  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise TruthHeadsError(
            "pandas is not installed",
            expected="pandas, for data frames",
            got="no such package",
            fix="pip install pandas, or use .table()",
        ) from error
    return pd.DataFrame(rows)
