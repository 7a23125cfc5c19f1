"""Attention rows of chosen query positions, from a model loaded with any attention kernel, one batch at a time."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from truthheads.data.questions import Question
from truthheads.errors import ArchitectureError, DataError
from truthheads.models.forward import backbone, prepare_tails, shares_prefix
from truthheads.models.load import Model
from truthheads.models.prompts import Encoded, encode
from truthheads.tracing.evidence import Located, TokenSpans, find_evidence, fitted, token_spans

AttentionRowsCallback = Callable[[int, Float[Tensor, "batch rows num_heads keys"]], None]
"""Called with (layer, weights) at every forward pass; the last key is the last token of the pass."""


@contextmanager
def capture_attention(model: Model, queries: Int[Tensor, "batch rows"], see: AttentionRowsCallback) -> Iterator[None]:
    """Let ``see`` have the attention weights of some queries inside the block.

    Models that call transformers' attention interface are reached through it: the implementation that they ask for is
    replaced by one that calls it and looks on. Others are watched for the softmax or the fused call inside their
    attention modules. Both are undone on exit, also after an error. While the block runs, other models in the process
    pass through the same interface and are left alone.

    Args:
        model: The model.
        queries: For each sequence of the pass the positions, in the tokens of the pass, whose rows are wanted.
        see: Gets every layer's rows in fp32, each non-negative; they sum to 1, or less where a head has a sink of its
            own. Keys are all that the layer still holds: where a sliding window has dropped the oldest, those are
            missing at the front.

    Raises:
        ArchitectureError: A layer with heads computed its attention in a way that cannot be seen.
    """
    modules = {head.index: _attention_module(model, head.path) for head in model.layout.layers}
    layers = {id(module): layer for layer, module in modules.items()}
    seen: set[int] = set()

    def keep(layer: int, weights: Tensor) -> None:
        seen.add(layer)
        see(layer, weights.transpose(1, 2).float())

    with ExitStack() as undo:
        hidden, replaced = {}, set()
        for layer, module in modules.items():
            interface = _scope(module).get("ALL_ATTENTION_FUNCTIONS")
            if interface is None:
                hidden[layer] = module
                continue
            name = str(getattr(module, "config", model.network.config)._attn_implementation or "eager")
            if (id(interface), name) not in replaced:
                replaced.add((id(interface), name))
                _replace(interface, name, _Beside(interface.get(name), layers, queries, keep), undo)
        if hidden:
            undo.enter_context(_Watch(hidden, queries, keep))
        yield
    if seen and seen != modules.keys():
        raise _unseen(model, sorted(modules.keys() - seen))
    if not seen:
        raise _unseen(model, sorted(modules))


def attention_rows(
    query: Float[Tensor, "batch num_heads tokens width"],
    key: Float[Tensor, "batch num_kv_heads keys width"],
    queries: Int[Tensor, "batch rows"],
    mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    is_causal: bool = True,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " num_heads"] | None = None,
    bias: Tensor | None = None,
) -> Float[Tensor, "batch num_heads rows keys"]:
    """Return the softmax of some queries over all keys, in fp32; memory is linear in the number of keys.

    Args:
        query: All queries of the pass; the last one stands at the last key.
        key: All keys; a group of query heads shares one.
        queries: Which queries, for each sequence.
        mask: ``[batch or 1, heads or 1, tokens, keys]``, True (or a number to be added) where a key is seen; or
            ``[batch, keys]``, not 0 where a key is no padding, beside the causal order; or None, causal order alone.
        scaling: Factor of the products; None for one over the root of ``width``.
        is_causal: Whether a query sees no later key where ``mask`` does not say so itself.
        sliding_window: How many keys back a query sees, itself included; None for all.
        softcap: Bound that products are squashed to before the mask.
        sinks: One more logit per head that takes weight and has no key.
        bias: Added to the products, shaped as ``mask``.
    """
    batch, heads, tokens, width = query.shape
    rows, keys = queries.shape[1], key.shape[2]
    queries = queries.to(query.device)
    at = torch.arange(batch, device=query.device)[:, None]
    chosen = query.transpose(1, 2)[at, queries].transpose(1, 2).float()
    grouped = chosen.reshape(batch, key.shape[1], -1, width)
    logits = (grouped @ key.float().transpose(2, 3)).view(batch, heads, rows, keys)
    logits = logits * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if bias is not None:
        logits = logits + _of_queries(bias, queries).float()
    hidden = _hidden(
        queries, keys, keys - tokens, sliding_window, causal=is_causal and (mask is None or mask.ndim == 2)
    )
    if mask is not None and mask.ndim == 2:
        hidden = hidden | (mask[:, None, None, -keys:] == 0)
    elif mask is not None:
        part = _of_queries(mask, queries)[..., :keys]
        if part.dtype == torch.bool:
            hidden = hidden | ~part
        else:
            logits = logits + part.float()
    logits = logits.masked_fill(hidden, torch.finfo(torch.float32).min)
    if sinks is None:
        return logits.softmax(-1)
    beside = sinks.float().reshape(1, -1, 1, 1).expand(batch, heads, rows, 1).to(logits.device)
    return torch.cat([logits, beside], dim=-1).softmax(-1)[..., :-1]


def _hidden(
    queries: Int[Tensor, "batch rows"], keys: int, before: int, window: int | None, *, causal: bool
) -> Bool[Tensor, "batch 1 rows keys"]:
    """Return which keys a query does not see by its place: later ones, and those behind its window."""
    distance = (queries[:, None, :, None] + before) - torch.arange(keys, device=queries.device)
    hidden = distance < 0 if causal else torch.zeros_like(distance, dtype=torch.bool)
    return hidden if window is None else hidden | (distance >= window)


def _of_queries(values: Tensor, queries: Int[Tensor, "batch rows"]) -> Tensor:
    """Return the rows of a mask ``[batch or 1, heads or 1, tokens or 1, keys]`` that belong to the queries."""
    if values.shape[2] == 1:
        return values
    at = torch.arange(len(queries), device=queries.device)[:, None]
    return values.transpose(1, 2).expand(len(queries), -1, -1, -1)[at, queries].transpose(1, 2)


def _rows_of(
    weights: Float[Tensor, "..."], queries: Int[Tensor, "batch rows"]
) -> Float[Tensor, "batch num_heads rows keys"]:
    """Return the queries' rows of weights that the model computed itself, its heads counted through or apart."""
    apart = weights if weights.ndim == 4 else weights.unflatten(0, (len(queries), -1))  # type: ignore[no-untyped-call]
    return _of_queries(apart, queries.to(weights.device))


