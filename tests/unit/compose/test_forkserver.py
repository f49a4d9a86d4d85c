"""The forkserver: real forks of a real process; nothing outlives its peers."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crumble.supervisor.spawner import Child, Spawner
from crumble_common.eventloop import EventLoop


class Nursery:
    """A spawner on a loop, and what it said."""

    def __init__(self, where: Path, *, fork: bool) -> None:
        self.runtime = where / "runtime"
        self.runtime.mkdir()
        self.loop = EventLoop()
        self.exits: dict[int, int] = {}
        self.lost = False
        self.log = os.open(where / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.spawner = Spawner(
            self.runtime, where / "fork.log", ("framework.forked", "no.such.module"), fork=fork
        )
        self.spawner.attach(self.loop, self.on_lost)

    def on_lost(self) -> None:
        self.lost = True

    def spawn(self, entry: str, fds: dict[str, int] | None = None) -> Child:
        children: list[Child] = []

        def on_exit(status: int) -> None:
            self.exits[children[0].pid] = status

        child = self.spawner.spawn("x", entry, {"FORKED": "yes"}, fds or {}, self.log, on_exit)
        children.append(child)
        return child

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            self.loop.step(0.1)

    def running(self, entry: str = "framework.forked:waits") -> Child:
        child = self.spawn(entry)
        self.until(lambda: child.pid)
        return child


@pytest.fixture(params=["executed", "forked"])
def nursery(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Nursery]:
    made = Nursery(tmp_path, fork=request.param == "forked")
    yield made
    made.spawner.close()
    os.close(made.log)
    made.loop.close()


def gone(pid: int) -> bool:
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except FileNotFoundError:
        return True


def logged(nursery: Nursery) -> str:
    return os.pread(nursery.log, 10_000, 0).decode()


def test_spares_end_with_a_server_that_is_killed(nursery: Nursery) -> None:
    entries = ["framework.forked:writes", "framework.forked:waits"]
    nursery.spawner.keep_spares(entries)
    nursery.until(lambda: len(spares(nursery)) == 2)
    pids = spares(nursery)
    os.kill(nursery.spawner.pid, signal.SIGKILL)
    nursery.until(lambda: nursery.lost and all(gone(pid) for pid in pids))


@pytest.mark.parametrize("used", [True, False])
def test_a_spare_becomes_a_child_or_ends_with_the_rest(nursery: Nursery, used: bool) -> None:
    entry = "framework.forked:writes"
    nursery.spawner.keep_spares([entry])
    nursery.until(lambda: spares(nursery))
    (pid,) = spares(nursery)
    if not used:
        nursery.spawner.close()
        assert gone(pid)
        return
    reader, writer = os.pipe()
    child = nursery.spawn(entry, {"out": writer})
    os.close(writer)
    nursery.until(lambda: child.pid in nursery.exits)
    assert (child.pid, nursery.exits[child.pid]) == (pid, 3)
    assert os.read(reader, 10) == b"yes"
    os.close(reader)
    nursery.until(lambda: spares(nursery))
    (other,) = spares(nursery)
    os.kill(other, signal.SIGKILL)
    nursery.until(lambda: spares(nursery) - {other})
    assert nursery.running().pid not in spares(nursery)


def spares(nursery: Nursery) -> set[int]:
    """Those that wait, of this forkserver."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            waits = (entry / "comm").read_text() == "crumble-spare\n"
            if waits and int(parent) == nursery.spawner.pid and not gone(int(entry.name)):
                found.add(int(entry.name))
        except (OSError, IndexError, ValueError):
            continue
    return found


def test_a_child_gets_its_fds_environment_and_log_and_its_status_comes_back(
    nursery: Nursery,
) -> None:
    reader, writer = os.pipe()
    child = nursery.spawn("framework.forked:writes", {"out": writer})
    os.close(writer)
    nursery.until(lambda: child.pid in nursery.exits)
    assert os.read(reader, 100) == b"yes"
    assert os.read(reader, 100) == b""  # the forkserver keeps no copy
    os.close(reader)
    assert nursery.exits[child.pid] == 3
    assert "to stderr" in logged(nursery)
    assert os.getpgid(0) != os.getpgid(nursery.spawner.pid)


def test_processes_are_listed_under_their_own_names(nursery: Nursery) -> None:
    child = nursery.running()
    for pid, name in ((nursery.spawner.pid, b"crumble-fork"), (child.pid, b"crumble-x")):
        line = Path(f"/proc/{pid}/cmdline")
        nursery.until(lambda line=line, name=name: line.read_bytes().rstrip(b"\0") == name)
        assert line.with_name("comm").read_bytes() == name + b"\n"


def test_an_entry_that_cannot_be_imported_is_an_exit_status_and_a_log_line(
    nursery: Nursery,
) -> None:
    child = nursery.spawn("no.such.module:X")
    nursery.until(lambda: child.pid in nursery.exits)
    assert nursery.exits[child.pid] == 70
    assert "No module named 'no'" in logged(nursery)


def test_a_forked_forkserver_keeps_nothing_of_its_parent(tmp_path: Path) -> None:
    with (tmp_path / "held").open("w") as held:
        made = Nursery(tmp_path, fork=True)
        made.running()
        open_files = [item.readlink() for item in Path(f"/proc/{made.spawner.pid}/fd").iterdir()]
        assert Path(held.name) not in open_files
        assert os.getsid(made.spawner.pid) == made.spawner.pid
    made.spawner.close()
    os.close(made.log)
    made.loop.close()


def test_signals_reach_children_also_before_their_pid_is_known(nursery: Nursery) -> None:
    child = nursery.spawn("framework.forked:waits")
    child.signal(signal.SIGKILL)
    nursery.until(lambda: child.pid in nursery.exits)
    assert nursery.exits[child.pid] == -signal.SIGKILL
    child.signal(signal.SIGKILL)  # it has ended: nothing is sent to who has its pid now


def test_children_end_with_the_supervisor_and_the_directory_goes(nursery: Nursery) -> None:
    child = nursery.running()
    nursery.spawner.detach()
    nursery.until(lambda: gone(child.pid) and not nursery.runtime.exists())


def test_a_killed_forkserver_takes_its_children_with_it(nursery: Nursery) -> None:
    child = nursery.running()
    os.kill(nursery.spawner.pid, signal.SIGKILL)
    nursery.until(lambda: nursery.lost)
    assert nursery.exits[child.pid] == -signal.SIGKILL
    nursery.until(lambda: gone(child.pid))
