"""Processes that watch each other, without torch: who dies, who fails, who may end."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from truthheads.storage.launching import asked_for, launch_words

MEMBER = """
import sys, time
from pathlib import Path
from truthheads.launching import Ranks
from truthheads.watching import Meeting, Watch, meet

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
place = Ranks(rank, world)
if rank == 0:
    meeting = meet()
    (folder / "aside").write_text(f"{meeting.port} {meeting.token}")
    (folder / "aside").rename(folder / "met")
    watch = Watch.of_first(place, meeting)
else:
    while not (folder / "met").is_file():
        time.sleep(0.01)
    port, token = map(int, (folder / "met").read_text().split())
    watch = Watch.of_other(place, "127.0.0.1", port, token)
print("met", flush=True)
for line in sys.stdin:
    what = line.split()[0]
    if what == "enter":
        watch.enter()
    elif what == "done":
        watch.done()
    elif what == "failed":
        watch.failed("no such row; do: mend it", 2)
        sys.exit(3)
    elif what == "compute":  # in one C call that lets no other thread run
        sum(range(3 * 10**7))
    elif what == "end":
        sys.exit(0)
    print(what, flush=True)
"""


class Members(list["subprocess.Popen[str]"]):
    """Processes of one command that do what they are told on stdin."""

    def __init__(self, world: int, folder: Path) -> None:
        words = [sys.executable, "-c", MEMBER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        super().__init__(
            subprocess.Popen([*words, str(rank), str(world), str(folder)], text=True, **pipes) for rank in range(world)
        )
        assert [member.stdout.readline() for member in self if member.stdout] == ["met\n"] * world

    def tell(self, rank: int, what: str, *, wait: bool = True) -> None:
        member = self[rank]
        assert member.stdin is not None and member.stdout is not None
        member.stdin.write(f"{what}\n")
        member.stdin.flush()
        if wait:
            assert member.stdout.readline() == f"{what}\n"

    def end(self, rank: int) -> tuple[int, str]:
        member = self[rank]
        code = member.wait(60)
        assert member.stderr is not None
        return code, member.stderr.read()


@pytest.fixture
def members(tmp_path: Path) -> Iterator[Members]:
    members = Members(3, tmp_path)
    yield members
    for member in members:
        member.kill()
        member.communicate()


@pytest.mark.parametrize("victim", [0, 1])
def test_all_others_end_and_name_the_one_that_was_killed(members: Members, victim: int) -> None:
    members.tell(2, "enter")  # waiting
    members[victim].send_signal(signal.SIGKILL)
    members[victim].wait(60)
    for rank in {0, 1, 2} - {victim}:
        code, told = members.end(rank)
        assert code == 1
        (line,) = told.splitlines()
        assert f"rank {victim} of 3 (" in line and f"process {members[victim].pid}) has died" in line
        assert "start the same command again" in line


def test_a_process_that_fails_tells_all_others_why(members: Members) -> None:
    members.tell(1, "failed", wait=False)
    assert members.end(1)[0] == 3
    for rank in (0, 2):
        code, told = members.end(rank)
        assert code == 2
        assert "rank 1 of 3 (" in told and told.endswith("has stopped: no such row; do: mend it\n")


def test_one_that_is_done_may_end_and_one_that_is_busy_or_stopped_lives(members: Members) -> None:
    for rank in (0, 1, 2):
        members.tell(rank, "enter")
    members.tell(1, "done")
    members.tell(1, "end", wait=False)
    assert members.end(1) == (0, "")
    members[2].send_signal(signal.SIGSTOP)
    members.tell(0, "compute")
    members[2].send_signal(signal.SIGCONT)
    members.tell(2, "compute")
    for rank in (2, 0):
        members.tell(rank, "done")
        members.tell(rank, "end", wait=False)
        assert members.end(rank) == (0, "")


def test_waiting_for_one_that_has_ended_is_an_error(members: Members) -> None:
    for rank in (1, 2):
        members.tell(rank, "done")
    members.tell(1, "end", wait=False)
    assert members.end(1) == (0, "")
    members.tell(0, "enter", wait=False)
    code, told = members.end(0)
    assert code == 1 and "rank 1 of 3" in told and "ended its part" in told


def test_a_stranger_is_not_let_in(tmp_path: Path) -> None:
    import socket
    import threading

    from truthheads.storage.launching import Ranks
    from truthheads.storage.watching import Watch, meet

    meeting = meet()
    found: list[Watch] = []
    first = threading.Thread(target=lambda: found.append(Watch.of_first(Ranks(0, 2), meeting)))
    first.start()
    for said in (b'{"rank": 1, "name": "x", "token": 1}\n', b"GET / HTTP/1.1\n", b"[1]\n", b"\n"):
        with socket.create_connection(("127.0.0.1", meeting.port), timeout=30) as stranger:
            stranger.sendall(said)
            assert stranger.recv(1) == b""
    other = Watch.of_other(Ranks(1, 2), "127.0.0.1", meeting.port, meeting.token)
    first.join(30)
    for watch in (*found, other):
        watch.done()
    assert [peer.rank for peer in found[0].peers] == [1]
    for peer in (*found[0].peers, *other.peers):
        with suppress(OSError):  # the other end may have closed it already
            peer.link.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["python", "/bin/accelerate", "launch", "--cpu", "-m", "truthheads"], ["--cpu", "-m", "truthheads"]),
        (["python", "-m", "accelerate.commands.launch", "--num_processes", "2"], ["--num_processes", "2"]),
        (["/bin/accelerate-launch", "x.py"], ["x.py"]),
        (["python", "-m", "accelerate.commands.accelerate_cli", "launch", "x.py"], ["x.py"]),
        (["bash", "job.sh", "accelerate"], None),
        (["accelerate", "config"], None),
        (["python", "-m", "truthheads", "score", "accelerate", "launch"], None),
    ],
)
def test_what_a_launcher_was_asked(command: list[str], words: list[str] | None) -> None:
    assert launch_words(command) == words


def test_how_many_processes_a_launcher_was_asked_for() -> None:
    assert asked_for(["--num-processes=4", "--mixed_precision", "no", "-m", "truthheads"]) == (4, 1, 0, False, False)
    assert asked_for(["--cpu", "--num_processes", "2", "--num_machines", "2"]) == (2, 2, 0, True, False)
    assert asked_for(["--multi_gpu", "--num_cpu_threads_per_process", "3", "x.py"]) == (0, 1, 3, False, True)