class _Beside:
    """An attention function that calls another one and, for the layers of one model, records its weights."""

    def __init__(
        self,
        inner: Any,
        layers: dict[int, int],
        queries: Int[Tensor, "batch rows"],
        keep: Callable[[int, Tensor], None],
    ) -> None:
        self.inner, self.layers, self.queries, self.keep = inner, layers, queries, keep

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *rest: Any,
        **settings: Any,
    ) -> Any:
        inner = self.inner or _scope(module)["eager_attention_forward"]
        result = inner(module, query, key, value, attention_mask, *rest, **settings)
        layer = self.layers.get(id(module))
        if layer is None:
            return result
        weights = result[1] if isinstance(result, tuple) else None
        if weights is not None:
            self.keep(layer, _rows_of(weights, self.queries))
            return result
        if attention_mask is not None and not isinstance(attention_mask, Tensor):
            return result  # a block mask of flex attention; the layer counts as unseen
        causal = settings.get("is_causal")
        rows = attention_rows(
            query,
            key,
            self.queries,
            attention_mask,
            scaling=settings.get("scaling"),
            is_causal=bool(getattr(module, "is_causal", True) if causal is None else causal) and query.shape[2] > 1,
            sliding_window=settings.get("sliding_window"),
            softcap=settings.get("softcap"),
            sinks=settings.get("s_aux"),
            bias=settings.get("position_bias"),
        )
        self.keep(layer, rows)
        return result


