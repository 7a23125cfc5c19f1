"""Processes of one command that watch each other: one that dies stops the others, one that fails tells them why.

Each process holds a connection to the first. Its death closes the connection, whatever it was doing; where a whole
machine or its network goes, the kernel's own probes find out. So a process that computes for long, or stands still,
is never taken for a dead one: nothing has to beat in time.
"""

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from truthheads.errors import TruthHeadsError
from truthheads.storage.launching import Ranks

SILENT_SECONDS = 10
"""After so long without a word the kernel asks whether the other machine is still there …"""

PROBE_SECONDS, PROBES = 5, 4
"""… and so often, so many times: a machine that is gone is noticed within 30 seconds, a process at once."""

MEETING_SECONDS = 60.0
"""How long the connections of a command may take, once all of its processes are there."""

GOES_ON = "start the same command again, it goes on from here"


class PeerLostError(TruthHeadsError):
    """Another process of the same command is not there any more."""


class Meeting(NamedTuple):
    """Where the first process waits for the others.

    Attributes:
        listener: Its socket.
        port: Its port.
        token: What the others have to say to be let in.
    """

    listener: socket.socket
    port: int
    token: int


class Peer:
    """Another process of the command.

    Attributes:
        rank: Its number.
        name: Its machine and process id, for people.
        link: The connection to it.
        left: After how many meetings it has said that its part is done; None while it works.
        gone: Whether the connection is closed.
    """

    def __init__(self, rank: int, name: str, link: socket.socket) -> None:
        self.rank, self.name, self.link = rank, name, link
        self.left: int | None = None
        self.gone = False
        self.heard = b""


def meet() -> Meeting:
    """Open the first process's door."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    listener = socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=1024)
    return Meeting(listener, int(listener.getsockname()[1]), secrets.randbits(62))


class Watch:
    """The connections of this process, and the thread that looks after them.

    Args:
        place: This process among the others.
        peers: The first process's are all others; another's is the first alone.
    """

    def __init__(self, place: Ranks, peers: list[Peer]) -> None:
        self.place, self.peers = place, peers
        self.meetings = 0
        self.ended = False
        self._sending = threading.Lock()
        for peer in peers:
            _keep_alive(peer.link)
        threading.Thread(target=self._look, name="truthheads-watch", daemon=True).start()

    @classmethod
    def of_first(cls, place: Ranks, meeting: Meeting) -> "Watch":
        """Let all other processes in, and return the first one's watch.

        Raises:
            GoneError: One did not come.
        """
        peers: dict[int, Peer] = {}
        until = time.monotonic() + MEETING_SECONDS
        with meeting.listener as listener:
            while len(peers) < place.world - 1:
                listener.settimeout(max(until - time.monotonic(), 0.01))
                try:
                    link = listener.accept()[0]
                except TimeoutError as error:
                    missing = sorted(set(range(1, place.world)) - peers.keys())
                    raise _did_not_meet(f"rank {missing[0]} did not connect to rank 0") from error
                told = _introduced(link, meeting.token)
                if told.get("rank") in range(1, place.world):
                    peers[told["rank"]] = Peer(told["rank"], str(told["name"]), link)
                else:
                    link.close()
        for peer in peers.values():
            _say(peer.link, {"name": own_name()})
        return cls(place, [peers[rank] for rank in sorted(peers)])

    @classmethod
    def of_other(cls, place: Ranks, address: str, port: int, token: int) -> "Watch":
        """Connect to the first process and return this one's watch.

        Raises:
            GoneError: It cannot be reached.
        """
        try:
            link = socket.create_connection((address, port), timeout=MEETING_SECONDS)
            _say(link, {"rank": place.rank, "name": own_name(), "token": token})
            told = _line(link)
        except (OSError, ValueError) as error:
            raise _did_not_meet(f"rank {place.rank} did not reach rank 0 at {address}:{port}: {error}") from error
        return cls(place, [Peer(0, str(told["name"]), link)])

    def enter(self) -> None:
        """Say that this process now waits for all others.

        Raises:
            GoneError: One of them has ended.
        """
        self.meetings += 1
        self._tell({"here": self.meetings})
        for peer in self.peers:
            if peer.gone:
                raise PeerLostError(
                    f"{self.named(peer)} has ended its part",
                    expected="all processes of the command, up to its end",
                    got="one that is not there any more",
                    fix="run one of score, trace, evaluate at a time on several processes, other commands on one",
                )

    def done(self) -> None:
        """Say that this process's part is done: from now on it may end."""
        self.ended = True
        self._tell({"done": self.meetings})

    def failed(self, why: str, code: int) -> None:
        """Tell the others why this process ends, so that they end, too."""
        self.ended = True
        self._tell({"failed": f"{self.named()} has stopped: {why}", "code": code})

    def named(self, peer: Peer | None = None) -> str:
        """Return what a process is called in messages: this one, or another."""
        rank, name = (self.place.rank, own_name()) if peer is None else (peer.rank, peer.name)
        return f"rank {rank} of {self.place.world} ({name})"

    def _tell(self, what: dict[str, Any], *, but: Peer | None = None) -> None:
        for peer in self.peers:
            if peer is not but and not peer.gone:
                with self._sending, contextlib.suppress(OSError):  # a closed link is the thread's to find
                    _say(peer.link, what)

    def _look(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer in self.peers:
                selector.register(peer.link, selectors.EVENT_READ, peer)
            while selector.get_map():
                for key, _ in selector.select():
                    peer = key.data
                    for told in self._heard(peer):
                        self._take(peer, told)
                    if peer.gone:
                        selector.unregister(peer.link)
                        peer.link.close()
                        self._lost(peer)

    def _heard(self, peer: Peer) -> Iterator[dict[str, Any]]:
        try:
            piece = peer.link.recv(65536)
        except OSError:
            piece = b""
        peer.gone = not piece
        *lines, peer.heard = (peer.heard + piece).split(b"\n")
        yield from map(json.loads, lines)

    def _take(self, peer: Peer, told: dict[str, Any]) -> None:
        if "failed" in told:
            self._stop(str(told["failed"]), int(told["code"]), but=peer)
        peer.left = told.get("done")

    def _lost(self, peer: Peer) -> None:
        if peer.left is None or peer.left < self.meetings:
            died = "has died" if peer.left is None else "has ended its part and is waited for"
            self._stop(f"{self.named(peer)} {died}: {GOES_ON}", 1, but=peer)

    def _stop(self, why: str, code: int, *, but: Peer) -> None:
        """End this process from the thread, whatever it is in: nothing that it has completed is lost."""
        self._tell({"failed": why, "code": code}, but=but)
        if self.ended:
            return
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"error: {why}\n")
            sys.stderr.flush()
        os._exit(code)


