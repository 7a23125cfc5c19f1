"""Head adapters: a low-rank update of chosen heads' query rows and output columns, stored as a PEFT LoRA folder."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from truthheads.errors import ArtifactError, GateError
from truthheads.models.adapters import SETTINGS, WEIGHTS
from truthheads.models.head_modules import HeadPlace, ModuleSpan
from truthheads.models.hooks import LowRank, NetworkLike, Scaling, add
from truthheads.models.sources import reference
from truthheads.models.weight_files import Header
from truthheads.plots.charts import chart_html, heat_map
from truthheads.plots.views import Shown, data_frame, table_html
from truthheads.results.adapter_card import CARD, adapter_card
from truthheads.storage.artifacts import FORMAT_VERSION, KEY
from truthheads.storage.files import as_path, dumps, replace_folder, temporary_beside, unwritable
from truthheads.storage.output_lock import locked_output

KIND = "head adapter"

PREFIX = "base_model.model."

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM serves. A smaller one is stored as the next of these, filled up with zeros."""

UNREADABLE: Mapping[str, tuple[object, ...]] = {
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "use_bdlora": (False, None),
}
"""Settings of a LoRA that make it more than ``B @ A`` beside each module, with the values that leave it one."""

BASE_CHANGING = ("pissa", "olora", "corda", "lora_ga")
"""Initialisations that also change the base's weights, so that the stored factors alone do not say what changed."""


class HeadChange(TypedDict):
    """One row of the table of a head adapter: the size (Frobenius norm) of each update of one head."""

    head: str
    query: float
    output: float


class ModuleChange(TypedDict):
    """One row of the table of a LoRA that was not made for chosen heads: the size of the update of one module."""

    module: str
    size: float


