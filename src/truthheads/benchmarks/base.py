"""What a benchmark is: one record that says how it is asked, how its answers are read, and how they are measured."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Required, TypedDict, get_args

from truthheads.data.questions import Question
from truthheads.errors import TruthHeadsError
from truthheads.stats.resampling import Measured

RESERVED = ("neutral", "answers", "rescore")
"""What stands where a benchmark's name does: the lines on neutral text, and sub-commands of ``evaluate``."""


class Prediction(TypedDict, total=False):
    """What is known of one item in one run: a line of ``predictions.jsonl``.

    A benchmark whose lines hold more has its own type, which extends this one.

    Attributes:
        task: Name of the benchmark.
        run: Name of the run.
        id: Name of the item; unique in its split.
        split: Split of the benchmark, where it has several.
        group: Items of one group are resampled together: a question, an image.
        prompt: Equal for equal prompts.
        gold: The right answer, as the benchmark compares it.
        answer: What was written.
        finished: Whether the text came to its end before the cap.
        yes: Log-probability of yes as the first token; None where no model was asked.
        no: Log-probability of no.
        parsed: How each parser reads the answer: ``yes``, ``no``, or None.
        logp: Log-probabilities of both answers, the truthful one first.
        metrics: What lm-evaluation-harness measured of the item.
        last: Whether it is the last line of a run that is written whole.
        kl: Change under the gate in nats a token; on lines of neutral text.
        loss: Rise of the loss in nats a token; on lines of neutral text.
    """

    task: str
    run: str
    id: Required[str]
    split: str
    group: str
    prompt: str | None
    gold: Any
    answer: str | None
    finished: bool
    yes: float | None
    no: float | None
    parsed: Mapping[str, str | None]
    logp: list[float]
    metrics: Mapping[str, float]
    last: bool
    kl: float
    loss: float


class OptionHelp(TypedDict):
    """The metadata of an option's field: its help, and whether the command line takes the name of a text file."""

    help: str
    text_file: bool


Asks = Literal["yes_no", "text", "pair_logprobs", "harness"]
"""How a model is asked: the logits of yes and no, generated text, log P of two answers, or by lm-evaluation-harness."""


def help_text(text: str, *, text_file: bool = False) -> OptionHelp:
    """Return the metadata of an option's field; the command line is made from it.

    Args:
        text: The option's help, a phrase that stands alone.
        text_file: On the command line, the name of a file is given, and the option gets the file's text.
    """
    return {"help": text, "text_file": text_file}


@dataclass(frozen=True)
class AnswerOptions:
    """Options of everything that is scored, whether a model runs or not.

    Attributes:
        limit: Rows of each file, at most.
        seed: Random seed of what is drawn: controls, intervals, what is shown.
    """

    limit: int | None = field(default=None, metadata=help_text("Rows of each file to read at most."))
    seed: int = field(default=0, metadata=help_text("Random seed of controls, samples, intervals."))


@dataclass(frozen=True)
class FileOptions(AnswerOptions):
    """Options of what is read from files of rows.

    Attributes:
        encoding: Encoding of text files; None: UTF-8.
    """

    encoding: str | None = field(default=None, metadata=help_text("Encoding of text files (default: utf-8)."))


@dataclass(frozen=True)
class AskOptions(AnswerOptions):
    """How a benchmark is put before a model; each benchmark adds its own.

    Attributes:
        chat: Use the tokenizer's chat template.
    """

    chat: bool = field(default=False, metadata=help_text("Wrap the prompt in the tokenizer's chat template."))

    @property
    def new_tokens(self) -> int:
        """Greedy tokens of each answer; 0 where nothing is written. Benchmarks that write have it as an option."""
        return 0


@dataclass(frozen=True)
class AskFileOptions(FileOptions, AskOptions):
    """Options of benchmarks that put the rows of files before a model.

    Attributes:
        skip_bad_rows: Leave rows out that are bad, or too long for the model, and count them.
    """

    skip_bad_rows: bool = field(
        default=False, metadata=help_text("Leave out rows with errors, or too long, and count them.")
    )


