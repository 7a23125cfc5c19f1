"""Damaged and made-up files, the same for the same seed, and what may come of reading them."""

import contextlib
import json
import resource
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PATIENCE = 20
"""Seconds after which a reading counts as a hang."""
ROOM = 3 * 2**30
"""Bytes that may be reserved beyond what the process has: a length that is believed asks for more."""
DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), float("-inf"), "", " ", "0", "a", "yes", "none", "\0", "\ud800", "\udfff x", "\ufeff", "\x1b[31m",
    "<script>alert(1)</script>", "[bold]x[/]", "=1+1", "../../etc/passwd", "/dev/zero", "é" * 300, "x" * 5000, [], {},
    [[]], [None], [1, 2, 3], [[0, 1], [2, 3]], ["a", "b"], {"": ""}, {"a": 1}, {"value": "x"}, {"value": None}, DEEP,
    [float("nan")], {"name": 3}, {"value": 1, "low": "x", "high": None}, [{}], [[1e308, -1e308]], "1e999", "9" * 5000,
)  # fmt: skip


class Hang(BaseException):
    """A reading that does not end. No Exception: a reader that excuses every error must not excuse this one."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """End the block with Hang after a while; warnings are errors, and memory beyond reason is refused."""

    def late(*_: Any) -> None:
        raise Hang

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def damaged(rng: np.random.Generator, seeds: Sequence[bytes]) -> bytes:
    """Return one of the files with one to four things done to its bytes."""
    data = bytearray(seeds[rng.integers(len(seeds))])
    for _ in range(int(rng.integers(1, 5))):
        DAMAGES[rng.integers(len(DAMAGES))](rng, data, seeds)
    return bytes(data)


def _flip(rng: np.random.Generator, data: bytearray, _: Sequence[bytes]) -> None:
    for at in rng.integers(0, len(data), min(len(data), int(rng.integers(1, 9)))) if data else ():
        data[at] ^= 1 << int(rng.integers(8))


def _cut(rng: np.random.Generator, data: bytearray, _: Sequence[bytes]) -> None:
    del data[int(rng.integers(len(data) + 1)) :]


def _insert(rng: np.random.Generator, data: bytearray, _: Sequence[bytes]) -> None:
    at = int(rng.integers(len(data) + 1))
    data[at:at] = TOKENS[rng.integers(len(TOKENS))] if rng.random() < 0.7 else rng.bytes(int(rng.integers(1, 20)))


def _overwrite(rng: np.random.Generator, data: bytearray, _: Sequence[bytes]) -> None:
    token = TOKENS[rng.integers(len(TOKENS))]
    at = int(rng.integers(len(data) + 1))
    data[at : at + len(token)] = token


def _repeat(rng: np.random.Generator, data: bytearray, _: Sequence[bytes]) -> None:
    start, stop = sorted(map(int, rng.integers(0, len(data) + 1, 2)))
    data[stop:stop] = data[start:stop] * int(rng.integers(1, 4))


def _drop(rng: np.random.Generator, data: bytearray, _: Sequence[bytes]) -> None:
    start, stop = sorted(map(int, rng.integers(0, len(data) + 1, 2)))
    del data[start : min(stop, start + 40)]


def _splice(rng: np.random.Generator, data: bytearray, seeds: Sequence[bytes]) -> None:
    other = seeds[rng.integers(len(seeds))]
    data[int(rng.integers(len(data) + 1)) :] = other[int(rng.integers(len(other) + 1)) :]


def _length(rng: np.random.Generator, data: bytearray, _: Sequence[bytes]) -> None:
    width = int(rng.choice([1, 2, 4, 8]))
    value = int(rng.choice([0, 1, 127, 128, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**62])) % 2 ** (8 * width)
    at = int(rng.integers(min(len(data), 64 if rng.random() < 0.5 else 2**30) + 1))
    data[at : at + width] = value.to_bytes(width, "little" if rng.random() < 0.8 else "big")


DAMAGES = (_flip, _cut, _insert, _overwrite, _repeat, _drop, _splice, _length)
TOKENS = (
    b"\0",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\r",
    b"\n",
    b"\r\n",
    b'"',
    b"'",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"\\ud800",
    b"\\u0000",
    b"\\",
    b"-1",
    b"9" * 30,
    b"[" * 2000,
    b'{"a":' * 2000,
    b"true",
    b'""',
    b"{}",
    b"[]",
    b"\x1b[2J",
    b"<script>",
    b"=1+1",
    b"\xc3",
    b"\xf0\x9f\x98\x80",
    b"#",
    b"../",
    b"/dev/zero",
    b"0",
    b"1" * 6000,
)


def spoiled(rng: np.random.Generator, value: Any) -> Any:
    """Return a JSON value with one to three of its parts replaced, removed, doubled, or moved."""
    value = json.loads(json.dumps(value))
    for _ in range(int(rng.integers(1, 4))):
        holders = list(_holders(value))
        if not holders:
            return JUNK[rng.integers(len(JUNK))]
        holder = holders[rng.integers(len(holders))]
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = keys[rng.integers(len(keys))]
        kind = rng.random()
        if kind < 0.65:
            holder[key] = json.loads(json.dumps(JUNK[rng.integers(len(JUNK))]))
        elif kind < 0.8:
            del holder[key]
        elif kind < 0.9 and isinstance(holder, list):
            holder.append(json.loads(json.dumps(holder[key])))
        else:
            other = holders[rng.integers(len(holders))]
            holder[key] = json.loads(json.dumps(other))
    return value


def _holders(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list) and value:
        yield value
        for one in value.values() if isinstance(value, dict) else value:
            yield from _holders(one)


def survives(read: Callable[[], Any], allowed: type[Exception], told: Callable[[], str]) -> bool:
    """Return whether a reading gave something; False where it was refused on purpose.

    Raises:
        AssertionError: Anything else came of it.
    """
    try:
        with watched():
            read()
    except allowed:
        return False
    except (Exception, Hang) as error:
        last = "".join(traceback.format_exception(error)[-6:])
        raise AssertionError(f"{type(error).__name__} from {told()}\n{last}") from error
    return True
