"""Text questions: what a context says about invented people, places and things, or about an altered world."""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

import numpy as np

from truthheads.choices import Split
from truthheads.data.questions import Question
from truthheads.errors import DataError
from truthheads.synthetic.lexicon import SPLITS, WORLD_TABLE, lexicon, marks

_T = TypeVar("_T")

KINDS: Final = ("absent", "distractor", "memory")

UNANSWERABLE: Final = "unanswerable"

NOT_STATED: Final = "not stated"

_MOST_FACTS: Final = 8

_MOST_DRAWS: Final = 500  # few draws are rejected, so this is never reached

_DRAWS_FOR_NEW: Final = 20  # after that many draws a question may come again, after twice as many a row

_LEADS: Final = ("According to the text, ", "According to the passage, ", "Based on the text, ", "From the text, ")


class Phrase(NamedTuple):
    """One attribute: whose it is, the pool of its values, how a context says it, how a question asks for it."""

    owner: str
    name: str
    pool: str
    says: tuple[str, ...]
    asks: tuple[str, ...]


# Two lines per attribute: ``owner name[=pool]: statements`` and ``? questions``. {e} is the entity, {v} the value,
# {a} its article, {w} the other party of a deal. A value in small letters never begins a statement.
_TABLE: Final = """
person job: {e} works as {a} {v} | {e} earns a living as {a} {v} | {e} is {a} {v} by trade | {e} has a job as {a} {v}
? What is {e}'s job? | What does {e} do for a living? | What is the occupation of {e}? | What does {e} work as?
person birth: {e} was born in {v} | {e}'s year of birth is {v} | {e} came into the world in {v}
? In which year was {e} born? | What year was {e} born in? | What is {e}'s year of birth? | When was {e} born?
person home=town: {e} lives in {v} | {e}'s home is in {v} | {e} is a resident of {v} | {e} has settled in {v}
? Where does {e} live? | In which town does {e} live? | What town does {e} call home? | Where is {e}'s home?
person instrument: {e} plays the {v} | {e}'s instrument is the {v} | The instrument that {e} plays is the {v}
? Which instrument does {e} play? | What instrument does {e} play? | What is {e}'s instrument?
person pet: {e} has a pet {v} | {e} keeps {a} {v} as a pet | {e}'s pet is {a} {v} | {e} looks after a pet {v}
? What pet does {e} have? | What kind of animal is {e}'s pet? | Which animal does {e} keep as a pet?
person meal: {e}'s favourite dish is {v} | {e} likes {v} more than any other dish | The dish that {e} likes best is {v}
? What is {e}'s favourite dish? | Which dish does {e} like best? | What dish does {e} like most?
person language: {e} is learning {v} | {e} studies {v} in the evenings | The language that {e} is learning is {v}
? Which language is {e} learning? | What language is {e} studying? | What language does {e} study?
person sport: {e}'s favourite sport is {v} | {e} likes {v} more than any other sport | {e} spends every Sunday on {v}
? What is {e}'s favourite sport? | Which sport does {e} like best? | What sport does {e} like most?
person mentor=person: {e}'s mentor is {v} | {v} is the mentor of {e} | The mentor of {e} is {v}
? Who is {e}'s mentor? | Who is the mentor of {e}? | Who acts as the mentor of {e}?
town river: {e} lies on a river called {v} | The river that runs through {e} is {v} | The river at {e} is {v}
? Which river runs through {e}? | What river does {e} lie on? | What is the river at {e} called?
town founding: {e} was founded in {v} | {e}'s founding year is {v} | The town of {e} was founded in {v}
? In which year was {e} founded? | When was {e} founded? | What is the founding year of {e}?
town trade: {e} is known for its {v} | {e} is famous for its {v} | Visitors come to {e} for its {v}
? What is {e} known for? | What is {e} famous for? | What do visitors come to {e} for?
town mayor=person: The mayor of {e} is {v} | {v} is the mayor of {e} | {e} has elected {v} as its mayor
? Who is the mayor of {e}? | Who is {e}'s mayor? | Who serves as mayor of {e}?
town population: {e} has a population of {v} | {e} has {v} inhabitants | {e} is home to {v} people
? What is the population of {e}? | How many people live in {e}? | How many inhabitants does {e} have?
town twin=town: {e} is twinned with {v} | {e}'s twin town is {v} | The twin town of {e} is {v}
? Which town is {e} twinned with? | What is {e}'s twin town? | Which place is the twin town of {e}?
town weekday: {e} holds its market on {v} | {e}'s market day is {v} | The weekly market in {e} is on {v}
? On which day does {e} hold its market? | What is {e}'s market day? | On what day is the market in {e}?
thing colour: {e} is painted {v} | {e} is {v} in colour | The colour of {e} is {v} | {e} has been painted {v}
? What colour is {e}? | What is the colour of {e}? | Which colour is {e}?
thing material: {e} is made of {v} | {e} was built from {v} | {e}'s material is {v} | The material of {e} is {v}
? What is {e} made of? | Which material is {e} made of? | What material was {e} built from?
thing weight: {e} weighs {v} | {e} has a weight of {v} | The weight of {e} is {v} | {e}'s weight is {v}
? How much does {e} weigh? | What is the weight of {e}? | How heavy is {e}?
thing price: {e} costs {v} | {e} sells for {v} | The price of {e} is {v} | {e} is on sale for {v}
? How much does {e} cost? | What is the price of {e}? | What does {e} cost?
thing designer=person: {e} was designed by {v} | {v} designed {e} | The designer of {e} is {v}
? Who designed {e}? | Who is the designer of {e}? | Who was {e} designed by?
thing making: {e} was made in {v} | {e} dates from {v} | {e} was built in {v}
? In which year was {e} made? | When was {e} made? | What year does {e} date from?
thing site=town: {e} is kept in {v} | {e} is on display in {v} | {e} can be seen in {v}
? Where is {e} kept? | In which town is {e} kept? | In which town can {e} be seen?
town winner=person: {v} beat {w} in the {e} chess final | {w} lost the {e} chess final to {v}
? Who won the {e} chess final? | Who was the winner of the {e} chess final? | Who won at chess in {e}?
town loser=person: {w} beat {v} in the {e} chess final | {v} lost the {e} chess final to {w}
? Who lost the {e} chess final? | Who was the loser of the {e} chess final? | Who lost at chess in {e}?
town seller=person: {v} sold {w} a cottage in {e} | {w} bought a cottage in {e} from {v}
? Who sold the cottage in {e}? | Who was the seller of the cottage in {e}? | Who sold a cottage in {e}?
town buyer=person: {w} sold {v} a cottage in {e} | {v} bought a cottage in {e} from {w}
? Who bought the cottage in {e}? | Who was the buyer of the cottage in {e}? | Who bought a cottage in {e}?
town teacher=person: {v} taught {w} to swim in {e} | {w} learned to swim from {v} in {e}
? Who was the swimming teacher in {e}? | Who gave swimming lessons in {e}? | Who taught someone to swim in {e}?
town pupil=person: {w} taught {v} to swim in {e} | {v} learned to swim from {w} in {e}
? Who learned to swim in {e}? | Who took swimming lessons in {e}? | Who was taught to swim in {e}?
"""

