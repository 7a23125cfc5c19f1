"""Models that a person holds already: a transformers network with its tokenizer, a Model, or a model's name."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from truthheads.errors import ModelError
from truthheads.models.architectures import locate_heads
from truthheads.models.inspection import Inspection, inspect_network
from truthheads.models.inspection import inspect as inspect_name
from truthheads.models.load import Loading, Model
from truthheads.models.load import load as load_name
from truthheads.models.quantised import stored_quantised

if TYPE_CHECKING:
    ModelLike: TypeAlias = Model | str | Path
else:  # what is no model is answered in our words, not in those of a type checker at run time
    ModelLike = object

DEFAULTS = {"device": "auto", "dtype": "auto", "trust_remote_code": False}

WANTED = "a model's name or folder, a transformers network with its tokenizer, or what truthheads.load returned"


def load(
    name: ModelLike | nn.Module,
    tokenizer: Any = None,
    *,
    processor: Any = None,
    device: str = "auto",
    dtype: str = "auto",
    device_map: Any = None,
    max_memory: Any = None,
    offload_folder: str | Path | None = None,
    load_in: str | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a model by its name, or take a network that is loaded already.

    A network that is given is used as it is, not copied: it is put into eval mode, everything measured is of the
    weights that it has at that moment, and a gate that is at work on it works on yours. A PEFT model is used with its
    adapter; nothing is merged.

    Args:
        name: A transformers folder or hub id, a ``.gguf`` file (of a split model any part), ``smollm2``,
            ``smollm2:reader`` or ``smollm2:vision``; or the folder or hub id of a PEFT adapter, which is merged into
            its base: into the weights beside it, else into the model that it names. Or a network in memory: a
            ``PreTrainedModel``, also inside a PEFT model.
        tokenizer: Tokenizer of a network in memory; a processor is taken, too, and its tokenizer used.
        processor: Processor of a network in memory that takes images. Beside a name, the folder or hub id whose
            processor prepares images, for a model that was saved without its own; None: the model's own. Text rows
            need none.
        device: ``auto`` (the first accelerator, else the CPU) or a torch device.
        dtype: ``auto`` (bf16 where the hardware has it, else fp32), ``bf16``, ``fp16`` or ``fp32``.
        device_map: For a model that is too large for one device: ``auto``, ``balanced`` or ``sequential``, or which
            module goes where (see ``models.devices.read_device_map``). Layers on ``disk``, and on ``cpu``
            beside an accelerator, are fetched whenever they are needed.
        max_memory: What each device may hold of the model, such as ``cpu=2GiB,0=20GiB``; implies ``device_map="auto"``.
        offload_folder: For weights on disk that cannot be read from the checkpoint as they are; None: a temporary one.
        load_in: ``8bit`` or ``4bit`` (bitsandbytes), ``int8`` (torchao): quantise while loading.
        trust_remote_code: Run modelling code that comes with the model. Off: such a model is refused.

    Raises:
        ModelError: The model or its tokenizer is missing, damaged, or needs code that is not allowed to run; or it
            cannot be placed or quantised in this way. A parameter of the network is in no file, or a tensor of the
            files belongs to no parameter. What is given is no model.
        ArchitectureError: Its heads could not be located.
    """
    how: Loading = {
        "device": device,
        "dtype": dtype,
        "device_map": device_map,
        "max_memory": max_memory,
        "offload_folder": offload_folder,
        "load_in": load_in,
        "trust_remote_code": trust_remote_code,
        "processor": str(processor) if isinstance(processor, str | Path) else None,
    }
    asked = [word for word, value in how.items() if value != DEFAULTS.get(word)]
    if isinstance(name, str | Path):
        if tokenizer is not None or (processor is not None and how["processor"] is None):
            raise ModelError(
                f"a tokenizer or processor was given with the name {str(name)!r}",
                expected="a name alone, or a network in memory with its tokenizer",
                got=type(tokenizer if tokenizer is not None else processor).__name__,
                fix="leave it out: the model's own is loaded; a processor of another model is given by its name",
            )
        return load_name(str(name), **how)
    if asked:
        raise ModelError(
            f"{', '.join(asked)} cannot be changed of a network that is in memory",
            expected="a model's name with these settings, or a network as it is",
            got=type(name).__name__,
            fix="give AutoProcessor.from_pretrained(NAME) as the processor"
            if asked == ["processor"]
            else "leave them out, or load and move the network as you want it before",
        )
    if isinstance(name, Model) and tokenizer is None and processor is None:
        return as_model(name)
    return wrap(name.network if isinstance(name, Model) else name, tokenizer, processor)


def as_model(model: ModelLike) -> Model:
    """Return the Model that a person means: one that is loaded already, or one to be loaded by its name.

    Raises:
        ModelError: It is neither.
    """
    if isinstance(model, Model):
        if model.in_memory:
            model.network.eval()  # its owner may have trained it in the meantime
        return model
    if isinstance(model, str | Path):
        return load_name(str(model))
    if isinstance(model, nn.Module):
        raise ModelError(
            f"{type(model).__name__} was given without its tokenizer",
            expected=WANTED,
            got=f"a network alone, {type(model).__name__}",
            fix="give truthheads.load(network, tokenizer)",
        )
    raise not_a_model(model)


