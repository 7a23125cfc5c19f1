"""What all benchmarks share: the lines of their predictions."""

from typing import Any

Line = dict[str, Any]