_ROWS: Final = tuple(
    Phrase(owner, name, pool or name, tuple(says.split(" | ")), tuple(asks.split(" | ")))
    for owner, name, pool, says, asks in re.findall(r"(\w+) (\w+)=?(\w*): (.+)\n\? (.+)", _TABLE + WORLD_TABLE)
)

_RELATIONS: Final = {phrase.name: phrase for phrase in _ROWS if phrase.owner == "world"}

_DEALS: Final = tuple(phrase for phrase in _ROWS if "{w}" in phrase.says[0])

_INVENTED: Final = tuple(phrase for phrase in _ROWS if phrase.owner != "world" and phrase not in _DEALS)


class Fact(NamedTuple):
    """What one sentence says: the value of an attribute of an entity; ``other`` is the other party of a deal."""

    subject: str
    phrase: Phrase
    value: str
    other: str = ""


def make_text(
    rows: int,
    *,
    seed: int,
    kinds: Sequence[str] = KINDS,
    facts: int | tuple[int, int] = 4,
    split: Split = "test",
    answerable: float = 1.0,
) -> list[Question]:
    """Write questions whose truthful and untruthful answers have the same form.

    A context has one sentence per fact, in random order. ``kind`` says where the untruthful answer comes from:
    ``absent`` (nowhere in the context), ``distractor`` (the same attribute of something else in the context or, where
    there is one fact, its other party), ``memory`` (what the world says, while the context says otherwise). In the
    first two the answers could change places without a trace; in ``memory`` a real answer is as often the truthful
    one about another subject as it is the untruthful one about its own.

    Args:
        rows: How many, at least 1. Fewer rows are the first of more. Any number can be had; ``memory`` questions come
            again, about other contexts, after some 2,000.
        seed: At least 0.
        kinds: One or more of ``KINDS``, in numbers that differ by one at most.
        facts: Facts per context, 1 to 8: a number, or the smallest and the largest.
        split: No name and no real-world fact of one split occurs in another.
        answerable: Share of rows, 0 to 1, whose answer the context states, to the nearest row. The others have the
            kind ``unanswerable``: truthful is ``not stated``, untruthful the same attribute of something else in the
            context, evidence is empty.

    Returns:
        Questions with evidence (the truthful answer where it is given) and groups: an entity's attribute, or all real
        facts that trade answers (were one fact a group, its real answer would be truthful in all other folds).

    Raises:
        DataError: An argument is out of range.
    """
    span = facts if isinstance(facts, tuple) else (facts, facts)
    in_range = len(span) == 2 and 1 <= span[0] <= span[1] <= _MOST_FACTS
    checks = {
        "rows": (rows, "a whole number of at least 1", rows >= 1),
        "seed": (seed, "a whole number of at least 0", seed >= 0),
        "kinds": (kinds, f"one or more of {', '.join(KINDS)}, each once", 0 < len(kinds) == len({*kinds} & {*KINDS})),
        "facts": (facts, f"1 to {_MOST_FACTS}, or a pair in that range", in_range),
        "split": (split, f"one of {', '.join(SPLITS)}", split in SPLITS),
        "answerable": (answerable, "a share from 0 to 1", 0.0 <= answerable <= 1.0),
    }
    for name, (value, expected, good) in checks.items():
        if not good:
            problem, fix = f"Text questions cannot be written with this {name}", f"pass {expected}"
            raise DataError(problem, expected=f"{name}: {expected}", got=repr(value), fix=fix)
    writer = TextWriter(split, span, np.random.default_rng([seed, SPLITS.index(split)]))
    made, block = list[Question](), list[str]()
    for index in range(rows):
        before, after = (int(count * (1.0 - answerable) + 0.5) for count in (index, index + 1))
        if before < after:
            kind, source = UNANSWERABLE, _pick(kinds, writer.rng)
        else:
            block = block or [kinds[i] for i in writer.rng.permutation(len(kinds))]
            kind = source = block.pop()
        made.append(writer.write(f"{split}-{seed}-{index:06d}", kind, real=source == "memory"))
    return made


