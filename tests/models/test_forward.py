"""Values do not depend on how rows are batched, and what goes wrong on the way is said or mended."""

import errno
import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from torch import Tensor
from transformers import PreTrainedModel

from truthheads.data.questions import Question
from truthheads.errors import ActivationError, ArtifactError, DataError, ModelError
from truthheads.models.forward import answer_logprobs, plan_batches, prepare_tails, run_batches, shares_prefix
from truthheads.models.load import Model
from truthheads.models.prompts import Encoded, encode
from truthheads.scoring import activations
from truthheads.scoring.activations import collect, field_name, first_answers, without_prediction
from truthheads.storage.row_store import RowStore
from zoo import MULTIMODAL, ROWS, SPECIAL_TOKENS, ZooRow, build, tiny_tokenizer

ModelOf = Callable[[ZooRow], Model]
Wrap = Callable[..., Model]

TOLERANCE = 1e-4
"""Two ways through a float32 model, of z of size 1 and log-probabilities of size 5 to 100."""

BY_NAME = {row.name: row for row in ROWS}
LLAMA = BY_NAME["llama_gqa"]

QUESTIONS = (
    Question("short", "Ann sat.", "Who sat?", "Ann", "Bob"),
    Question("long", "The mill by the river was sold to a baker from Lübeck in May; the house was not.",
             "What was sold?", "the old mill by the river", "the house"),
    Question("bare", "", "Is it so?", "yes", "no, not at all"),
    Question("alike", "He flew to New York, then home.", "Where to?", "New York", "New Orleans"),
    Question("start", "It was a tree.", "What was it?", "a tree", "a tree house"),
    Question("single", "Bees hum and birds sing.", "What do bees do?", None, "sing"),
)  # fmt: skip
PAIRS = QUESTIONS[:-1]


class Plain(NamedTuple):
    """What a network says of one answer, run on its own: z at its last token per layer, and its log-probability."""

    z: dict[int, Tensor]
    logprob: float


Values = tuple[dict[int, Tensor], Tensor]
"""z of all answers by layer, and all their log-probabilities."""


def prompt_of(question: Question) -> str:
    context = f"Context:\n{question.context}\n\n" if question.context else ""
    return f"{context}Question: {question.question}\nAnswer:"


def answers_of(question: Question) -> list[str]:
    return [answer for answer in (question.truthful, question.untruthful) if answer is not None]


@torch.no_grad()
def plain(row: ZooRow, network: PreTrainedModel, question: Question, answer: str) -> Plain:
    """Run one answer: no batch, no padding, no mask, no cache, no code of the package."""
    tokenizer = tiny_tokenizer()
    prompt = tokenizer(prompt_of(question)).input_ids
    ids = tokenizer(f"{prompt_of(question)} {answer}").input_ids
    assert ids[: len(prompt)] == prompt
    z: dict[int, Tensor] = {}

    def keep(layer: int, args: tuple[Tensor, ...]) -> None:
        z[layer] = args[0].reshape(-1, row.num_heads, row.head_dim)[-1]

    handles = [
        network.get_submodule(row.projection(layer)).register_forward_pre_hook(
            lambda _, args, layer=layer: keep(layer, args)
        )
        for layer in row.attending
    ]
    logprobs = network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    for handle in handles:
        handle.remove()
    return Plain(z, float(sum(logprobs[at - 1, ids[at]] for at in range(len(prompt), len(ids)))))


def values(model: Model, questions: Sequence[Question], folder: Path, *, batch_tokens: int, **options: Any) -> Values:
    """Return z of all answers by layer, and all their log-probabilities."""
    encoded = encode(model, questions, **options)
    store = collect(model, encoded, questions, folder, identity="one", batch_tokens=batch_tokens)
    z = {head.index: store.read(field_name(head.index)).clone() for head in model.layout.layers}
    store.delete()
    logprob = torch.zeros(sum(len(item.tails) for item in encoded))
    rows = first_answers(encoded)
    for batch in plan_batches(encoded, batch_tokens=batch_tokens):
        members = [encoded[i] for i in batch]
        with torch.no_grad():
            found = answer_logprobs(model, prepare_tails(model, members))
        logprob[[rows[item.row] + k for item in members for k in range(len(item.tails))]] = found
    return z, logprob