def own_name() -> str:
    """Return this machine's name and the process's number, for people."""
    return f"{socket.gethostname()}, process {os.getpid()}"


def _did_not_meet(problem: str) -> PeerLostError:
    return PeerLostError(
        problem,
        expected=f"a connection within {MEETING_SECONDS:.0f} seconds, on any free port",
        got="none",
        fix=f"see that the machines reach each other, and {GOES_ON}",
    )


def _introduced(link: socket.socket, token: int) -> dict[str, Any]:
    """Return what the one at the door says, or nothing where it is a stranger: any port is knocked at."""
    try:
        link.settimeout(MEETING_SECONDS / 10)
        told = _line(link)
    except (OSError, ValueError):
        return {}
    return told if told.get("token") == token else {}


def _say(link: socket.socket, what: dict[str, Any]) -> None:
    link.sendall(json.dumps(what).encode() + b"\n")


def _line(link: socket.socket) -> dict[str, Any]:
    heard = b""
    while not heard.endswith(b"\n"):
        piece = link.recv(1)  # by bytes: what follows the line belongs to the thread
        if not piece or len(heard) > 1000:
            raise ValueError("no line")
        heard += piece
    told = json.loads(heard)
    return told if isinstance(told, dict) else {}


def _keep_alive(link: socket.socket) -> None:
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {
        "TCP_KEEPIDLE": SILENT_SECONDS,
        "TCP_KEEPALIVE": SILENT_SECONDS,  # macOS's name for it
        "TCP_KEEPINTVL": PROBE_SECONDS,
        "TCP_KEEPCNT": PROBES,
        "TCP_USER_TIMEOUT": 1000 * (SILENT_SECONDS + PROBE_SECONDS * PROBES),
        "TCP_NODELAY": 1,
    }
    for name, value in wanted.items():
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
