"""The supervisor's side of the forkserver: starts it, spawns services by it, hears of their ends."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack

from crumble.supervisor.forkserver import MAX_MESSAGE, main
from crumble_common import log as logger
from crumble_common import paths
from crumble_common.errors import HostError, InternalError
from crumble_common.eventloop import EventLoop

# What the forkserver may take to bury its children, s.
_BURIAL = 30.0
# The forkserver gets our sys.path: it must import the same modules, wherever they came from.
_BOOTSTRAP = (
    "import json,sys; sys.path[:] = json.loads(sys.argv[4]);"
    "from crumble.supervisor.forkserver import main;"
    "main(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))"
)
_Started = tuple[int, Callable[[], object]]


class Child:
    """A spawned process. `pid` is 0 until it is known; `status` as subprocess.Popen.returncode."""

    def __init__(self, spawner: Spawner, on_exit: Callable[[int], None]) -> None:
        self.spawner = spawner
        self.pid = 0
        self.status: int | None = None
        self.on_exit = on_exit
        self.pending_signal = 0

    def signal(self, number: int) -> None:
        """Sends it a signal; the forkserver knows whether it has ended."""
        if self.pid == 0:
            self.pending_signal = number
        elif self.status is None:
            self.spawner.signal(self.pid, number)


class Spawner:
    """Owns the forkserver process.

    fork: this process is ours alone and has imported what the forkserver would import first, so that
    one is made by forking it, in a tenth of the time, as long as there is one thread.
    """

    def __init__(
        self, runtime: Path, log: Path, preload: tuple[str, ...], *, fork: bool = False
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_MESSAGE)
        start = _fork if fork and _threads() == 1 else _execute
        try:
            with log.open("ab") as stderr:
                self.pid, self._wait = start(theirs.fileno(), stderr.fileno(), runtime, preload)
        except OSError as error:
            ours.close()
            raise HostError(
                f"Cannot start a process: {error}.",
                code="host.process",
                hint="End other processes, or raise the limit on them (ulimit -u).",
            ) from error
        finally:
            theirs.close()
        self._socket = ours
        self._children: dict[int, Child] = {}
        self._unnamed: dict[int, Child] = {}
        self._numbers = itertools.count(1)
        self._loop: EventLoop | None = None
        self._on_lost: Callable[[], None] = lambda: None

    def attach(self, loop: EventLoop, on_lost: Callable[[], None]) -> None:
        """Serves reports on `loop`; `on_lost` is called when the forkserver died."""
        self._loop, self._on_lost = loop, on_lost
        loop.add_fd(self._socket.fileno(), "forkserver", self._serve)

    def spawn(
        self,
        name: str,
        entry: str,
        environment: Mapping[str, str],
        fds: Mapping[str, int],
        log_fd: int,
        on_exit: Callable[[int], None],
    ) -> Child:
        """Forks `entry`; the fds stay the caller's. `on_exit` gets its status."""
        child = Child(self, on_exit)
        number = next(self._numbers)
        request = {
            "op": "spawn", "id": number, "name": name, "entry": entry,
            "env": dict(environment), "fds": list(fds),
        }  # fmt: skip
        self._unnamed[number] = child
        self._send(request, [log_fd, *fds.values()])
        return child

    def keep_spares(self, entries: list[str]) -> None:
        """Has one of each be there before it is asked for."""
        with contextlib.suppress(InternalError):  # lost: then the next forkserver is told
            self._send({"op": "spares", "entries": entries}, [])

    def signal(self, pid: int, number: int) -> None:
        """Sends a signal to one of our children."""
        with contextlib.suppress(InternalError):  # a lost forkserver's children are killed
            self._send({"op": "signal", "pid": pid, "signal": number}, [])

    def close(self) -> None:
        """Ends the forkserver, which ends all children; waits for it."""
        if self._socket.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        if not _closed(self._socket, _BURIAL):
            os.kill(self.pid, signal.SIGKILL)
        self._wait()
        self.detach()

    def disown(self) -> None:
        """In a forked child of this process: closes its copy of our end. The loop's epoll is the parent's."""
        self._socket.close()

    def detach(self) -> None:
        """Closes our end: the forkserver ends by itself."""
        if self._loop is not None:
            self._loop.remove_fd(self._socket.fileno())
            self._loop = None
        self._socket.close()

    def _send(self, request: Mapping[str, Any], fds: list[int]) -> None:
        try:
            socket.send_fds(self._socket, [msgpack.packb(request)], fds)
        except OSError as error:
            raise InternalError(
                f"The process that starts services is gone: {error}.", code="forkserver.lost"
            ) from error

    def _serve(self) -> None:
        data = b""
        with contextlib.suppress(ConnectionError):
            data = self._socket.recv(MAX_MESSAGE)
        if not data:
            self._lose()
            return
        report = msgpack.unpackb(data)
        if report["op"] == "spawned":
            self._spawned(self._unnamed.pop(report["id"]), report["pid"])
        elif report["op"] == "exited" and (child := self._children.pop(report["pid"], None)):
            self._exited(child, report["status"])

    def _spawned(self, child: Child, pid: int) -> None:
        child.pid = pid
        self._children[pid] = child
        if child.pending_signal:
            child.signal(child.pending_signal)

    @staticmethod
    def _exited(child: Child, status: int) -> None:
        child.status = status
        child.on_exit(status)

    def _lose(self) -> None:
        """The forkserver died: its children are orphans, and end by their lifelines; make sure."""
        logger.error("forkserver lost", pid=self.pid)
        assert self._loop is not None
        self._loop.remove_fd(self._socket.fileno())
        for child in (*self._children.values(), *self._unnamed.values()):
            if child.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
            self._exited(child, -signal.SIGKILL)
        self._children.clear()
        self._unnamed.clear()
        self._on_lost()