@dataclass(frozen=True)
class QuestionOptions(AskFileOptions):
    """Options of benchmarks whose prompts are questions, with a context or an image.

    Attributes:
        images: Folder that image paths start from; None: the data file's own.
        truncate: Drop the start of contexts that are too long.
    """

    images: Path | None = field(
        default=None, metadata=help_text("Base folder of image paths (default: the data file's folder).")
    )
    truncate: bool = field(default=False, metadata=help_text("Drop the start of contexts that are too long."))


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt and the lines that its answer fills; no token ids.

    Attributes:
        prompt: A whole text, or a question, which is framed as everywhere in the package.
        share: Prompts with one name may begin alike: one image, one question.
        lines: What is already known of its lines; more than one where an item stands in several splits.
    """

    prompt: str | Question
    share: str
    lines: list[Prediction]


@dataclass(frozen=True, slots=True)
class Items:
    """What a benchmark reads from its files.

    Attributes:
        items: The prompts.
        settings: What a result says about them.
        notes: Sentences for the reader.
        contexts: Questions whose contexts serve as neutral text.
        tools: What reading has set up for ``parse``, a matcher of words for example.
        skipped: Bad rows that were left out.
    """

    items: list[Item]
    settings: Mapping[str, object]
    notes: Sequence[str] = ()
    contexts: Sequence[Question] = ()
    tools: Any = None
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model gave for one prompt.

    Attributes:
        tokens: The greedy tokens.
        decode: From tokens to text.
        finished: Whether the text came to its end before the cap.
        yes: Log-probability of yes as the first token, where that is asked.
        no: Log-probability of no.
        logp: Log-probability of each of the two answers, where that is asked.
    """

    tokens: Sequence[int] = ()
    decode: Callable[[Sequence[int]], str] = str
    finished: bool = False
    yes: float | None = None
    no: float | None = None
    logp: Sequence[float] = ()

    @property
    def text(self) -> str:
        """The whole text."""
        return self.decode(self.tokens)

    def text_at(self, cap: int) -> str:
        """Return the text of the first ``cap`` tokens."""
        return self.decode(self.tokens[:cap])

    def finished_at(self, cap: int) -> bool:
        """Return whether the text came to its end before a cap."""
        return self.finished and len(self.tokens) < cap


