"""Whether the hub answers, and what is said, without a wait, where it does not."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from hub_server import hub
from truthheads.data.hub import hub_rows
from truthheads.errors import DataError, SeveralErrors, TruthHeadsError
from truthheads.models.load import load, loading_faults
from truthheads.models.sources import resolve
from truthheads.storage import hub as asked

AT_ONCE = 10.0
"""Seconds; the library's own trials take 23 for a file, and several files are looked for."""


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Yield what sets the hub's address; nothing that was asked before is remembered."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    asked._answers.cache_clear()
    yield monkeypatch
    asked._answers.cache_clear()
    huggingface_hub.close_session()


@pytest.fixture
def nowhere(at: pytest.MonkeyPatch) -> None:
    """Let no server be at the hub's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")


def test_a_server_answers_whatever_it_says(at: pytest.MonkeyPatch) -> None:
    with hub("me/rows", {}) as (server, _):
        at.setattr(huggingface_hub.constants, "ENDPOINT", server)
        assert asked.hub_answers()
        at.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        asked._answers.cache_clear()
        assert not asked.hub_answers()


def test_a_server_that_says_nothing_is_left_soon(at: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        at.setattr(asked, "WITHIN", 0.2)
        begun = time.monotonic()
        assert not asked.hub_answers() and not asked.hub_answers()
        assert time.monotonic() - begun < AT_ONCE


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("name", ["nothing", "nobody/nothing"])
def test_without_a_network_all_complaints_come_at_once(name: str) -> None:
    begun = time.monotonic()
    device, model = loading_faults(name, device="abacus")
    assert time.monotonic() - begun < AT_ONCE
    assert "'abacus'" in device.problem and f"{name} could not be loaded" in model.problem
    assert model.got == "no such folder, and no connection to the hub" and "the network" in model.fix
    with pytest.raises(TruthHeadsError, match="no connection to the hub"):
        load(name, device="cpu")
    assert not isinstance(model, SeveralErrors) and time.monotonic() - begun < 2 * AT_ONCE


@pytest.mark.usefixtures("nowhere")
def test_without_a_network_rows_of_the_hub_are_not_waited_for() -> None:
    begun = time.monotonic()
    with pytest.raises(DataError) as raised:
        next(hub_rows("hf://datasets/nobody/nothing"))
    assert time.monotonic() - begun < AT_ONCE
    assert raised.value.got == "no answer from the hub" and "give its path" in raised.value.fix


@pytest.mark.parametrize("name", ["a b", "a/b/c", "nobody:nothing", "~nobody-is-called-so/model", "model?"])
def test_what_the_hub_cannot_hold_is_not_asked_for(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TruthHeadsError) as raised:
        resolve(name)
    assert "is not there" in raised.value.problem and raised.value.fix == "check the path"
    assert [one.problem for one in loading_faults(name, device="cpu")] == [raised.value.problem]
