"""Where a model runs, and in which floating-point type."""

import os

import torch

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