SEEING = [row for row in MULTIMODAL if row.name in ("qwen2_5_vl", "qwen2_5_omni_thinker", "gemma3_vision", "mllama")]
"""Positions in three parts, positions that have to be passed, sliding windows, layers that see images only."""


@pytest.mark.parametrize("row", [*ROWS, *SEEING], ids=str)
def test_values_do_not_depend_on_batches_padding_order_or_sharing(
    row: ZooRow, model_of: ModelOf, tmp_path: Path
) -> None:
    model = model_of(row)
    assert shares_prefix(model) == (not row.without_attention and row.cache_repeat)  # states do not branch
    ways = [
        (QUESTIONS, {"batch_tokens": 10_000, "share_prefix": False}),
        (QUESTIONS[::-1], {"batch_tokens": 400, "share_prefix": False}),
    ]
    if shares_prefix(model):
        ways += [
            (QUESTIONS, {"batch_tokens": 1}),
            (QUESTIONS, {"batch_tokens": 10_000}),
            (QUESTIONS[::-1], {"batch_tokens": 400}),
        ]
    alone = {
        question.id: [plain(row, model.network, question, answer) for answer in answers_of(question)]
        for question in QUESTIONS
    }
    for questions, options in ways:
        expected = [one for question in questions for one in alone[question.id]]
        z, logprob = values(model, questions, tmp_path / "store", **options)
        assert sorted(z) == [*row.attending]
        for layer in row.attending:
            wanted = torch.stack([one.z[layer] for one in expected])
            assert z[layer].dtype == torch.float32
            assert (z[layer] - wanted).abs().max() < TOLERANCE, (options, layer)
        target = torch.tensor([one.logprob for one in expected])
        assert (logprob - target).abs().max() < TOLERANCE, options  # every token of every answer, shared or not


def test_sharing_changes_no_token_and_saves_the_prefix(model_of: ModelOf) -> None:
    model = model_of(LLAMA)
    shared, whole = encode(model, QUESTIONS), encode(model, QUESTIONS, share_prefix=False)
    for one, other, question in zip(shared, whole, QUESTIONS, strict=True):
        assert other.prefix == ()
        assert [one.prefix + tail for tail in one.tails] == list(other.tails)
        assert list(other.tails) == [
            tuple(tiny_tokenizer()(f"{prompt_of(question)} {answer}").input_ids) for answer in answers_of(question)
        ]
        assert one.length == other.length == max(map(len, other.tails))
        assert min(one.starts) >= 1
    # The colon of "Answer:" starts the tails, since it predicts the answer; what the answers share stays with each.
    prompt = len(tiny_tokenizer()(prompt_of(QUESTIONS[3])).input_ids)
    assert len(shared[3].prefix) == prompt - 1
    assert [bytes_of(tail) for tail in shared[3].tails] == [": New York", ": New Orleans"]
    assert [bytes_of(tail) for tail in shared[4].tails] == [": a tree", ": a tree house"]
    assert shared[5].prefix == ()
    assert shared[3].unique_tokens == prompt - 1 + len(": New York") + len(": New Orleans")


def bytes_of(ids: Sequence[int]) -> str:
    return str(tiny_tokenizer().decode(ids))


# Batches


ROW_LENGTHS = st.lists(
    st.tuples(st.just(0) | st.integers(1, 40), st.lists(st.integers(1, 12), min_size=1, max_size=3)), max_size=25
)
"""Of each row the tokens of its prefix and of its tails."""


def padded_tokens(batch: Sequence[Encoded]) -> int:
    prefix = max(len(item.prefix) for item in batch) * len(batch)
    return prefix + max(len(tail) for item in batch for tail in item.tails) * sum(len(item.tails) for item in batch)