@dataclass(frozen=True, slots=True)
class AnswersRead:
    """Answers that were made elsewhere: whole lines, what the result says about them, and notes for the reader."""

    lines: Sequence[Prediction]
    settings: Mapping[str, object]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class AnswersElsewhere:
    """How answers that were made elsewhere are read, where a benchmark takes them.

    Attributes:
        about: What the files hold, for the help of ``evaluate answers``.
        options: Their options.
        read: From the answers' files, the benchmark's files and the options to whole lines.
    """

    about: str
    options: type[AnswerOptions]
    read: Callable[[Sequence[Path], Sequence[Path], Any], AnswersRead]


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One benchmark. Nothing else in the package has to know its name but its line in ``registry.BENCHMARKS``.

    Attributes:
        name: As on the command line and in every line of its predictions.
        label: As it is written on a page.
        about: One line of help.
        asks: How a model is asked.
        options: A dataclass of its options, each with a default and a help text (see :func:`help_text`).
        measure: From the lines of one run, and ``seed``, to its figures.
        read: From its files and options to its items. Not for ``harness``, which reads by itself.
        parse: From a begun line, an answer and the items' ``tools`` to the whole line. Not for ``harness``.
        primary: The figure that the verdict is about; None: as ``measure`` says, where it depends on the data.
        lower_is_better: Whether less of the primary figure is better.
        shown_beside: Figures whose changes are shown beside that of the primary one.
        several_files: Whether it takes more than one file.
        needs_files: Whether it takes at least one.
        shows_images: Whether every prompt shows an image.
        scene_files: The files of generated scenes that it is asked about.
        elsewhere: How answers made elsewhere are read; None: it takes none.
    """

    name: str
    label: str
    about: str
    asks: Asks
    options: type[AskOptions]
    measure: Callable[..., Measured]
    read: Callable[[Sequence[Path], Any], Items] | None = None
    parse: Callable[[Prediction, Answer, Any], Prediction] | None = None
    primary: str | None = None
    lower_is_better: bool = False
    shown_beside: tuple[str, ...] = ()
    several_files: bool = False
    needs_files: bool = True
    shows_images: bool = False
    scene_files: tuple[str, ...] = ("questions.jsonl",)
    elsewhere: AnswersElsewhere | None = None

    def __post_init__(self) -> None:
        """Raise TruthHeadsError where a part is missing: before a model is loaded, not after it has run."""
        missing = [name for name in ("label", "about") if not getattr(self, name)]
        taken = self.name in RESERVED or not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name)
        missing += [f"name of small letters other than {', '.join(RESERVED)}"] if taken else []
        missing += [f"asks ({', '.join(get_args(Asks))})"] if self.asks not in get_args(Asks) else []
        asked = ("measure",) if self.asks == "harness" else ("measure", "read", "parse")
        missing += [name for name in asked if not callable(getattr(self, name))]
        missing += ["primary"] if self.primary is None and self.asks != "harness" else []
        missing += self._missing_options()
        if missing:
            raise TruthHeadsError(
                f"the benchmark {self.name!r} is registered by half",
                expected="a record with every part that evaluate, report and the command line need",
                got=f"no {', no '.join(missing)}",
                fix="fill in the record (see truthheads.benchmarks.base.Benchmark)",
            )

    def _missing_options(self) -> list[str]:
        found = []
        kinds: list[tuple[str, Any, type]] = [("options", self.options, AskOptions)]
        if self.elsewhere is not None:
            kinds.append(("elsewhere.options", self.elsewhere.options, AnswerOptions))
        for name, kind, base in kinds:
            if not (isinstance(kind, type) and issubclass(kind, base) and is_dataclass(kind)):
                found.append(f"{name} (a dataclass that extends {base.__name__})")
                continue
            bare = [one.name for one in fields(kind) if not one.metadata.get("help") or one.default is MISSING]
            found += [f"help and default of {name} {one}" for one in bare]
            if not bare and kind is self.options and self.asks in ("yes_no", "text") and self.options().new_tokens < 1:
                found.append("options.new_tokens (how many tokens are written)")
        return found

    def ask_options(self, given: AskOptions | Mapping[str, object] | None = None, *, seed: int = 0) -> AskOptions:
        """Return this benchmark's options from its own, from the common ones, or from names and values.

        Args:
            given: The options; what is not given has its default.
            seed: The seed, where ``given`` has none.

        Raises:
            TruthHeadsError: An option is not one of this benchmark's.
        """
        if isinstance(given, AskOptions) and type(given) is self.options:  # a subclass holds options of another one
            return given
        known = [one.name for one in fields(self.options)]
        told = {one.name: getattr(given, one.name) for one in fields(given)} if isinstance(given, AskOptions) else given
        values = {"seed": seed, **(told or {})}
        strange = [name for name in values if name not in known]
        if strange:
            raise TruthHeadsError(
                f"{self.name} has no option {', '.join(strange)}",
                expected=f"options among {', '.join(known)}",
                got=", ".join(strange),
                fix="leave it out, or choose another benchmark",
            )
        return self.options(**values)


def begin_line(name: str, group: str, key: str, gold: Any, split: str = "") -> Prediction:
    """Begin a line with everything known before the model is asked.

    Args:
        name: Name of the item; unique in its split.
        group: Items of one group are resampled together: a question, an image.
        key: Equal for equal prompts.
        gold: The right answer.
        split: Split of the benchmark, where it has several.
    """
    return {"id": name, "split": split, "group": group, "prompt": key, "gold": gold}
