"""What all benchmarks share: the lines of their predictions."""

from typing import Any

PredictionLine = dict[str, Any]