@settings(deadline=None)
@given(ROW_LENGTHS, st.integers(1, 300))
def test_batches_hold_every_question_once_within_the_limit(rows: list[tuple[int, list[int]]], limit: int) -> None:
    encoded = [
        Encoded(i, (7,) * prefix, tuple((7,) * tail for tail in tails), (1,) * len(tails))
        for i, (prefix, tails) in enumerate(rows)
    ]
    batches = plan_batches(encoded, batch_tokens=limit)
    assert sorted(i for batch in batches for i in batch) == list(range(len(encoded)))
    for batch in batches:
        members = [encoded[i] for i in batch]
        assert len(batch) == 1 or padded_tokens(members) <= limit
        assert len({bool(item.prefix) for item in members}) == 1
    widths = [len(encoded[i].prefix) for batch in batches for i in batch]
    assert widths == sorted(widths, reverse=True)


def test_batches_are_as_full_as_the_limit_allows() -> None:
    # 10 + 2 * 3 = 16 padded tokens each: six in 100, the rest in the next one.
    encoded = [Encoded(i, (7,) * 10, ((7,) * 3, (7,) * 2), (1, 1)) for i in range(8)]
    assert [len(batch) for batch in plan_batches(encoded, batch_tokens=100)] == [6, 2]
    assert [len(batch) for batch in plan_batches(encoded, batch_tokens=96)] == [6, 2]
    assert [len(batch) for batch in plan_batches(encoded, batch_tokens=95)] == [5, 3]


# Memory


@pytest.fixture
def uncollected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave garbage where it is: in a process with all of transformers each collection takes 0.3 s."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


ROOM = [Encoded(i, (), ((7,) * 4,), (1,)) for i in range(5)]
OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
)


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_halved(model_of: ModelOf, error: Exception) -> None:
    through: list[int] = []
    complete: list[int] = []

    def step(batch: Sequence[Encoded]) -> None:
        if len(batch) > 1:
            raise error
        through.append(batch[0].row)

    run_batches(model_of(LLAMA), ROOM, [[0, 1, 2, 3], [4]], step, done=set(), complete=complete.append)
    assert through == [0, 1, 2, 3, 4]
    assert complete == [0, 1]


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_question_that_does_not_fit_alone_is_an_error(model_of: ModelOf, error: Exception) -> None:
    complete: list[int] = []

    def step(batch: Sequence[Encoded]) -> None:
        if any(item.row == 2 for item in batch):
            raise error

    with pytest.raises(ActivationError, match=r"question 2 does not fit into memory\n.*\n  got: 4 tokens"):
        run_batches(model_of(LLAMA), ROOM, [[0], [1, 2, 3, 4]], step, done=set(), complete=complete.append)
    assert complete == [0]


def test_other_errors_are_not_taken_for_a_lack_of_memory(model_of: ModelOf) -> None:
    calls: list[int] = []

    def step(batch: Sequence[Encoded]) -> None:
        calls.append(len(batch))
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run_batches(model_of(LLAMA), ROOM, [[0, 1, 2]], step, done=set(), complete=calls.append)
    assert calls == [3]


