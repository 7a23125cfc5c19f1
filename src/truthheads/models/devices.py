"""Where a model runs: device, floating-point type, device maps and memory limits."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from truthheads.errors import ModelError

DTYPES = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "fp16": torch.float16, "float16": torch.float16}

DTYPES |= {"fp32": torch.float32, "float32": torch.float32}

BATCH_TOKENS_CPU = 1024

BATCH_TOKENS = 16_384


def pick_batch_tokens(device: torch.device) -> int:
    """Return how many padded tokens make a good batch.

    A CPU is busy from about a thousand tokens on; more only adds padding, and a padded batch takes the masked attention
    kernel, which computes the upper triangle too (long rows: 866 tokens a second at 1,024 against 573 at 4,096).
    """
    return BATCH_TOKENS_CPU if device.type == "cpu" else BATCH_TOKENS


def pick_device(name: str) -> torch.device:
    """Return a torch device; ``auto`` is the first accelerator, else the CPU.

    Of several processes on a machine (``accelerate launch``), each takes an accelerator of its own; with its ``--cpu``
    none does.

    Raises:
        ModelError: The device is not one of torch's, or is not there.
    """
    if name == "auto" and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return torch.device("cpu")
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        local = os.environ.get("LOCAL_RANK")
        if accelerator is not None and local is not None:
            return torch.device(accelerator.type, int(local) % torch.accelerator.device_count())
        return accelerator or torch.device("cpu")
    try:
        place = torch.device(name)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {name!r} cannot be used",
            expected="auto, cpu, cuda, cuda:1, mps …",
            got=str(error).splitlines()[0],
            fix="leave --device auto",
        ) from error
    return place


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return a floating-point type; ``auto`` is bf16 where the hardware multiplies it, else fp32.

    Raises:
        ModelError: The name is not one of auto, bf16, fp16, fp32.
    """
    if name != "auto":
        if name not in DTYPES:
            raise ModelError(
                f"dtype {name!r} is not known", expected="auto, bf16, fp16 or fp32", got=name, fix="choose one of them"
            )
        return DTYPES[name]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capable = getattr(torch.backends.cpu, "get_cpu_capability", str)() if device.type == "cpu" else ""
        flags = [getattr(torch.cpu, probe, bool)() for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
        fast = capable != "" and any(flags)
    return torch.bfloat16 if fast else torch.float32


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return a context in which products are taken in what :func:`pick_dtype` calls ``auto``.

    On a CPU without bf16, where torch converts back and forth, training in bf16 takes eight times as long as in fp32.
    """
    dtype = pick_dtype("auto", device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


PLANS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Maps that transformers makes itself from the memory that is free."""

OFFLOADED = ("cpu", "disk")

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]I?B|)", re.IGNORECASE)

FORMS = f"{', '.join(PLANS)}, or a JSON object (or a file of one) of module: device"

DeviceMap = str | Mapping[str, int | str]

MaxMemory = str | Mapping[int | str, int | str]


def read_device_map(given: DeviceMap) -> str | dict[str, int | str]:
    """Return a device map as transformers takes it.

    Args:
        given: ``auto``, ``balanced``, ``balanced_low_0`` or ``sequential``; a JSON object as text, or the path of a
            file of one; or the mapping itself: from a module's path, or ``""`` for all that is not named, to ``cpu``,
            ``disk``, a device, or an accelerator's number.

    Raises:
        ModelError: It is none of these, or a device is not there.
    """
    if isinstance(given, str) and given in PLANS:
        return given
    found = _parsed(given) if isinstance(given, str) else given
    if not isinstance(found, Mapping) or not found or not all(isinstance(name, str) for name in found):
        raise ModelError(
            "the device map cannot be used",
            expected=FORMS,
            got=repr(given)[:200],
            fix='try --device-map auto, or {"": "cpu"} and more',
        )
    return {name: _device(name, value) for name, value in found.items()}


def _parsed(text: str) -> Any:
    """Read JSON from a text or from the file that it names; None where it is neither."""
    try:
        if not text.lstrip().startswith("{"):
            text = Path(text).read_text(encoding="utf-8")
        return json.loads(text)
    except (OSError, ValueError):
        return None