def write_context(facts: Sequence[Fact], *, women: frozenset[str], rng: np.random.Generator) -> tuple[str, list[int]]:
    """Write one sentence per fact, in order; return the text and the character at which each value begins.

    A pronoun stands only for the subject of the sentence before, and never where a value could be meant.

    Args:
        facts: What to say, at least one.
        women: The first names that take ``she``.
        rng: Picks the wording.
    """
    text, starts, before = "", [], ""
    for fact in facts:
        says, (name, phrase) = _pick(fact.phrase.says, rng), fact[:2]
        person = phrase.owner == "person"
        again, opens = name == before, says.startswith("{e}")
        before = name if opens and phrase.pool not in (("person",) if person else ("town", "river")) else ""
        if again and opens and rng.random() < 0.6:
            pronoun = ("She Her" if name.split()[0] in women else "He His" if person else "It Its").split()
            says = says.replace("{e}'s", pronoun[1]).replace("{e}", pronoun[0])
        article = "an" if fact.value[0] in "aeiou" else "a"
        says = says.replace("{e}", name).replace("{w}", fact.other).replace("{a}", article)
        says = says[0].upper() + says[1:]
        starts.append(len(text) + says.index("{v}"))
        text += says.replace("{v}", fact.value) + ". "
    return text.rstrip(), starts