class AdapterInfo(TypedDict):
    """A head adapter in figures. ``heads`` is 0 for a LoRA that was not made for chosen heads."""

    base: str
    digest: str
    rank: int
    heads: int
    modules: int
    parameters: int
    size: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class HeadAdapter(Shown):
    """A low-rank update of a model: of the query rows and output columns of chosen heads, or any user's LoRA.

    Attributes:
        updates: For each module, by its full path in the network, what is added to it (scaling included), fp32.
        base: What the adapter belongs to: a hub id, the last name of a file or folder, or a family's member such as
            ``smollm2:reader``.
        places: The chosen heads with their rows and columns; empty for a LoRA that was not made for chosen heads.
        transposed: True where the modules store their weights as (in, out), as GPT-2's do.
        meta: Where it came from: model, data, settings, seed, evidence, command line.

    Raises:
        GateError: There is no update, a value is not finite, or two factors do not belong together.
    """

    updates: Mapping[str, LowRank]
    base: str
    places: tuple[HeadPlace, ...] = ()
    transposed: bool = False
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = [
            f"{name}: a {list(update.a.shape)}, b {list(update.b.shape)}"
            for name, update in self.updates.items()
            if update.a.ndim != 2 or update.b.ndim != 2 or update.a.shape[0] != update.b.shape[1]
        ]
        infinite = [name for name, update in self.updates.items() if not all(map(_finite, update))]
        if wrong or infinite or not self.updates:
            raise GateError(
                "an adapter needs two finite matrices for each module",
                expected="a [rank, inputs] and b [outputs, rank] for one module or more",
                got="; ".join(wrong[:3]) or (f"values that are not finite in {infinite[0]}" if infinite else "none"),
                fix="train it again, or correct what it is made from",
            )
        whole = {name: LowRank(*(part.detach().to("cpu", torch.float32).contiguous() for part in update))
                 for name, update in self.updates.items()}  # fmt: skip
        object.__setattr__(self, "updates", whole)

    @property
    def rank(self) -> int:
        """Rank of the largest update."""
        return max(update.a.shape[0] for update in self.updates.values())

    @property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """The chosen heads as (layer, head); empty for a LoRA that was not made for chosen heads."""
        return tuple((place.layer, place.head) for place in self.places)

    @property
    def digest(self) -> str:
        """Hexadecimal digest of the updates, whatever rank they are stored at."""
        found = hashlib.sha256()
        for name, update in sorted(self.updates.items()):
            kept = update.a.any(1) & update.b.any(0)
            found.update(name.encode() + update.a[kept].numpy().tobytes() + update.b[:, kept].numpy().tobytes())
        return found.hexdigest()[:32]

    def scaled(self, factor: float | int) -> "HeadAdapter":
        """Return the same update, weaker or stronger.

        Args:
            factor: What it is multiplied by; 0 changes nothing, 1 is this adapter.
        """
        meta = {**self.meta, "share": factor * float(self.meta.get("share", 1.0))}
        updates = {name: LowRank(update.a, factor * update.b) for name, update in self.updates.items()}
        return HeadAdapter(updates, self.base, self.places, self.transposed, meta)

    def noted(self, meta: Mapping[str, Any]) -> "HeadAdapter":
        """Return the same adapter with more said of where it came from."""
        return HeadAdapter(self.updates, self.base, self.places, self.transposed, {**self.meta, **meta})

    def apply(self, model: NetworkLike) -> Scaling:
        """Put the adapter to work on a model until ``remove()`` of what is returned is called.

        Raises:
            ShapeError: A module is not there, or of another shape.
            GateError: The model is at work under a gate or an adapter already.
        """
        return add(model, self.updates)

    def save(self, folder: str | Path) -> None:
        """Write a folder that PEFT, vLLM and llama.cpp's converter read as a LoRA: settings, weights and a card.

        The folder appears under its name when it is whole. An adapter's folder of that name is replaced as a whole.

        Args:
            folder: The folder's name; it may be missing, empty, or an adapter without a model beside it.

        Raises:
            ArtifactError: Something else has that name, or the folder cannot be written.
        """
        out = as_path(folder).absolute()
        with locked_output(out), replaced_adapter(out) as temporary:
            self.write(temporary)

    def write(self, folder: Path) -> None:
        """Write the adapter's files into a folder that is there; see :meth:`save`."""
        from peft import LoraConfig, TaskType

        rank = next((rank for rank in RANKS if rank >= self.rank), self.rank)
        names, base = list(self.updates), reference(self.base) if self.base else ""  # not where it lies on this machine
        config = LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            base_model_name_or_path=base,
            r=rank,
            lora_alpha=rank,
            target_modules=names,
            fan_in_fan_out=self.transposed,
            inference_mode=True,
        ).to_dict()
        config |= {"target_modules": names}  # PEFT makes a set of it
        (folder / SETTINGS).write_text(dumps(config, indent=2) + "\n", encoding="utf-8")
        tensors = {}
        for name, update in self.updates.items():
            more = rank - update.a.shape[0]
            tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.nn.functional.pad(update.a, (0, 0, 0, more)).contiguous()
            tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.nn.functional.pad(update.b, (0, more)).contiguous()
        meta = {**self.meta, "kind": KIND, "format_version": FORMAT_VERSION, "rank": self.rank, "places": self.places}
        data = save(tensors)
        begin = 8 + int.from_bytes(data[:8], "little")
        (folder / WEIGHTS).write_bytes(Header(begin, json.loads(data[8:begin])).noted(meta) + data[begin:])
        (folder / CARD).write_text(adapter_card(base, self.describe(), self.table(), self.meta), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "HeadAdapter":
        """Read a head adapter, or any PEFT LoRA.

        Raises:
            ArtifactError: A file is missing or damaged, or the folder holds another kind of adapter.
            GateError: Its factors cannot be used.
        """
        path = as_path(folder)
        settings = _settings(path)
        tensors, header = _tensors(path)
        updates = _updates(path, settings, tensors)
        try:
            meta = json.loads(header) if header is not None else {}
            places = tuple(
                HeadPlace(layer, head, ModuleSpan(*query), ModuleSpan(*output))
                for layer, head, query, output in meta.get("places", [])
            )
            rank = int(meta.get("rank", 0))
            lost = {place.query.module for place in places} | {place.output.module for place in places}
            if not lost <= set(updates):
                raise ValueError(f"no update of {sorted(lost - set(updates))[0]}")
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ArtifactError(
                f"{path / WEIGHTS} is not whole",
                expected=f"the metadata key {KEY!r} as `truthheads tune adapt` writes it, or none",
                got=f"{type(error).__name__}: {error}"[:200],
                fix="write it again with `truthheads tune adapt`",
            ) from error
        if rank and all(not update.a[rank:].any() and not update.b[:, rank:].any() for update in updates.values()):
            updates = {name: LowRank(update.a[:rank], update.b[:, :rank]) for name, update in updates.items()}
        own = ("kind", "format_version", "rank", "places")
        kept = {key: value for key, value in meta.items() if key not in own}
        base = str(settings.get("base_model_name_or_path") or "")
        return cls(updates, base, places, bool(settings.get("fan_in_fan_out")), kept)

    def table(self, count: int | None = None) -> list[HeadChange] | list[ModuleChange]:
        """Return the heads whose updates are largest as rows; of a LoRA that knows no heads, the modules.

        Args:
            count: Rows at most; None: all.
        """
        if self.places:
            return sorted(self._changes(), key=lambda row: -(row["query"] ** 2 + row["output"] ** 2))[:count]
        sizes: list[ModuleChange] = [
            {"module": name, "size": _size(update.a, update.b)} for name, update in self.updates.items()
        ]
        return sorted(sizes, key=lambda row: -row["size"])[:count]

    def _changes(self) -> list[HeadChange]:
        changes: list[HeadChange] = []
        for place in self.places:
            query, output = self.updates[place.query.module], self.updates[place.output.module]
            rows, columns = (slice(span.start, span.start + span.width) for span in (place.query, place.output))
            sizes = (_size(query.a, query.b[rows]), _size(output.a[:, columns], output.b))
            changes.append({"head": place.name, "query": sizes[0], "output": sizes[1]})
        return changes

    def to_pandas(self) -> Any:
        """Return the table as a pandas DataFrame.

        Raises:
            TruthHeadsError: pandas is not installed.
        """
        return data_frame(self.table())

    def describe(self) -> AdapterInfo:
        """Summarise the adapter in figures; ``size`` is the Frobenius norm of the whole update."""
        return {
            "base": self.base,
            "digest": self.digest,
            "rank": self.rank,
            "heads": len(self.places),
            "modules": len(self.updates),
            "parameters": self._parameters(),
            "size": float(np.sqrt(sum(_size(update.a, update.b) ** 2 for update in self.updates.values()))),
        }

    def chart(self) -> Any:
        """Return the size of each head's update as an Altair heat map; heads that are left alone stay grey.

        Raises:
            GateError: The adapter is a LoRA that was not made for chosen heads.
        """
        if not self.places:
            raise GateError(
                "this adapter has no heads to show",
                expected="a head adapter from `truthheads tune adapt`",
                got="a LoRA of whole modules",
                fix="use .table(), which lists its modules",
            )
        least = (1 + max(place.layer for place in self.places), 1 + max(place.head for place in self.places))
        shown = np.full(tuple(self.meta.get("shape") or least), np.nan)
        for place, row in zip(self.places, self._changes(), strict=True):
            shown[place.layer, place.head] = float(np.hypot(row["query"], row["output"]))
        return heat_map(shown, title=f"update per head, rank {self.rank}", unit="size")

    def _parameters(self) -> int:
        """Count the numbers that may differ from 0."""
        if not self.places:
            return sum(update.a.numel() + update.b.numel() for update in self.updates.values())
        total = 0
        for name, update in self.updates.items():
            queries = sum(place.query.width for place in self.places if place.query.module == name)
            outputs = sum(place.output.width for place in self.places if place.output.module == name)
            rows = queries or update.b.shape[0]
            columns = outputs or update.a.shape[1]
            total += update.a.shape[0] * (rows + columns)
        return total

    def in_short(self) -> str:
        """Say what it changes, its rank and its base."""
        what = f"{len(self.places)} head{'s' * (len(self.places) != 1)}" if self.places else "a LoRA"
        return f"{what} in {len(self.updates)} modules, rank {self.rank}, base {self.base!r}"

    def _repr_html_(self) -> str:
        if self.places:
            return chart_html(self.chart())
        return table_html(repr(self), self.table())


if TYPE_CHECKING:
    AdapterLike: TypeAlias = HeadAdapter | str | Path
else:  # what is no adapter is answered in our words, not in those of a type checker at run time
    AdapterLike = object


def as_adapter(adapter: AdapterLike) -> HeadAdapter:
    """Return the adapter that a person means: one, or the folder of one.

    Raises:
        GateError: It is neither, or its factors cannot be used.
        ArtifactError: The folder cannot be read.
    """
    if isinstance(adapter, str | Path):
        return HeadAdapter.load(adapter)
    if isinstance(adapter, HeadAdapter):
        return adapter
    raise GateError(
        "what was given is not an adapter",
        expected="a HeadAdapter, or the path of an adapter's folder",
        got=f"{type(adapter).__module__}.{type(adapter).__name__}".removeprefix("builtins."),
        fix="train one: tune(model, questions, method='adapt').adapter, or give the folder of a PEFT LoRA",
    )


@contextmanager
def adapted(model: NetworkLike, adapter: AdapterLike) -> Iterator[Scaling]:
    """Put an adapter to work inside the block; on exit, also after an error, the model is bit for bit itself.

    Generation, batches, caches, multimodal wrappers and ``torch.compile`` work inside, as under a gate. Adapters and
    gates do not nest.

    Raises:
        ShapeError: A module is not there, or of another shape.
        GateError: The model is at work under a gate or an adapter already; or what was given is no adapter.
        ModelError: What was given is no model that is loaded.
    """
    with as_adapter(adapter).apply(model) as scaling:
        yield scaling


@contextmanager
def replaced_adapter(out: Path) -> Iterator[Path]:
    """Yield a new folder beside ``out``, which takes its name when the block succeeds.

    Raises:
        ArtifactError: Something other than an adapter has that name, or the folder cannot be written.
    """
    check_adapter_folder(out)
    try:
        with temporary_beside(out) as temporary:
            temporary.mkdir()
            yield temporary
            replace_folder(temporary, out)
    except (OSError, SafetensorError) as error:
        raise unwritable(out, error) from error


def check_adapter_folder(out: Path) -> None:
    """Raise ArtifactError where a folder of this name holds something that an adapter must not replace."""
    mine = out.is_dir() and (
        not any(out.iterdir()) or ((out / SETTINGS).is_file() and not (out / "config.json").is_file())
    )
    if out.exists() and not mine:
        raise ArtifactError(
            f"{out} is not replaced",
            expected=f"a name that is not taken, an empty folder, or an adapter ({SETTINGS})",
            got="a folder of another kind" if out.is_dir() else "a file",
            fix="choose another name for the adapter's folder",
        )


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _size(a: Float[Tensor, "rank inputs"], b: Float[Tensor, "outputs rank"]) -> float:
    """Return the Frobenius norm of ``b @ a`` without making it."""
    inner, outer = a.double() @ a.double().T, b.double().T @ b.double()
    return float((inner * outer).sum().clamp(min=0).sqrt())


def _settings(path: Path) -> Mapping[str, Any]:
    try:
        settings = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        kind = str(settings.get("peft_type"))
        changing = str(settings.get("init_lora_weights", "")).lower().startswith(BASE_CHANGING)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is not an adapter",
            expected=f"a folder with {SETTINGS} and {WEIGHTS}, as `truthheads tune adapt` and PEFT write it",
            got=f"{type(error).__name__}: {error}"[:200],
            fix="check the path",
        ) from error
    odd = [f"{key} {settings.get(key)}" for key, plain in UNREADABLE.items() if settings.get(key) not in plain]
    odd += [f"peft_type {kind}"] if kind.upper() != "LORA" else []
    odd += [f"init_lora_weights {settings['init_lora_weights']}"] if changing else []
    if odd:
        raise ArtifactError(
            f"the adapter in {path} is not a plain LoRA",
            expected="peft_type LORA, without DoRA, replicated layers or changes of the base",
            got=", ".join(odd),
            fix="merge it into its base (merge_and_unload, save_pretrained) and give that folder as the model",
        )
    return dict(settings)


