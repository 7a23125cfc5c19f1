"""Work done ahead in worker processes: in order, with its own errors, and never silently less."""

import os
import signal
import time

import pytest

from truthheads.errors import ActivationError, DataError
from truthheads.models.image_inputs import mapped


def slow_square(number: int) -> tuple[int, int]:
    time.sleep(0.02 * (number % 3))
    return number * number, os.getpid()


def refuse_seven(number: int) -> int:
    if number == 7:
        raise DataError("seven", expected="another number", got="7", fix="leave it out")
    return number


def die_at_five(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_order_from_as_many_processes(workers: int) -> None:
    made = list(mapped(slow_square, range(12), workers=workers))
    assert [square for square, _ in made] == [number**2 for number in range(12)]
    processes = {process for _, process in made}
    assert len(processes) == max(1, workers)
    assert (os.getpid() in processes) == (workers == 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_arrives_as_it_was(workers: int) -> None:
    seen = []
    with pytest.raises(DataError, match="seven") as caught:
        for number in mapped(refuse_seven, range(12), workers=workers):
            seen.append(number)
    assert seen == list(range(7))
    assert caught.value.fix == "leave it out"


@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_is_an_error_not_a_hole() -> None:
    with pytest.raises(ActivationError, match="process that prepares images was killed"):
        list(mapped(die_at_five, range(12), workers=2))


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    assert list(mapped(refuse_seven, range(3), workers=1)) == [0, 1, 2]
    assert "TOKENIZERS_PARALLELISM" not in os.environ