@pytest.mark.usefixtures("uncollected")
def test_activations_are_the_same_when_batches_are_halved(
    model_of: ModelOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(LLAMA)
    encoded = encode(model, PAIRS)
    whole = collect(model, encoded, PAIRS, tmp_path / "whole", identity="a", batch_tokens=10_000)
    sizes: list[int] = []

    def tight(model: Model, batch: Sequence[Encoded]) -> Any:
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("no more")
        return prepare_tails(model, batch)

    monkeypatch.setattr(activations, "prepare_tails", tight)
    halved = collect(model, encoded, PAIRS, tmp_path / "halved", identity="a", batch_tokens=10_000)
    assert sorted(sizes) == [1, 1, 1, 1, 1, 2, 2, 3, 5]
    for head in model.layout.layers:
        name = field_name(head.index)
        assert torch.allclose(whole.read(name), halved.read(name), atol=TOLERANCE, rtol=0)
    whole.close()
    halved.close()


# Values that cannot be used


def test_nan_names_the_layer(model_of: ModelOf, tmp_path: Path) -> None:
    model = model_of(LLAMA)
    model.network.model.layers[1].self_attn.v_proj.weight[3, 5] = torch.nan
    with pytest.raises(ActivationError, match=r"row '\w+', layer 1: z is not finite"):
        collect(model, encode(model, PAIRS), PAIRS, tmp_path, identity="a", batch_tokens=10_000)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("letter", ["ü", "B"])
def test_nan_names_the_row(model_of: ModelOf, tmp_path: Path, bad: float, letter: str) -> None:
    model = model_of(LLAMA)
    # "ü" stands in the context of one row, "B" in an answer of another, and nowhere else.
    token = tiny_tokenizer()(letter, add_special_tokens=False).input_ids[-1]
    model.network.get_input_embeddings().weight[token] = bad
    row = {"ü": "long", "B": "short"}[letter]
    encoded = encode(model, PAIRS)
    with pytest.raises(ActivationError, match=f"row '{row}', layer 0: z is not finite\n.*\n.*\n.*--dtype fp32"):
        collect(model, encoded, PAIRS, tmp_path, identity="a", batch_tokens=10_000)
    others = [question for question in PAIRS if question.id != row]
    collect(model, encode(model, others), others, tmp_path, identity="b", batch_tokens=10_000).close()


# The store


class Calls:
    """Counts the forward passes of a model."""

    def __init__(self, model: Model) -> None:
        self.count = 0
        model.network.base_model.register_forward_pre_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1

    def take(self) -> int:
        count, self.count = self.count, 0
        return count


def contents(store: RowStore, model: Model) -> list[Tensor]:
    found = [store.read(field_name(head.index)).clone() for head in model.layout.layers]
    store.close()
    return found


@pytest.mark.parametrize("killed_after", [1, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_killed_run_goes_on_where_it_stopped(
    model_of: ModelOf, tmp_path: Path, killed_after: int, error: type[BaseException]
) -> None:
    model = model_of(LLAMA)
    encoded = encode(model, PAIRS)
    calls = Calls(model)
    settings: dict[str, Any] = {"identity": "a", "batch_tokens": 130}
    seen: list[tuple[int, int]] = []
    whole = contents(
        collect(model, encoded, PAIRS, tmp_path / "whole", **settings, progress=lambda *at: seen.append(at)), model
    )
    own = [without_prediction(item) for item in encoded]  # what predicts the answer is computed once, not twice
    batches = len(plan_batches(own, batch_tokens=130))
    assert batches >= 4
    assert calls.take() == 2 * batches  # prefix and tails
    total = sum(item.unique_tokens for item in encoded) - len([item for item in encoded if item.prefix])
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})

    done: list[int] = []

    def kill(*_: int) -> None:
        done.append(1)
        if len(done) == killed_after:
            raise error

    with pytest.raises(error):
        collect(model, encoded, PAIRS, tmp_path / "killed", **settings, progress=kill)
    assert calls.take() == 2 * killed_after
    again = contents(collect(model, encoded, PAIRS, tmp_path / "killed", **settings), model)
    assert calls.take() == 2 * (batches - killed_after)
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))
    contents(collect(model, encoded, PAIRS, tmp_path / "killed", **settings), model)
    assert calls.take() == 0


def test_a_batch_that_was_under_way_is_computed_again(model_of: ModelOf, tmp_path: Path) -> None:
    model = model_of(LLAMA)
    encoded = encode(model, PAIRS)
    settings: dict[str, Any] = {"identity": "a", "batch_tokens": 130}
    whole = contents(collect(model, encoded, PAIRS, tmp_path / "whole", **settings), model)
    passes: list[int] = []

    def break_down(*_: Any) -> None:
        passes.append(1)
        if len(passes) == 4:  # the tails of the second batch
            raise KeyboardInterrupt

    handle = model.network.model.layers[2].register_forward_pre_hook(break_down)
    with pytest.raises(KeyboardInterrupt):
        collect(model, encoded, PAIRS, tmp_path / "killed", **settings)
    handle.remove()
    calls = Calls(model)
    again = contents(collect(model, encoded, PAIRS, tmp_path / "killed", **settings), model)
    assert calls.take() == 2 * (len(plan_batches(encoded, batch_tokens=130)) - 1)
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))


