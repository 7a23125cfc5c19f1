"""The tuning artefact: the chosen gate and the path that led to it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truthheads.plots.charts import frontier_chart
from truthheads.results.gate import Gate
from truthheads.storage.files import dumps, replaced


@dataclass(frozen=True, slots=True, eq=False)
class Tuning:
    """A gate and the path that led to it.

    Attributes:
        gate: The chosen gate; all ones where none helps within the guard.
        result: The JSON result: settings, the ungated figures, every candidate with its effect and harm, the frontier,
            which candidate was chosen and why.
    """

    gate: Gate
    result: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the gate, and ``tuning.json`` beside it.

        Raises:
            ArtifactError: A file could not be written.
        """
        beside = Path(path).with_name("tuning.json")
        with replaced(beside) as told, replaced(Path(path)) as gate:  # there is room for both, or neither changes
            told.write_text(dumps(self.result, indent=2) + "\n", encoding="utf-8")
            self.gate.save(gate)
            beside.unlink(missing_ok=True)  # it must not stand beside a gate that it does not tell of, after a kill

    def chart(self) -> Any:
        """Return margin gained against nats lost, one point per candidate, as an Altair chart."""
        return frontier_chart(self.result["path"], guard=self.result["guard"], chosen=self.result["chosen"])