class _Watch(TorchFunctionMode):
    """Records the softmax, or the fused attention, that runs inside given modules."""

    def __init__(
        self,
        modules: dict[int, nn.Module],
        queries: Int[Tensor, "batch rows"],
        keep: Callable[[int, Tensor], None],
    ) -> None:
        super().__init__()
        self.modules, self.queries, self.keep = modules, queries, keep
        self.layer: int | None = None
        self._undo = ExitStack()

    def __enter__(self) -> "_Watch":
        for layer, module in self.modules.items():
            self._undo.callback(module.register_forward_pre_hook(self._turn(layer)).remove)
            self._undo.callback(module.register_forward_hook(self._turn(None), always_call=True).remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._undo.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.layer is None:
            return result
        if func in (F.softmax, torch.softmax, Tensor.softmax):
            self.keep(self.layer, _rows_of(result, self.queries))
        elif func is F.scaled_dot_product_attention:
            self.keep(self.layer, self._fused(*args, **kwargs))
        return result

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        return attention_rows(query, key, self.queries, attn_mask, scaling=scale, is_causal=is_causal)

    def _turn(self, layer: int | None) -> Callable[..., None]:
        def turn(*_: Any) -> None:
            self.layer = layer

        return turn


def _replace(interface: Any, name: str, function: Any, undo: ExitStack) -> None:
    """Register a function under a name of an attention interface until ``undo`` is closed."""
    before = interface.get(name)

    def back() -> None:
        del interface[name]
        if interface.get(name) is not before:  # it was registered on this interface alone
            interface[name] = before

    interface[name] = function
    undo.callback(back)


def _attention_module(model: Model, projection: str) -> nn.Module:
    """Return the module whose output projection this is."""
    module: nn.Module = model.network.get_submodule(projection.rpartition(".")[0])
    return module


def _scope(module: nn.Module) -> Mapping[str, Any]:
    """Return the names that a module's ``forward`` sees: the file that its class was written in."""
    forward: Any = inspect.unwrap(type(module).forward)
    scope: Mapping[str, Any] = getattr(forward, "__globals__", {})
    return scope


def _unseen(model: Model, layers: list[int]) -> ArchitectureError:
    used = getattr(model.network.config.get_text_config(decoder=True), "_attn_implementation", None)
    return ArchitectureError(
        f"the attention of {model.layout.architecture} cannot be seen in layer {', '.join(map(str, layers[:4]))}"
        + (" …" if len(layers) > 4 else ""),
        expected="attention through transformers' interface, or a softmax or fused call inside the attention module",
        got=f"attention implementation {used!r}",
        fix="load the model with attn_implementation='sdpa' or 'eager', and without torch.compile",
    )


POSITIONS = ("answer", "question", "untruthful")
"""Last token of the truthful answer; of the prompt, from which the answer is predicted; of the untruthful answer."""

AttentionCallback = Callable[[int, int, Tensor], None]
"""Called with (number in the batch, number of the position, weights ``[num_layers, num_heads, seq]``)."""


class Traceable(NamedTuple):
    """A question that can be traced.

    Attributes:
        number: Its row in the list.
        question: As it was encoded.
        located: Its evidence.
        encoded: Its tokens.
        places: For each of its answers where everything stands among the tokens.
    """

    number: int
    question: Question
    located: Located
    encoded: Encoded
    places: tuple[TokenSpans, ...]


def traceable(
    model: Model, questions: Sequence[Question], *, untruthful: bool, chat: bool, truncate: bool
) -> tuple[list[Traceable], Counter[str]]:
    """Return the questions that can be traced, and how many cannot, by reason.

    Raises:
        DataError: None can.
    """
    left_out: Counter[str] = Counter()
    chosen: list[tuple[int, Question, Located]] = []
    for number, question in enumerate(questions):
        located = find_evidence(model, question)
        if question.truthful is None:
            left_out["no truthful answer"] += 1
            continue
        one = question if untruthful else replace(question, untruthful=None)
        if truncate:
            one, located = fitted(model, one, located, chat=chat)
        if located.source == "none":
            left_out["no evidence"] += 1
            continue
        chosen.append((number, one, located))
    encoded = encode(model, [one for _, one, _ in chosen], chat=chat, share_prefix=shares_prefix(model))
    rows: list[Traceable] = []
    for (number, one, located), item in zip(chosen, encoded, strict=True):
        answers = zip(one.answers, item.tails, strict=True)
        places = tuple(
            token_spans(model, one, located, answer.text, (*item.prefix, *tail), chat=chat) for answer, tail in answers
        )
        if bool(places[0].evidence.any()):
            rows.append(Traceable(number, one, located, replace(item, row=len(rows)), places))
        else:
            left_out["no evidence"] += 1
    if not rows:
        raise DataError(
            "no question has evidence that can be traced",
            expected="rows with `evidence` spans or `boxes`, or whose truthful answer stands in the context",
            got=", ".join(f"{count} rows with {reason}" for reason, count in left_out.items()) or "no questions",
            fix="add an `evidence` column (character spans in `context`); boxes need a model that takes images",
        )
    return rows, left_out


def collect_attention(
    model: Model, batch: Sequence[Encoded], positions: Sequence[str], keep: AttentionCallback
) -> None:
    """Run one batch and hand over, for each of its questions and positions, the attention of all heads.

    Args:
        model: The model.
        batch: Questions whose first tail is the truthful answer and whose second, if any, the untruthful one.
        positions: Positions whose attention is wanted.
        keep: Gets each question's rows; NaN for heads that are not there.
    """
    with torch.inference_mode():
        tails = prepare_tails(model, batch)
        queries = torch.stack([tails.start - 1, tails.last], dim=1)
        width = tails.inputs["attention_mask"].shape[1]
        layers, heads = model.layout.shape
        rows = torch.full((layers, heads, len(queries), 2, width), torch.nan, device=model.device)

        def see(layer: int, weights: Tensor) -> None:
            by_head = weights.to(rows.device).permute(2, 0, 1, 3)
            rows[layer, : len(by_head), :, :, : width - by_head.shape[-1]] = 0  # what a window has dropped
            rows[layer, : len(by_head), :, :, width - by_head.shape[-1] :] = by_head

        with capture_attention(model, queries, see):
            backbone(model)(**tails.inputs)
        real = tails.inputs["attention_mask"].bool()
        first = 0
        for i, item in enumerate(batch):
            for at, name in enumerate(positions):
                tail = first + (name == "untruthful")
                if tail < first + len(item.tails):
                    keep(i, at, rows[:, :, tail, int(name != "question"), real[tail]])
            first += len(item.tails)


def query_of(encoded: Encoded, tail: int, *, start: bool) -> int:
    """Return the position, among all tokens of a question, of a tail's last token or of the one before its answer."""
    return len(encoded.prefix) + (encoded.starts[tail] if start else len(encoded.tails[tail])) - 1