def _device(module: str, value: Any) -> int | str:
    """Return a device of a map, checked."""
    if value == "disk":
        return "disk"
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if isinstance(number, int) and not isinstance(number, bool):
        count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
        if 0 <= number < count:
            return number
        got = f"{count} accelerators on this machine"
    elif isinstance(number, str):
        try:
            return str(pick_device(number)) if number != "auto" else "cpu"
        except ModelError as error:
            got = error.got
    else:
        got = repr(value)
    raise ModelError(
        f"the device map sends {module or 'the whole model'} to {value!r}, which cannot be used",
        expected="cpu, disk, an accelerator's number, or a torch device that is there",
        got=got,
        fix="change the map, or use --device-map auto",
    )


def spread_over(device_map: Mapping[str, int | str], network: nn.Module) -> dict[str, int | str]:
    """Return a map in which no module stands inside another one: accelerate can follow no other.

    Where names are nested, the longest counts. A network with all weights on one device is one entry.

    Args:
        device_map: From :func:`read_device_map`.
        network: The network; its weights are not asked for.

    Raises:
        ModelError: A name is none of the network's, or a weight is in no module that is named.
    """
    there = {name for name, _ in network.named_modules()} | {name for name, _ in network.named_parameters()}
    lost = [name for name in device_map if name not in there]
    if lost:
        tops = sorted(name for name in there if name.count(".") <= 2 and name.endswith((".0", "head", "embed_tokens")))
        raise ModelError(
            f"the device map names {lost[0]!r}, which the model lacks",
            expected=f"paths of modules, such as {', '.join(tops[:4])}",
            got=", ".join(lost[:8]),
            fix="correct the map; `truthheads inspect` shows where the layers are",
        )
    found: dict[str, int | str] = {}
    bare: list[str] = []
    main = main_device(device_map)

    def cover(path: str, module: nn.Module, above: int | str | None) -> None:
        own = device_map.get(path, above)
        inside = f"{path}." if path else ""
        if not any(name != path and name.startswith(inside) for name in device_map):
            if own is not None:
                found[path] = own
            elif any(True for _ in module.parameters()):
                bare.append(path)
            return
        for name, _ in module.named_parameters(recurse=False):  # of a module in pieces; no hook would fetch it
            here = device_map.get(f"{inside}{name}", own)
            found[f"{inside}{name}"] = str(main) if here is None or here == "disk" else here
        for name, child in module.named_children():
            cover(f"{inside}{name}", child, own)

    cover("", network, None)
    if bare:
        raise ModelError(
            f"the device map names no device for {bare[0]}",
            expected="a device for every module",
            got=f"nothing for {', '.join(bare[:8])}",
            fix='name them, or give "" for all that are not named',
        )
    return found


def main_device(device_map: str | Mapping[str, int | str]) -> torch.device:
    """Return where offloaded layers compute: the map's first accelerator, else the CPU."""
    if isinstance(device_map, str):
        return pick_device("auto")
    first = next((value for value in device_map.values() if value not in OFFLOADED), "cpu")
    return torch.device(first)


def read_max_memory(given: MaxMemory) -> dict[int | str, int]:
    """Return the bytes that each device may hold of a model.

    Args:
        given: ``cpu=2GiB,0=20GiB``, or the same as a mapping; a size without a unit is in bytes.

    Raises:
        ModelError: It cannot be read.
    """
    pairs = [part.partition("=")[::2] for part in given.split(",")] if isinstance(given, str) else list(given.items())
    found: dict[int | str, int] = {}
    for name, size in pairs:
        key: int | str = int(name) if isinstance(name, str) and name.strip().isdecimal() else name
        key = key.strip() if isinstance(key, str) else key
        match = SIZE.fullmatch(str(size).strip())
        if match is None or (isinstance(key, str) and key != "cpu"):
            raise ModelError(
                "the limits of memory cannot be read",
                expected="cpu and accelerators' numbers with sizes, such as cpu=2GiB,0=20GiB",
                got=str(given),
                fix="correct --max-memory",
            )
        found[key] = int(float(match[1]) * UNITS[match[2].upper()])
    return found
