"""What llama.cpp calls a module of a transformers network, and in which order it keeps the rows of that module."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from truthheads.errors import ModelError


@dataclass(frozen=True, slots=True)
class GgufRow:
    """How llama.cpp's converter changes the weights of one architecture.

    Attributes:
        types: transformers' ``model_type`` of the text decoders that become this architecture.
        paired: True where rows of queries and keys are reordered: llama.cpp then turns pairs of neighbours where
            transformers turns the two halves of a head.
        grouped: True where transformers keeps queries, keys and values of a key-value head together in one tensor, and
            llama.cpp all queries before all keys before all values.
    """

    types: tuple[str, ...]
    paired: bool = False
    grouped: bool = False


ROWS: Mapping[str, GgufRow] = {
    "arcee": GgufRow(("arcee",), paired=True),
    "bloom": GgufRow(("bloom",), grouped=True),
    "cohere2": GgufRow(("cohere2",)),
    "command-r": GgufRow(("cohere",)),
    "falcon": GgufRow(("falcon",), grouped=True),
    "gemma": GgufRow(("gemma",)),
    "gemma2": GgufRow(("gemma2",)),
    "gemma3": GgufRow(("gemma3_text", "gemma3")),
    "gpt-oss": GgufRow(("gpt_oss",)),
    "gpt2": GgufRow(("gpt2",)),
    "gptneox": GgufRow(("gpt_neox",), grouped=True),
    "granite": GgufRow(("granite",), paired=True),
    "lfm2": GgufRow(("lfm2",)),
    "llama": GgufRow(("llama", "mistral", "mixtral"), paired=True),
    "mpt": GgufRow(("mpt",)),
    "nemotron": GgufRow(("nemotron",)),
    "olmo": GgufRow(("olmo",), paired=True),
    "olmo2": GgufRow(("olmo2",)),
    "phi2": GgufRow(("phi",)),
    "phi3": GgufRow(("phi3",)),
    "qwen2": GgufRow(("qwen2",)),
    "qwen2moe": GgufRow(("qwen2_moe",)),
    "qwen2vl": GgufRow(("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_vl", "qwen2_5_vl")),
    "qwen3": GgufRow(("qwen3",)),
    "qwen3moe": GgufRow(("qwen3_moe",)),
    "smollm3": GgufRow(("smollm3",), paired=True),
    "stablelm": GgufRow(("stablelm",)),
    "starcoder2": GgufRow(("starcoder2",)),
}
"""By ``general.architecture``. An architecture gets a row when its converter is known: one that cuts, joins or reorders
rows in another way would take an update to the wrong heads."""


@dataclass(frozen=True, slots=True)
class GgufNames:
    """The tensors of one GGUF model, by the modules of the network that it was converted from.

    Attributes:
        architecture: llama.cpp's name of the architecture; a key of ``ROWS``.
        layers: Layers of the decoder.
        heads: Query heads of a layer.
        kv_heads: Key-value heads of a layer.
    """

    architecture: str
    layers: int
    heads: int
    kv_heads: int

    def tensor(self, module: str) -> str:
        """Return the name of a module's weight.

        Args:
            module: Its full path in the network.

        Raises:
            ModelError: llama.cpp has no tensor for it.
        """
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        arch = next(one for one, name in MODEL_ARCH_NAMES.items() if name == self.architecture)
        known = get_tensor_name_map(arch, self.layers)
        # A multimodal network keeps its decoder one level deeper than the file of its text model alone.
        tried = (module, module.replace("language_model.", ""), module.removeprefix("transformer."))
        found = next((name for one in tried if (name := known.get_name(one)) is not None), None)
        if found is None:
            raise ModelError(
                f"llama.cpp has no tensor for {module}",
                expected=f"a linear module of the text decoder of {self.architecture}",
                got=module,
                fix="train the adapter on modules of the decoder's layers alone, or use --to checkpoint",
            )
        return f"{found}.weight"

    def order(self, tensor: str, rows: int) -> Int[np.ndarray, " rows"] | None:
        """Return which row of the network each row of a tensor is, or None where they are in the same order.

        Args:
            tensor: As :meth:`tensor` names it.
            rows: How many it has.

        Raises:
            ModelError: The rows are no multiple of the heads' halves.
        """
        row, part = ROWS[self.architecture], tensor.split(".")[-2]
        if row.paired and part in ("attn_q", "attn_k"):
            blocks = self._blocks(tensor, rows, self.heads if part == "attn_q" else self.kv_heads, 2)
            paired: Int[np.ndarray, " rows"] = blocks.swapaxes(1, 2).reshape(rows)
            return paired
        if row.grouped and part == "attn_qkv":
            blocks = self._blocks(tensor, rows, self.kv_heads, self.heads // max(1, self.kv_heads) + 2)
            return np.concatenate([kind.reshape(-1) for kind in (blocks[:, :-2], blocks[:, -2], blocks[:, -1])])
        return None

    def _blocks(self, tensor: str, rows: int, count: int, parts: int) -> Int[np.ndarray, "count parts width"]:
        """Return the numbers of rows in ``count`` blocks of ``parts`` each."""
        if not count or rows % (count * parts):
            raise ModelError(
                f"the rows of {tensor} cannot be put in llama.cpp's order",
                expected=f"a multiple of {count or 'so many'} heads times {parts}, as many heads in every layer",
                got=f"{rows} rows",
                fix="check that the configuration belongs to the weights, or use --to checkpoint",
            )
        return np.arange(rows).reshape(count, parts, -1)


def architecture_of(model_type: str) -> str | None:
    """Return llama.cpp's name for a text decoder's ``model_type``, or None where it has no row."""
    return next((name for name, row in ROWS.items() if model_type in row.types), None)
