"""HaluEval recognition: does the answer that is shown contain a hallucination? Yes or no."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

from truthheads.benchmarks.base import AskFileOptions, Benchmark, Item, Items, begin_line, help_text
from truthheads.benchmarks.rows import LEAVE_OUT, LeaveOut, benchmark_rows, context_of, digest, text_of
from truthheads.benchmarks.yes_no import HALUEVAL_PARSERS, measure_yesno, parse_with
from truthheads.data.lines import Row
from truthheads.data.questions import normalised_text
from truthheads.errors import DataError, RowError

ShownAnswers = Literal["both", "one"]


class HaluEvalFormat(NamedTuple):
    """One part of HaluEval: its columns, and how the benchmark heads them in a prompt."""

    name: str
    knowledge: str | None
    asked: str
    right: str
    hallucinated: str
    heading: str
    answer_heading: str
    words: tuple[str, str]


HALUEVAL_FORMATS = (
    HaluEvalFormat(
        "qa", "knowledge", "question", "right_answer", "hallucinated_answer",
        "#Question#", "#Answer#", ("Question", "Answer"),
    ),
    HaluEvalFormat(
        "dialogue", "knowledge", "dialogue_history", "right_response", "hallucinated_response",
        "#Dialogue History#", "#Response#", ("Dialogue", "Response"),
    ),
    HaluEvalFormat(
        "summarization", None, "document", "right_summary", "hallucinated_summary",
        "#Document#", "#Summary#", ("Document", "Summary"),
    ),
)  # fmt: skip

INSTRUCTION = (
    "Judge whether the {answer} below contains a hallucination, that is, something that {source} contradicts or does "
    "not support. Reply with Yes if it does and with No if it does not."
)
"""Our own wording, where no instruction is given."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer that is shown, to be judged.

    Attributes:
        id: Row and side: ``17:right``.
        group: Both answers to one question share it.
        opening: The prompt before the answer, shared by both sides.
        ending: The answer and what follows.
        gold: ``yes`` where the answer is the hallucinated one.
    """

    id: str
    group: str
    opening: str
    ending: str
    gold: str

    @property
    def prompt(self) -> str:
        """The whole prompt."""
        return self.opening + self.ending

    @property
    def key(self) -> str:
        """Equal for equal prompts."""
        return digest(self.prompt)


def read_halueval(
    path: Path,
    *,
    instruction: str | None = None,
    knowledge: bool = True,
    shown: ShownAnswers = "both",
    limit: int | None = None,
    seed: int = 0,
    encoding: str | None = None,
    leave_out: LeaveOut | None = None,
) -> tuple[str, list[Judged]]:
    """Read a file of HaluEval and return which part it is and the answers to be judged.

    Args:
        path: Rows of the QA, dialogue or summarisation part.
        instruction: The benchmark's own few-shot instruction, put before its own headings; None: our own wording.
        knowledge: Show the knowledge where a part has it. The benchmark does not; the method's runs do.
        shown: ``both`` answers of every row, or ``one``, by a coin that ``seed`` and the row throw.
        limit: Rows, at most.
        seed: Random seed of the coin.
        encoding: Encoding of text files; None: UTF-8.
        leave_out: What becomes of bad rows; None: they are errors.

    Raises:
        DataError: Columns of no part, an empty text, a row twice, two answers that are the same, or an answer that is
            right in one row and hallucinated in another, with the same question and knowledge.
    """
    part: HaluEvalFormat | None = None
    judged: list[Judged] = []
    seen: dict[str, str] = {}
    golds: dict[str, tuple[str, str]] = {}
    leave_out = leave_out or LeaveOut()
    for number, row in enumerate(benchmark_rows(path, encoding=encoding, leave_out=leave_out)):
        if limit is not None and number >= limit:
            break
        part = part or _recognised(path, row)
        with leave_out.bad_rows():
            said = [text_of(path, row, name) for name in (part.right, part.hallucinated)]
            asked = (text_of if part.knowledge else context_of)(path, row, part.asked)
            source = context_of(path, row, part.knowledge) if part.knowledge and knowledge else ""
            if not asked.strip() or not all(text.strip() for text in said):
                raise RowError(
                    f"{path}:{row.place}: an empty text",
                    expected=f"{part.asked}, {part.right} and {part.hallucinated} with words in them",
                    got="an empty one",
                    fix=LEAVE_OUT,
                )
            if said[0].strip() == said[1].strip():
                raise RowError(
                    f"{path}:{row.place}: both answers are the same",
                    expected=f"a {part.hallucinated} that differs from the {part.right}",
                    got=f"{said[0].strip()!r} as both"[:120],
                    fix="correct or remove the row: one answer cannot count as right and as hallucinated",
                )
            _agree(path, row, part, said, golds)
            again = digest(asked, source, *said)
            if again in seen:
                raise RowError(
                    f"{path}:{row.place}: the row is there twice",
                    expected="each question with its answers once",
                    got=f"the same texts at {seen[again]}",
                    fix="remove one of the two, or pass --skip-bad-rows to leave it out",
                )
            seen[again] = row.place
            name = row.place.rpartition(" ")[2]
            opening = _opening(part, instruction, source, asked)
            coin = int(digest(str(seed), again), 16) % 2
            for side, (gold, text) in enumerate(zip(("no", "yes"), said, strict=True)):
                if shown == "both" or side == coin:
                    word = ("right", "hallucinated")[side]
                    ending = _ending(part, instruction, text)
                    judged.append(Judged(f"{name}:{word}", normalised_text(asked) or name, opening, ending, gold))
    if part is None or not judged:
        raise DataError(f"{path} holds no row", expected="one row or more", got="none", fix="check the file")
    return part.name, judged


def _agree(path: Path, row: Row, part: HaluEvalFormat, said: Sequence[str], golds: dict[str, tuple[str, str]]) -> None:
    """Raise DataError where an answer is right in one row and hallucinated in another.

    Args:
        path: The file.
        row: The row.
        part: Which part of HaluEval it is.
        said: Its right and its hallucinated answer.
        golds: For each answer to each question before, its side and its place; these are added.
    """
    fields = row.fields or {}
    known = str(fields.get(part.knowledge) or "").strip() if part.knowledge else ""
    for side, text in zip((part.right, part.hallucinated), said, strict=True):
        key = digest(known, text_of(path, row, part.asked).strip(), text.strip())
        before, place = golds.setdefault(key, (side, row.place))
        if before != side:
            raise DataError(
                f"{path}:{row.place}: the same answer to the same question has opposite labels",
                expected=f"{before}, as in {path}:{place}",
                got=f"{side} {text.strip()!r}"[:120],
                fix="correct one of the two rows, or remove both",
            )


def _recognised(path: Path, row: Row) -> HaluEvalFormat:
    for part in HALUEVAL_FORMATS:
        if {part.asked, part.right, part.hallucinated} <= (row.fields or {}).keys():
            return part
    raise DataError(
        f"{path} is no part of HaluEval",
        expected=" or ".join(
            f"{part.name} ({part.asked}, {part.right}, {part.hallucinated})" for part in HALUEVAL_FORMATS
        ),
        got=f"columns {', '.join(row.columns)}",
        fix="give qa, dialogue or summarization data",
    )


def _opening(part: HaluEvalFormat, instruction: str | None, source: str, asked: str) -> str:
    if instruction is not None:
        # The benchmark's own headings, and the knowledge where the method's runs put it.
        known = f"\n\n#Knowledge#: {source}" if source else ""
        return f"{instruction.rstrip()}{known}\n\n{part.heading}: {asked}\n{part.answer_heading}:"
    told = "the knowledge" if source else "the document" if part.name == "summarization" else "what is known"
    opening = INSTRUCTION.format(answer=part.words[1].lower(), source=told)
    return (
        f"{opening}\n\n" + (f"Knowledge: {source}\n" if source else "") + f"{part.words[0]}: {asked}\n{part.words[1]}:"
    )


def _ending(part: HaluEvalFormat, instruction: str | None, text: str) -> str:
    return f" {text}\n" + ("#Your Judgement#:" if instruction is not None else "Contains a hallucination:")


class JudgedSummary(TypedDict):
    """What a result says about the answers to be judged."""

    part: str
    items: int
    yes_items: int
    sha256: str


def describe_judged(part: str, judged: Sequence[Judged]) -> JudgedSummary:
    """Describe the items for a result."""
    return {
        "part": part,
        "items": len(judged),
        "yes_items": sum(item.gold == "yes" for item in judged),
        "sha256": digest(*sorted(f"{item.id}\x1e{item.key}" for item in judged)),
    }


@dataclass(frozen=True)
class HaluEvalOptions(AskFileOptions):
    """How HaluEval is asked.

    Attributes:
        instruction: The benchmark's own few-shot instruction; None: our own wording.
        knowledge: Show the knowledge where a part has it.
        shown: ``both`` answers of a row, or ``one``.
        new_tokens: Greedy tokens of each answer; 1 is a single forward pass.
    """

    instruction: str | None = field(
        default=None, metadata=help_text("File with the benchmark's own instruction.", text_file=True)
    )
    knowledge: bool = field(default=True, metadata=help_text("Show the knowledge where the data has it."))
    shown: ShownAnswers = field(default="both", metadata=help_text("Answers of a row that are shown."))
    new_tokens: int = field(default=1, metadata=help_text("Greedy tokens per answer (1: a single pass)."))


def read_items(data: Sequence[Path], how: HaluEvalOptions) -> Items:
    """Return the answers to be judged as prompts."""
    leave_out = LeaveOut(how.skip_bad_rows)
    part, judged = read_halueval(
        data[0],
        instruction=how.instruction,
        knowledge=how.knowledge,
        shown=how.shown,
        limit=how.limit,
        seed=how.seed,
        encoding=how.encoding,
        leave_out=leave_out,
    )
    return Items(
        [Item(one.prompt, one.opening, [begin_line(one.id, one.group, one.key, one.gold)]) for one in judged],
        {
            "data": {"path": data[0].name, **describe_judged(part, judged)},
            "shown": how.shown,
            "knowledge": how.knowledge,
            "instruction": how.instruction or "our own wording",
            "new_tokens": how.new_tokens,
            "parsers": list(HALUEVAL_PARSERS),
        },
        skipped=leave_out.count,
    )


HALUEVAL = Benchmark(
    name="halueval",
    label="HaluEval",
    about="HaluEval: does the answer that is shown contain a hallucination, yes or no?",
    asks="yes_no",
    options=HaluEvalOptions,
    read=read_items,
    parse=parse_with(HALUEVAL_PARSERS),
    measure=measure_yesno,
    primary="accuracy",
    shown_beside=("yes_rate",),
)