def test_another_identity_starts_anew(model_of: ModelOf, tmp_path: Path) -> None:
    model = model_of(LLAMA)
    encoded = encode(model, PAIRS)
    first = contents(collect(model, encoded, PAIRS, tmp_path, identity="a", batch_tokens=10_000), model)
    model.network.model.layers[0].self_attn.v_proj.weight.mul_(2)
    calls = Calls(model)
    kept = contents(collect(model, encoded, PAIRS, tmp_path, identity="a", batch_tokens=10_000), model)
    assert calls.take() == 0
    assert all(torch.equal(one, other) for one, other in zip(first, kept, strict=True))
    fresh = contents(collect(model, encoded, PAIRS, tmp_path, identity="b", batch_tokens=10_000), model)
    assert calls.take() == 2
    assert not torch.equal(first[0], fresh[0])


def test_two_users_of_one_folder(model_of: ModelOf, tmp_path: Path) -> None:
    model = model_of(LLAMA)
    encoded = encode(model, PAIRS)
    first = collect(model, encoded, PAIRS, tmp_path, identity="a", batch_tokens=10_000)
    before = [first.read(field_name(head.index)).clone() for head in model.layout.layers]
    for identity in ("a", "b"):
        with pytest.raises(ArtifactError, match="is in use"):
            collect(model, encoded, PAIRS, tmp_path, identity=identity, batch_tokens=10_000)
    assert all(torch.equal(one, other) for one, other in zip(before, contents(first, model), strict=True))
    collect(model, encoded, PAIRS, tmp_path, identity="a", batch_tokens=10_000).close()