def _threads() -> int:
    """Of this process, the interpreter's and others; 0 when that is not known."""
    try:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208
    except OSError:
        return 0


def _absolute_path() -> list[str]:
    return [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100


def _execute(ours: int, log: int, runtime: Path, preload: tuple[str, ...]) -> _Started:
    """Starts the forkserver as a new Python; gives its pid and how to wait for its end."""
    import subprocess

    process = subprocess.Popen(
        [sys.executable, "-c", _BOOTSTRAP, str(ours), str(runtime), json.dumps(preload),
         json.dumps(_absolute_path())],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
        pass_fds=(ours,), start_new_session=True, cwd="/", env={**os.environ, **paths.chosen()},
    )  # fmt: skip
    return process.pid, process.wait


def _fork(ours: int, log: int, runtime: Path, preload: tuple[str, ...]) -> _Started:
    """Forks the forkserver; gives its pid and how to wait for its end."""
    path = _absolute_path()
    gc.freeze()  # no collector dirties the pages both share
    pid = os.fork()
    if pid:
        return pid, lambda: os.waitpid(pid, 0)
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream, fd in enumerate((null, null, log)):
            os.dup2(fd, stream)
        sys.stdout, sys.stderr = (open(fd, "w", 1, closefd=False) for fd in (1, 2))  # noqa: SIM115
        for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
            if fd > 2 and fd != ours:
                with contextlib.suppress(OSError):  # the listing's own
                    os.close(fd)
        paths.leave()
        sys.path[:] = path
        sys.argv[:] = ["crumble-fork"]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        main(ours, str(runtime), list(preload))
    except BaseException:  # noqa: BLE001  the last frame of this process
        import traceback

        traceback.print_exc()
    finally:
        os._exit(0)


def _closed(connection: socket.socket, limit: float) -> bool:
    """Takes what comes until the peer has closed; False when it has not within `limit` seconds."""
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    deadline = time.monotonic() + limit
    while poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
        try:
            if not connection.recv(MAX_MESSAGE):
                return True
        except ConnectionError:
            return True
    return False
