"""What ``truthheads trace --pictures`` drew: the attention of a few heads to every token of a few questions.

``trace`` shows it as a page and writes it beside that page as JSON, from which ``report`` draws it again. What is read
is checked: nothing but text, numbers and JPEG images can come from such a file.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import FiniteFloat, NonNegativeInt, StringConstraints, TypeAdapter, ValidationError

from truthheads.errors import ArtifactError
from truthheads.storage.files import write_text

SUFFIX = ".pictures.json"


@dataclass(frozen=True, slots=True)
class Piece:
    """One token's text, or text between tokens.

    Attributes:
        text: The characters.
        marks: Letters for what the token is: e evidence, d distractor, s sink, q the token that looks; None where the
            text belongs to no token.
        shade: How dark it is drawn, from 0 to 1.
        weight: The head's attention to it, from 0 to 1.
    """

    text: str
    marks: Annotated[str, StringConstraints(pattern=r"^[edsq ]*$")] | None = None
    shade: FiniteFloat = 0.0
    weight: FiniteFloat = 0.0


@dataclass(frozen=True, slots=True)
class Cell:
    """The pixels of one image token: the upper left corner, the size, and as for a piece shade and weight."""

    x: FiniteFloat
    y: FiniteFloat
    width: FiniteFloat
    height: FiniteFloat
    shade: FiniteFloat
    weight: FiniteFloat


@dataclass(frozen=True, slots=True)
class Panel:
    """What one head looks at.

    Attributes:
        head: Its name.
        note: Below the name.
        pieces: The text, in order.
        cells: Places in the image; empty where there is none.
    """

    head: str
    note: str
    pieces: list[Piece]
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class AttentionPicture:
    """One question, and what the best and worst heads look at in it.

    Attributes:
        title: The question.
        note: Below it.
        panels: One for each head.
        image: The image as a data URI, empty for text.
        width: Width of the image, in pixels.
        height: Likewise.
        boxes: Evidence in the image: ``(x0, y0, x1, y1)`` in pixels.
    """

    title: str
    note: str
    panels: list[Panel]
    image: Annotated[str, StringConstraints(pattern=r"^(data:image/jpeg;base64,[A-Za-z0-9+/=]+)?$")] = ""
    width: NonNegativeInt = 0
    height: NonNegativeInt = 0
    boxes: tuple[tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat], ...] = ()


@dataclass(frozen=True, slots=True)
class AttentionPictures:
    """All pictures of one trace.

    Attributes:
        title: Says which model's heads they are.
        pictures: One for each question.
        version: Version of this format.
    """

    title: str
    pictures: list[AttentionPicture]
    version: Literal[1] = 1

    def save(self, path: Path) -> None:
        """Write the pictures as JSON.

        Raises:
            ArtifactError: The file could not be written.
        """
        # Not write_json, which keeps half a character escaped: what reads it back refuses that.
        write_text(path, json.dumps(asdict(self), ensure_ascii=False, allow_nan=False, sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> "AttentionPictures":
        """Read pictures back.

        Raises:
            ArtifactError: The file is damaged, or holds something else.
            OSError: It cannot be read.
        """
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes(), strict=True)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ArtifactError(
                f"{path} cannot be read",
                expected="the pictures that truthheads trace --pictures wrote",
                got=f"{place}: {first['msg']}" if place else first["msg"],
                fix="run truthheads trace --pictures again",
            ) from error
