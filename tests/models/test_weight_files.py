"""Reading a checkpoint's tensors without a model: what comes is what was written, and bad folders are named."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from truthheads.errors import ModelError
from truthheads.models.weight_files import INDEX, SINGLE, Shards
from zoo import ROWS, save

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.float8_e4m3fn)


def write(folder: Path, shards: dict[str, dict[str, Tensor]]) -> Path:
    """Write files with these tensors, and the index that goes with them."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    names = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    return folder


def two_shards(folder: Path) -> Path:
    first, second = {"a": torch.arange(12.0).reshape(4, 3)}, {"b": torch.ones(5, dtype=torch.bfloat16)}
    return write(folder, {"model-1.safetensors": first, "model-2.safetensors": second})


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=5),
    kinds=st.lists(st.sampled_from(DTYPES), min_size=5, max_size=5),
    files=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_every_tensor_comes_back_whole_and_by_rows(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[tuple[int, ...]],
    kinds: list[torch.dtype],
    files: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"t{number}": torch.randn(shape, generator=generator).to(kind)
        for number, (shape, kind) in enumerate(zip(shapes, kinds, strict=False))
    }
    parts: dict[str, dict[str, Tensor]] = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        parts.setdefault(f"model-{number % files}.safetensors", {})[name] = tensor
    shards = Shards.open(write(tmp_path_factory.mktemp("shards"), parts))
    buffer = torch.empty(64, dtype=torch.uint8)  # too small for some of them, with old bytes in it for others
    assert set(shards.entries) == set(tensors)
    for name, tensor in tensors.items():
        for found in (shards.read(name), shards.read(name, buffer=buffer)):
            assert found.dtype == tensor.dtype and found.shape == tensor.shape
            assert torch.equal(
                found.view(torch.uint8) if found.ndim else found, tensor.view(torch.uint8) if tensor.ndim else tensor
            )
        if tensor.ndim:
            rows = (len(tensor) // 3, len(tensor) - len(tensor) // 4)
            some = shards.read(name, rows=rows)
            assert some.shape == tensor[slice(*rows)].shape
            assert some.float().equal(tensor[slice(*rows)].float())


@pytest.mark.parametrize("shards", [1, 3])
def test_a_real_checkpoint_reads_as_the_library_reads_it(tmp_path: Path, shards: int) -> None:
    folder = save(ROWS[1], tmp_path / "model", shards=shards, dtype=torch.bfloat16)
    found = Shards.open(folder)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == shards
    names = set()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                names.add(name)
                assert found.entries[name].file == file
                assert torch.equal(found.read(name), opened.get_tensor(name))
    assert names == set(found.entries)


def test_rows_outside_a_tensor_are_refused(tmp_path: Path) -> None:
    shards = Shards.open(two_shards(tmp_path))
    for rows in ((-1, 2), (0, 5), (3, 2)):
        with pytest.raises(IndexError, match="rows"):
            shards.read("a", rows=rows)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the tensor c of .* cannot be read"):
        Shards.open(two_shards(tmp_path)).read("c")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = two_shards(tmp_path)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match="lacks 1 of its 2 shards") as caught:
        Shards.open(folder)
    assert caught.value.got == "no model-2.safetensors"


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_truncated_shard_is_named(tmp_path: Path, keep: int) -> None:
    folder = two_shards(tmp_path)
    shard = folder / "model-2.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model-2\.safetensors is damaged or cut short"):
        Shards.open(folder)


def test_a_file_that_shrinks_after_opening_is_an_error_not_old_bytes(tmp_path: Path) -> None:
    folder = two_shards(tmp_path)
    shards = Shards.open(folder)
    shard = folder / "model-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(ModelError, match="cut short") as caught:
        shards.read("a", buffer=torch.empty(1000, dtype=torch.uint8))
    assert caught.value.got == "44 of 48 bytes of a tensor"


@pytest.mark.parametrize(
    "file", ["../model-2.safetensors", "/etc/passwd", "sub/model-2.safetensors", "..", "", "..\\model-2.safetensors"]
)
def test_an_index_that_points_outside_its_folder_is_refused(tmp_path: Path, file: str) -> None:
    folder = two_shards(tmp_path / "inside")
    save_file({"b": torch.ones(1)}, tmp_path / "model-2.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": file}}))
    with pytest.raises(ModelError, match="names a file outside its folder") as caught:
        Shards.open(folder)
    assert caught.value.got == repr(file)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map": ["a"]}', "[" * 100_000]
)
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    folder = two_shards(tmp_path)
    (folder / INDEX).write_text(text)
    with pytest.raises(ModelError, match=r"index\.json cannot be read"):
        Shards.open(folder)


def test_a_tensor_that_is_not_in_its_shard_is_named(tmp_path: Path) -> None:
    folder = two_shards(tmp_path)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(ModelError, match=r"model-2\.safetensors lacks the tensor a"):
        Shards.open(folder)


def test_the_single_file_comes_first_as_in_transformers(tmp_path: Path) -> None:
    folder = two_shards(tmp_path)
    save_file({"c": torch.ones(1)}, folder / SINGLE)
    assert set(Shards.open(folder).entries) == {"c"}


@pytest.mark.parametrize(
    ("file", "advice"),
    [
        ("pytorch_model.bin", "save_pretrained, which gives safetensors"),
        ("weights.gguf", "give the file itself: .*weights.gguf"),
        ("adapter_model.safetensors", "merge the adapter"),
        ("config.json", "save_pretrained wrote"),
    ],
)
def test_a_folder_without_safetensors_says_what_to_do(tmp_path: Path, file: str, advice: str) -> None:
    (tmp_path / file).write_bytes(b"\0")
    with pytest.raises(ModelError, match="has no safetensors weights") as caught:
        Shards.open(tmp_path)
    assert caught.value.got == file
    assert re.search(advice, caught.value.fix)


def test_a_type_that_cannot_be_read_is_refused_only_when_it_is_read(tmp_path: Path) -> None:
    header = json.dumps({"odd": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + b"\1\2")
    shards = Shards.open(tmp_path)
    with pytest.raises(ModelError, match="odd") as caught:
        shards.read("odd")
    assert caught.value.got == "type F8_E8M0"