class TextWriter:
    """Draws one row after another; remembers what it has written."""

    def __init__(self, split: str, facts: tuple[int, int], rng: np.random.Generator) -> None:
        self.rng, self.facts, self.words = rng, facts, lexicon(split)
        self.written: set[str] = set()
        relations = ((_RELATIONS[name], facts) for name, facts in self.words.world.items())
        self.real = [Fact(subject, phrase, answer) for phrase, facts in relations for subject, answer in facts.items()]

    def write(self, name: str, kind: str, *, real: bool) -> Question:
        """Write one row of a kind; ``real``: about something of the altered world."""
        for draw in range(_MOST_DRAWS):
            fact, untruthful, stated = self.draft(kind, real=real)
            question = _pick(fact.phrase.asks, self.rng).replace("{e}", fact.subject)
            lead = int(self.rng.integers(2 * len(_LEADS)))
            if lead < len(_LEADS):
                question = _LEADS[lead] + question[0].lower() + question[1:]
            if question in self.written and draw < _DRAWS_FOR_NEW:
                continue
            stated = self.ordered(stated)
            context, starts = write_context(stated, women=self.words.women, rng=self.rng)
            pair = [_plain(answer) for answer in (fact.value, untruthful)]
            expected = [kind != UNANSWERABLE, kind in ("distractor", UNANSWERABLE)]  # how often each is named
            known = context + question in self.written and draw < 2 * _DRAWS_FOR_NEW
            named = [_plain(context).count(answer) for answer in pair]
            if named == expected and not known and not any(answer in _plain(question) for answer in pair):
                break
        else:
            raise AssertionError(f"no sound row of kind {kind} in {_MOST_DRAWS} draws")
        self.written |= {question, context + question}
        alike = self.words.pools[fact.phrase.pool].alike[fact.value]
        group = f"{fact.phrase.name}: {f'like {alike[0]}' if real else fact.subject}".lower()
        if kind == UNANSWERABLE:
            return Question(name, context, question, NOT_STATED, untruthful, group=group, kind=kind)
        start = starts[stated.index(fact)]
        span = (start, start + len(fact.value))
        return Question(name, context, question, fact.value, untruthful, (span,), group=group, kind=kind)

    def ordered(self, stated: list[Fact]) -> list[Fact]:
        """Shuffle the facts; in every second context those of one entity then come together."""
        stated = [stated[i] for i in self.rng.permutation(len(stated))]
        rank = {fact.subject: self.rng.random() for fact in stated}
        return sorted(stated, key=lambda fact: rank[fact.subject]) if self.rng.random() < 0.5 else stated

    def draft(self, kind: str, *, real: bool) -> tuple[Fact, str, list[Fact]]:
        """Return the fact that is asked for, the untruthful answer, and the facts that the context states."""
        count = int(self.rng.integers(self.facts[0], self.facts[1] + 1))
        pools, taken = self.words.pools, set[str]()
        if real:
            subject, phrase, absent, _ = _pick(self.real, self.rng)
            facts = self.words.world[phrase.name]
            taken |= marks(subject) | marks(absent)
            value = self._fresh(pools[phrase.name].alike[absent], taken)
            rival = self._fresh(tuple(facts), taken)
            taken |= marks(facts[rival])
            other = self._fresh(tuple(facts.values()), taken)
        else:
            phrase = _pick(_DEALS if kind == "distractor" and count == 1 else _INVENTED, self.rng)
            three = [self._fresh(pools[phrase.pool].texts, taken)]
            three += [self._fresh(pools[phrase.pool].alike[three[0]], taken) for _ in range(2)]
            value, other, absent = (three[i] for i in self.rng.permutation(3))
            subject, rival = (self._fresh(pools[phrase.owner].texts, taken) for _ in range(2))
        asked, rest = Fact(subject, phrase, value, other if phrase in _DEALS else ""), Fact(rival, phrase, other)
        stated = [rest] if kind == UNANSWERABLE else [asked, rest][:count]
        owners = {} if real else {subject: phrase.owner, rival: phrase.owner}
        used = {(subject, phrase), (rival, phrase)}
        while len(stated) < count:
            if kind == UNANSWERABLE and owners and len(stated) == 1:
                entity = subject  # so that the context does speak of it
            elif owners and self.rng.random() < 0.65:
                entity = _pick(tuple(owners), self.rng)
            else:
                owner = _pick(("person", "town", "thing"), self.rng)
                entity = self._fresh(pools[owner].texts, taken)
                owners[entity] = owner
            open_ = [row for row in _INVENTED if row.owner == owners[entity] and (entity, row) not in used]
            if open_:
                row = _pick(open_, self.rng)
                used.add((entity, row))
                stated.append(Fact(entity, row, self._fresh(pools[row.pool].texts, taken)))
        return asked, other if kind in ("distractor", UNANSWERABLE) else absent, stated

    def _fresh(self, texts: Sequence[str], taken: set[str]) -> str:
        """Draw a text that shares no name or number with those taken, and take it."""
        for _ in range(50):
            text = _pick(texts, self.rng)
            if not marks(text) & taken:
                break
        taken |= marks(text)
        return text


def _pick(options: Sequence[_T], rng: np.random.Generator) -> _T:
    return options[int(rng.integers(len(options)))]


def _plain(text: str) -> str:
    """Return the words of a text in small letters, each between spaces, so that whole words can be counted."""
    return " " + "  ".join(re.findall(r"\w+", text.lower())) + " "