def test_a_full_disk(model_of: ModelOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(LLAMA)
    calls = Calls(model)

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    encoded = encode(model, PAIRS)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(ArtifactError, match=r"not be written\n.*\n  got: the disk is full\n  do: free some space"):
            collect(model, encoded, PAIRS, tmp_path, identity="a", batch_tokens=10_000)
    assert calls.take() == 0  # found before any work is done
    collect(model, encoded, PAIRS, tmp_path, identity="a", batch_tokens=10_000).close()


def test_a_folder_that_cannot_be_made(model_of: ModelOf, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = model_of(LLAMA)
    with pytest.raises(ArtifactError, match="could not be written"):
        collect(model, encode(model, PAIRS), PAIRS, tmp_path / "file" / "store", identity="a", batch_tokens=10_000)


# The token that is read


def ending_tokenizer() -> Any:
    """Return a tokenizer that puts an end marker behind every text."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert tokenizer("x").input_ids[-1] == 2
    return tokenizer


@pytest.mark.parametrize("share", [True, False])
def test_an_end_marker_is_not_read(wrap: Wrap, tmp_path: Path, share: bool) -> None:
    ending, usual = wrap(build(LLAMA), ending_tokenizer()), wrap(build(LLAMA))
    assert encode(ending, QUESTIONS, share_prefix=share) == encode(usual, QUESTIONS, share_prefix=share)
    for item, question in zip(encode(ending, QUESTIONS, share_prefix=share), QUESTIONS, strict=True):
        assert [bytes_of(tail[-1:]) for tail in item.tails] == [answer[-1] for answer in answers_of(question)]


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), ending_tokenizer()], ids=["usual", "ending"])
def test_in_a_chat_the_last_token_is_the_answers_own(wrap: Wrap, tokenizer: Any) -> None:
    model = wrap(build(LLAMA), tokenizer)
    whole = encode(model, QUESTIONS, chat=True, share_prefix=False)
    for item, question in zip(whole, QUESTIONS, strict=True):
        turn = [{"role": "user", "content": prompt_of(question).removesuffix("\nAnswer:")}]
        before = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert before[0] == SPECIAL_TOKENS.index("<s>") != before[1]
        assert [bytes_of(tail[len(before) :]) for tail in item.tails] == answers_of(question)
        assert all(list(tail[: len(before)]) == before for tail in item.tails)
        assert item.starts == (len(before),) * len(item.tails)
    shared = encode(model, QUESTIONS, chat=True)
    assert [[one.prefix + tail for tail in one.tails] for one in shared] == [list(one.tails) for one in whole]


def test_a_chat_needs_a_template(wrap: Wrap) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"plain has no chat template\n.*\n.*\n  do: leave --chat out"):
        encode(wrap(build(LLAMA), tokenizer, "plain"), QUESTIONS, chat=True)


def test_an_answer_without_a_token_is_an_error(wrap: Wrap) -> None:
    tokenizer = tiny_tokenizer(["Question:", "what", "Answer:", "this"])
    question = Question("empty", "", "what", "this", "  ")
    with pytest.raises(DataError, match="row 'empty': the answer has no token of its own"):
        encode(wrap(build(LLAMA), tokenizer), [question])


# Contexts that are too long

LIMIT = 512


def long_question(context: str) -> Question:
    return Question("endless", context, "Who?", "nobody at all", "Ann", evidence=((0, 1),))


@pytest.mark.parametrize("row", [LLAMA, BY_NAME["gpt2"]], ids=str)
def test_too_long_is_an_error_that_names_the_row(row: ZooRow, model_of: ModelOf) -> None:
    model = model_of(row)
    frame = len(tiny_tokenizer()("Context:\n\n\nQuestion: Who?\nAnswer: nobody at all").input_ids)
    fits, over = (long_question("x" * (LIMIT - frame + more)) for more in (0, 1))
    assert encode(model, [fits])[0].length == LIMIT
    with pytest.raises(
        DataError, match=r"row 'endless' is too long(.|\n)*at most 512 tokens\n  got: 513 tokens\n.*--truncate"
    ):
        encode(model, [QUESTIONS[0], over])


def test_where_positions_have_no_limit_nothing_is_too_long(model_of: ModelOf) -> None:
    model = model_of(BY_NAME["bloom"])
    assert encode(model, [long_question("x" * 2000)])[0].length > 2000


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(
    "context", ["".join(f"{i} said so. " for i in range(90)).strip(), "日本語の文" * 60, "é" * 400, "🦊" * 200]
)
def test_truncating_drops_the_start_of_the_context(model_of: ModelOf, context: str, share: bool, chat: bool) -> None:
    model = model_of(LLAMA)
    short, cut = encode(model, [QUESTIONS[0], long_question(context)], truncate=True, share_prefix=share, chat=chat)
    assert short == encode(model, QUESTIONS[:1], share_prefix=share, chat=chat)[0]
    assert cut.row == 1
    assert bool(cut.prefix) == share
    assert LIMIT - 8 < cut.length <= LIMIT
    texts = [tiny_tokenizer().decode(cut.prefix + tail, skip_special_tokens=False) for tail in cut.tails]
    for text, answer in zip(texts, ("nobody at all", "Ann"), strict=True):
        _, frame, rest = text.partition("Context:\n")
        kept, middle, end = rest.partition("\n\nQuestion: Who?")
        assert text.startswith("<s>")
        assert frame and middle
        assert end.endswith(answer)
        assert kept and context.endswith(kept)


def test_truncating_keeps_the_words_of_a_context_that_no_tokens_spell(wrap: Wrap) -> None:
    words = ["Context:", "Question:", "Answer:", "Who", "?", "nobody", "at", "all", "Ann", "start", "end"]
    model = wrap(build(LLAMA), tiny_tokenizer(words))
    context = "start " + "b " * 1000 + "end"
    (cut,) = encode(model, [long_question(context)], truncate=True)
    ids = cut.prefix + cut.tails[0]
    names = model.tokenizer.convert_ids_to_tokens(ids)
    assert cut.length == LIMIT
    assert "start" not in names
    assert names.count("<unk>") == LIMIT - 10  # <s> Context: end Question: Who ? Answer: nobody at all


def test_a_question_that_is_too_long_without_its_context_is_an_error(model_of: ModelOf) -> None:
    question = Question("hopeless", "short", "why " * 200, "yes", "no")
    with pytest.raises(DataError, match="row 'hopeless' is too long"):
        encode(model_of(LLAMA), [question], truncate=True)
