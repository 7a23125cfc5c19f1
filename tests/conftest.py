"""Fixtures of all tests. The package is imported inside them: the hook that checks shapes is set after this file."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before its library is imported: no test asks the hub, whether it could or not

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import provoked
from provoked import pytest_configure, pytest_sessionfinish
from zoo import ZooRow, build, tiny_tokenizer

if TYPE_CHECKING:
    from forking import Nursery
    from truthheads.models.load import Model

REFERENCE_DATA = Path(__file__).parents[2] / "shared" / "data"


__all__ = ["pytest_configure", "pytest_sessionfinish"]


@pytest.fixture(scope="session", autouse=True)
def errors_are_recorded() -> Iterator[None]:
    """Record which errors the tests provoke; see ``provoked``."""
    with provoked.recorded():
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Run matrices this small on one thread, which is faster where other work shares the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def wrap() -> "Callable[..., Model]":
    """Return a function from a network (and a tokenizer, else bytes) to a Model."""
    from truthheads.models.architectures import locate_heads
    from truthheads.models.load import Model

    def wrap(network: PreTrainedModel, tokenizer: Any = None, name: str = "tiny") -> Model:
        return Model(network.requires_grad_(False), tokenizer or tiny_tokenizer(), None, locate_heads(network), name)

    return wrap


@pytest.fixture(scope="session")
def model_of(wrap: "Callable[..., Model]") -> "Callable[[ZooRow], Model]":
    """Return a function from a zoo row to its Model, built anew at each call: a test may do with it what it likes."""
    return lambda row: wrap(build(row), name=row.name)


@pytest.fixture(scope="session")
def tokenizer() -> "PreTrainedTokenizerFast":
    """Return a tokenizer whose tokens are bytes, with SmolLM2's special tokens."""
    from tiny_smollm2 import tiny_tokenizer as bytes_as_tokens

    return bytes_as_tokens()


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Return the folder of real data sets beside the checkout; a test that needs it is skipped where it is absent."""
    if not REFERENCE_DATA.is_dir():
        pytest.skip("reference data is not beside the checkout")
    return REFERENCE_DATA


@pytest.fixture(scope="session")
def cases(reference_data: Path) -> Path:
    """Return the folder of small inputs beside the real data; a test that needs it is skipped where it is absent."""
    folder = reference_data.parent / "cases"
    if not folder.is_dir():
        pytest.skip("the cases are not beside the checkout")
    return folder


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, its rows and all that the commands of ``commands`` read."""
    from commands import workplace

    return workplace(tmp_path_factory.mktemp("commands") / "work")


@pytest.fixture(scope="session")
def helper(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Nursery]":
    """Yield the process from which real commands are forked."""
    from forking import nursery

    with nursery(tmp_path_factory.mktemp("commands") / "said") as made:
        yield made
