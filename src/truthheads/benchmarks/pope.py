"""POPE: is there such an object in the image? Question files, and answers that were made elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from truthheads.benchmarks.base import (
    AnswersElsewhere,
    AnswersRead,
    Benchmark,
    FileOptions,
    Item,
    Items,
    Prediction,
    QuestionOptions,
    begin_line,
    help_text,
)
from truthheads.benchmarks.pope_answers import BY_ID, match_answers
from truthheads.benchmarks.pope_questions import SPLITS, describe_pope, pope_notes, read_pope
from truthheads.benchmarks.rows import LeaveOut, digest, placed_image
from truthheads.benchmarks.yes_no import POPE_PARSERS, measure_yesno, parse_with
from truthheads.data.questions import Question
from truthheads.storage.files import describe_file


@dataclass(frozen=True)
class PopeOptions(QuestionOptions):
    """How POPE is asked.

    Attributes:
        instruction: Text put after each question.
        new_tokens: Greedy tokens of each answer; 1 is a single forward pass.
    """

    instruction: str | None = field(
        default=None, metadata=help_text("File with a text to put after each question.", text_file=True)
    )
    new_tokens: int = field(default=1, metadata=help_text("Greedy tokens per answer (1: a single pass)."))


def read_items(data: Sequence[Path], how: PopeOptions) -> Items:
    """Return the questions as prompts; one that stands in several splits is asked once."""
    leave_out = LeaveOut(how.skip_bad_rows)
    questions = read_pope(data, limit=how.limit, encoding=how.encoding, leave_out=leave_out)
    ending = f"\n{how.instruction.strip()}" if how.instruction else ""
    lines: dict[str, list[Prediction]] = {}
    for one in questions:
        line = begin_line(one.id, Path(one.image).name, digest(one.key, ending), one.gold, one.split)
        lines.setdefault(one.key, []).append(line)
    described = describe_pope(data, questions)
    items = []
    for key, one in {one.key: one for one in questions}.items():
        image = placed_image(one.image, data[0], how.images)
        asked = Question(one.id, "", one.text + ending, None, None, image=image, group=one.image)
        items.append(Item(asked, one.image, lines[key]))
    settings = {
        "data": described,
        "instruction": how.instruction,
        "new_tokens": how.new_tokens,
        "parsers": list(POPE_PARSERS),
    }
    return Items(items, settings, pope_notes(described), skipped=leave_out.count)


def read_answered(answers: Sequence[Path], data: Sequence[Path], how: FileOptions) -> AnswersRead:
    """Return the lines of answers that were made elsewhere."""
    files = [read_pope([path], encoding=how.encoding) for path in data]
    read_pope(data, encoding=how.encoding)  # the splits together: none is there twice
    found = match_answers(answers, files, encoding=how.encoding)
    kept = [(question, text) for file in found.pairs for question, text in file[: how.limit]]
    questions = [question for question, _ in kept]
    lines: list[Prediction] = [
        {
            **begin_line(question.id, Path(question.image).name, question.key, question.gold, question.split),
            "answer": text,
            "yes": None,
            "no": None,
            "parsed": {name: parse(text) for name, parse in POPE_PARSERS.items()},
        }
        for question, text in kept
    ]
    described = describe_pope(data, questions)
    told = [describe_file(path) for path in answers]
    settings = {
        "data": described,
        "answers": told,
        "matched_by": found.by,
        "parsers": list(POPE_PARSERS),
        "limit": how.limit,
    }
    notes = [] if found.by == BY_ID else [f"answers are matched to questions by {found.by}"]
    return AnswersRead(lines, settings, [*notes, *pope_notes(described)])


POPE = Benchmark(
    name="pope",
    label="POPE",
    about="POPE: is there such an object in the image, yes or no? Give --data once for each split.",
    asks="yes_no",
    options=PopeOptions,
    read=read_items,
    parse=parse_with(POPE_PARSERS),
    measure=measure_yesno,
    primary="accuracy",
    shown_beside=("yes_rate",),
    several_files=True,
    shows_images=True,
    scene_files=tuple(f"pope_{split}.jsonl" for split in SPLITS),
    elsewhere=AnswersElsewhere(
        "Answers to POPE as POPE's, LLaVA's and VCD's scripts write them: `answer` or `text`.",
        FileOptions,
        read_answered,
    ),
)