def _tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    try:
        with safe_open(path / WEIGHTS, framework="pt") as opened:
            header = (opened.metadata() or {}).get(KEY)
            return {name: opened.get_tensor(name) for name in opened.keys()}, header  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(
            f"the weights of the adapter in {path} cannot be read",
            expected=WEIGHTS,
            got=f"{type(error).__name__}: {error}"[:200],
            fix="save it again with PEFT's save_pretrained, which writes safetensors",
        ) from error


def _updates(path: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """Return the factors of each module with the scaling that the settings ask for folded into ``b``."""
    from peft.utils.other import get_pattern_key

    ends = (".lora_A.weight", ".lora_B.weight")
    strange = [name for name in tensors if not (name.startswith(PREFIX) and name.endswith(ends))]
    names = list(
        dict.fromkeys(name.removeprefix(PREFIX).removesuffix(ends[0]).removesuffix(ends[1]) for name in tensors)
    )
    alone = [name for name in names if any(f"{PREFIX}{name}{end}" not in tensors for end in ends)]
    pairs = {} if strange or alone else {name: [tensors[f"{PREFIX}{name}{end}"] for end in ends] for name in names}
    bent = [name for name, pair in pairs.items() if any(part.ndim != 2 for part in pair)]
    if strange or alone or bent or not pairs:
        raise ArtifactError(
            f"the adapter in {path} is not a plain LoRA",
            expected="lora_A and lora_B of linear modules, and nothing else",
            got=", ".join((strange or alone or bent)[:3]) or "no tensors",
            fix="merge it into its base (merge_and_unload, save_pretrained) and give that folder as the model",
        )
    updates = {}
    alphas, ranks = settings.get("alpha_pattern") or {}, settings.get("rank_pattern") or {}
    try:
        for name, (a, b) in pairs.items():
            rank = float(ranks.get(get_pattern_key(ranks, name), settings["r"]))
            alpha = float(alphas.get(get_pattern_key(alphas, name), settings["lora_alpha"]))
            scaling = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
            updates[name] = LowRank(a.float(), scaling * b.float())
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ArtifactError(
            f"{path / SETTINGS} does not say how strong the adapter is",
            expected="numbers for r and lora_alpha, both above 0",
            got=f"{type(error).__name__}: {error}"[:200],
            fix="save it again with PEFT's save_pretrained",
        ) from error
    return updates