def inspect(name: ModelLike | nn.Module, *, trust_remote_code: bool = False) -> Inspection:
    """Return the heads of a model from its configuration alone; no weight is read or allocated.

    Of a GGUF model the headers of all files are read, and their tensors compared with those that the network needs.

    Args:
        name: As for :func:`truthheads.load`; the folder need not hold weights or a tokenizer. Or a model in memory.
        trust_remote_code: As for :func:`truthheads.load`.

    Raises:
        ModelError: There is no usable configuration; or a GGUF model lacks a part or a tensor, or has one too many.
            What is given is no model.
        ArchitectureError: Its heads could not be located.
    """
    if isinstance(name, str | Path):
        return inspect_name(str(name), trust_remote_code=trust_remote_code)
    if isinstance(name, Model) and not name.in_memory:
        return inspect_name(name.name, trust_remote_code=trust_remote_code)
    return inspect_network(name.network if isinstance(name, Model) else unwrapped(name)[0])


def name_of(model: ModelLike) -> str:
    """Return the name that a model was loaded by, for what is made of its files instead of what is in memory.

    Raises:
        ModelError: It is no model, or its network was given in memory: no file is known to hold its weights.
    """
    if isinstance(model, str | Path):
        return str(model)
    if isinstance(model, Model) and not model.in_memory:
        return model.name
    if not isinstance(model, Model | nn.Module):
        raise not_a_model(model)
    network = model.network if isinstance(model, Model) else model
    merged = " (after merge_and_unload)" if isinstance(model, Model) and model.adapter else ""
    raise ModelError(
        f"{type(network).__name__} is in memory alone",
        expected="a model whose files can be read: its name or folder",
        got="a network in memory, which may differ from the files that it came from",
        fix=f"network.save_pretrained(FOLDER){merged} and tokenizer.save_pretrained(FOLDER), and give the folder",
    )


def not_a_model(given: object) -> ModelError:
    """Return the error for something that is no model."""
    return ModelError(
        "what was given is not a model",
        expected=WANTED,
        got=f"{given!r:.60}"
        if type(given).__module__ == "builtins"
        else f"{type(given).__module__}.{type(given).__name__}",
        fix='give a name such as "smollm2", a folder, or truthheads.load(network, tokenizer)',
    )


def wrap(given: object, tokenizer: Any, processor: Any) -> Model:
    """Return the Model of a network in memory.

    Raises:
        ModelError: It is no transformers network that writes text, or its tokenizer is missing or another model's.
    """
    network, adapter = unwrapped(given)
    if isinstance(tokenizer, ProcessorMixin):
        tokenizer, processor = None, processor or tokenizer
    if tokenizer is None:
        tokenizer = getattr(processor, "tokenizer", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(
            f"the tokenizer of {type(network).__name__} is missing"
            if tokenizer is None
            else "what was given as the tokenizer is none",
            expected="the network's tokenizer (or, for a model that takes images, its processor)",
            got=type(tokenizer).__name__ if tokenizer is not None else "none",
            fix="th.load(network, AutoTokenizer.from_pretrained(NAME))",
        )
    rows = network.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer does not belong to this {type(network).__name__}",
            expected=f"at most {rows} tokens, as many as the network has embeddings",
            got=f"{len(tokenizer)} tokens",
            fix="give the network's own tokenizer, or call network.resize_token_embeddings(len(tokenizer))",
        )
    called = str(getattr(network.config, "_name_or_path", "") or type(network).__name__)
    called = Path(called).name if Path(called).is_absolute() else called
    layout = locate_heads(network)
    stored = stored_quantised(network.config)
    return Model(network.eval(), tokenizer, processor, layout, called, stored, adapter, in_memory=True)


def unwrapped(given: object) -> tuple[PreTrainedModel, str | None]:
    """Return the transformers network, and in words the adapter that is at work in it."""
    given = getattr(given, "_orig_mod", given)  # what torch.compile has wrapped
    network, configs, active = given, getattr(given, "peft_config", None), getattr(given, "active_adapter", None)
    peft: Any = sys.modules.get("peft")
    if peft is not None and isinstance(given, peft.PeftModel | peft.PeftMixedModel):
        network = given.get_base_model() if isinstance(given, peft.PeftModel) else given.base_model.model
    if not isinstance(network, PreTrainedModel):
        if isinstance(network, nn.Module):
            raise ModelError(
                f"{type(network).__name__} is not a transformers model",
                expected="a PreTrainedModel, also inside a PEFT model",
                got=f"{type(network).__module__}.{type(network).__name__}",
                fix="give the transformers model inside it",
            )
        raise not_a_model(network)
    if not network.can_generate():
        raise ModelError(
            f"{type(network).__name__} writes no text",
            expected="a decoder with its language-model head: a class that ends in ForCausalLM or "
            "ForConditionalGeneration",
            got=type(network).__name__,
            fix="load it with AutoModelForCausalLM, or AutoModelForImageTextToText",
        )
    if any(parameter.device.type == "meta" for parameter in network.parameters()) and not hasattr(
        network, "hf_device_map"
    ):
        raise ModelError(
            f"{type(network).__name__} has no weights",
            expected="a network with its weights loaded",
            got="parameters on the meta device",
            fix="load it with from_pretrained",
        )
    if not isinstance(configs, dict) or not configs:
        return network, None
    learned = [name for name, config in configs.items() if getattr(config, "is_prompt_learning", False)]
    if learned:
        raise ModelError(
            "a learned prompt is not part of the network that heads are measured in",
            expected="an adapter that changes weights, such as LoRA or IA³",
            got=f"{configs[learned[0]].peft_type.value} ({learned[0]})",
            fix="give the base model, or an adapter that changes weights",
        )
    names = [active] if isinstance(active, str) else [str(name) for name in active or configs if not callable(active)]
    kinds = ", ".join(f"{configs[name].peft_type.value} adapter {name!r}" for name in names if name in configs)
    return network, f"{kinds or 'an adapter'}, at work in memory"
