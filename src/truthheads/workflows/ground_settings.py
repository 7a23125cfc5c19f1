"""How a model is grounded: the settings of ``ground``, by name or in one object."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from truthheads.choices import ExportFormat
from truthheads.models.load import Loading
from truthheads.stats.thresholds import GROUND_TEST_SHARE
from truthheads.storage.files import as_path


@dataclass(frozen=True)
class Settings:
    """How a model is grounded.

    Attributes:
        guard: Largest change allowed on unrelated text (KL, nats per token).
        test_share: Share of the groups that are only tested on.
        controls: For a gate that is better, so many shuffled, so many random gates and a constant one, which it has to
            beat; for an adapter, so many adapters on random heads, trained alike, which tell whether the choice of
            heads adds anything. None: 2 for a gate; none for an adapter, each of which takes as long.
        neutral: Text that must stay as it is; None: contexts of the rows and the model's own samples.
        base_gate: A relative's gate to start from.
        export_anyway: Write the model also where the test gives no evidence.
        to: Format of the export; None: what fits the model's own files (see :func:`truthheads.export`).
        images: Folder that image paths start from; None: the file's own.
        chat: Use the tokenizer's chat template; None: where it has one.
        truncate: Drop the start of contexts that are too long.
        limit: Rows, at most.
        skip_bad_rows: Leave rows out that are bad, or too long for the model, and count them.
        encoding: Encoding of text files; None: UTF-8.
        label_true: The label of truthful answers; see :func:`truthheads.read_questions`.
        batch_tokens: Padded tokens in a batch, at most; None: by device.
        seed: Random seed of split, learning, controls and intervals.
    """

    guard: float = 0.02
    test_share: float = GROUND_TEST_SHARE
    controls: int | None = None
    neutral: Path | None = None
    base_gate: Path | None = None
    export_anyway: bool = False
    to: ExportFormat | None = None
    images: Path | None = None
    chat: bool | None = None
    truncate: bool = False
    limit: int | None = None
    skip_bad_rows: bool = False
    encoding: str | None = None
    label_true: str | None = None
    batch_tokens: int | None = None
    seed: int = 0


class Words(Loading, total=False):
    """What ``ground`` takes by name: the attributes of :class:`Settings`, and how the model is loaded."""

    guard: float
    test_share: float
    controls: int | None
    neutral: str | Path | None
    base_gate: str | Path | None
    export_anyway: bool
    to: ExportFormat | None
    images: str | Path | None
    chat: bool | None
    truncate: bool
    limit: int | None
    skip_bad_rows: bool
    encoding: str | None
    label_true: str | None
    batch_tokens: int | None
    seed: int


def settings_of(settings: Settings | None, words: Words) -> tuple[Settings, Loading]:
    """Return the settings and how the model is loaded; TypeError for a word that neither knows."""
    own = {one.name for one in fields(Settings)}
    strange = sorted(set(words) - own - set(Loading.__annotations__))
    if strange:
        raise TypeError(f"ground() got an unexpected keyword argument {strange[0]!r}")
    paths = ("neutral", "base_gate", "images")
    given: dict[str, Any] = {
        name: as_path(value) if name in paths and isinstance(value, str | Path) else value
        for name, value in words.items()
        if name in own
    }
    loading = {name: value for name, value in words.items() if name not in own}
    return replace(settings or Settings(), **given), cast(Loading, loading)
