"""A clean, single-threaded Python that has imported what services need, and forks them.

Its only peer is the supervisor, over a SOCK_SEQPACKET socket; messages are msgpack maps:

    supervisor → here   {op: "spawn", id, name, entry, env, fds: [names]} + fds: the log, then those
                        {op: "signal", pid, signal}
                        {op: "spares", entries}: a child of each is to be there before it is asked for
    here → supervisor   {op: "spawned", id, pid}, {op: "exited", pid, status} (as Popen.returncode)

A spare has imported everything and entered its namespaces, which is half of what a start takes; it waits
for its spawn message on a socket of its own. A new one is made when nothing else is to be done.

When the supervisor is gone (EOF, however it ended) every child is ended, the runtime directory it
was given is removed, and it ends. When this process is gone its children see EOF on their lifeline.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack

MAX_MESSAGE = 128 << 10
_MAX_FDS = 64
# What a service may take to end by itself, s.
_GRACE = 2.0
# Nothing was asked for so long: time to make a spare, ms. A VM that has just started needs the processor
# more; when one has ended the next may come soon.
_QUIET, _QUIET_AT_END = 150, 2
# Spares that may end by themselves before no more are made.
_LOST_SPARES = 5


class ForkServer:
    """The process's state: the socket, the living children, what is still to import."""

    def __init__(self, fd: int, preload: list[str]) -> None:
        self.socket = socket.socket(fileno=fd)
        self.children: set[int] = set()
        self.preload = preload
        self.wanted: list[str] = []
        self.spares: dict[str, tuple[int, socket.socket]] = {}
        self.lost_spares = 0
        self.kept = False
        self.quiet = _QUIET_AT_END
        gc.disable()  # imports leave little to collect
        self.lifeline, self._lifeline_end = os.pipe()
        self._wake, wake_end = os.pipe()
        os.set_blocking(wake_end, False)
        os.set_blocking(self._wake, False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def run(self) -> None:
        """Serves until the supervisor is gone; imports while there is nothing to do."""
        poller = select.poll()
        poller.register(self.socket, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while True:
            missing = [entry for entry in self.wanted if entry not in self.spares]
            ready = dict(poller.poll(0 if self.preload else self.quiet if missing else None))
            if self._wake in ready:
                self.reap()
            if self.socket.fileno() in ready and not self.serve():
                return
            if not ready and self.preload:
                self.import_next()
            elif not ready and missing:
                self.make_spare(missing[0])

    def import_next(self) -> None:
        """One module more."""
        _import(self.preload.pop(0))

    def serve(self) -> bool:
        """One message; False at the supervisor's end."""
        try:
            data, fds, _, _ = socket.recv_fds(self.socket, MAX_MESSAGE, _MAX_FDS)
        except ConnectionError:
            return False
        if not data:
            return False
        request = msgpack.unpackb(data)
        if request["op"] == "spawn":
            self.quiet = _QUIET
            self.spawn(request, data, fds)
        elif request["op"] == "spares":
            self.wanted = request["entries"]
        elif request["op"] == "signal" and request["pid"] in self.children:
            os.kill(request["pid"], request["signal"])
        return True

    def spawn(self, request: dict[str, Any], data: bytes, fds: list[int]) -> None:
        """Has a spare be the service, or forks one."""
        pid = self.use_spare(request["entry"], data, fds)
        pid = pid or self.fork(request["entry"], lambda: self.child(request, fds))
        for fd in fds:
            os.close(fd)
        self.send({"op": "spawned", "id": request["id"], "pid": pid})

    def fork(self, entry: str, run: Callable[[], int]) -> int:
        """Forks a child that runs `run`, and never returns; its pid."""
        _import(entry.partition(":")[0])  # here: once for all children
        _merge_pages()
        gc.freeze()  # neither our collector nor the child's dirties the pages they share
        pid = os.fork()
        if pid == 0:
            gc.enable()
            os._exit(self.guarded(run))
        self.children.add(pid)
        return pid

    def use_spare(self, entry: str, data: bytes, fds: list[int]) -> int:
        """The pid of the spare that becomes this service; 0 when there is none."""
        pid, connection = self.spares.pop(entry, (0, None))
        if connection is None:
            return 0
        with connection, contextlib.suppress(OSError):
            socket.send_fds(connection, [data], fds)
            return pid
        return 0

    def make_spare(self, entry: str) -> None:
        """One more; who makes them forks many."""
        if not self.kept:
            self.kept = True
            _import(entry.partition(":")[0])
            _keep_pages()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_MESSAGE)
            self.spares[entry] = self.fork(entry, lambda: self.wait(entry, theirs, ours)), ours

    def guarded(self, run: Callable[[], int]) -> int:
        """In the forked child: lets go of what is the server's, and runs; the exit status."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            os.close(self._lifeline_end)
            os.close(self._wake)
            self.socket.close()
            for _, connection in self.spares.values():
                connection.close()
            return run()
        except BaseException:  # noqa: BLE001  the last frame of this process
            import traceback

            traceback.print_exc()
            return 70

    def wait(self, entry: str, connection: socket.socket, server_end: socket.socket) -> int:
        """A spare's life, which ends with the server's."""
        server_end.close()
        _process_name("spare")
        importlib.import_module("crumble_common.link")
        kind = _named(entry)
        layers = getattr(kind, "isolate", lambda: None)()
        data, fds, _, _ = socket.recv_fds(connection, MAX_MESSAGE, _MAX_FDS)
        connection.close()
        return self.child(msgpack.unpackb(data), fds, layers) if data else 0

    def child(
        self, request: dict[str, Any], fds: list[int], layers: dict[str, str] | None = None
    ) -> int:
        """Becomes the service; returns its exit status."""
        log, *given = fds
        _standard_streams(log)
        named = dict(zip(request["fds"], given, strict=True))
        _environment(request["env"], named, self.lifeline)
        _process_name(request["name"])
        return run_service(request["entry"], layers)

    def reap(self) -> None:
        """Reports the children that ended."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        while self.children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self.children.discard(pid)
            self.quiet = _QUIET_AT_END
            for entry in [key for key, spare in self.spares.items() if spare[0] == pid]:
                self.spares.pop(entry)[1].close()
                self.lost_spares += 1
                if self.lost_spares > _LOST_SPARES:
                    self.wanted = []
            code = os.waitstatus_to_exitcode(status)
            self.send({"op": "exited", "pid": pid, "status": code})

    def send(self, report: Mapping[str, object]) -> None:
        """Tells the supervisor; one that is gone is noticed by `serve`."""
        with contextlib.suppress(OSError):
            self.socket.send(msgpack.packb(report))

    def bury(self) -> None:
        """Ends every child: politely, then by force."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        for number, limit in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, 10 * _GRACE)):
            for pid in self.children:
                os.kill(pid, number)
            deadline = time.monotonic() + limit
            while self.children and (left := deadline - time.monotonic()) > 0:
                poller.poll(left * 1000)
                self.reap()


def _import(name: str) -> None:
    """A module that cannot be imported fails where it is used."""
    with contextlib.suppress(Exception):
        importlib.import_module(name)


def _merge_pages() -> None:
    """What the children make anew, each for itself, is much the same (docs/decisions/0014). Guests' memory is not meant:
    it is no anonymous memory.
    """
    from crumble_native.process import merge_pages

    merge_pages()


def _keep_pages() -> None:
    """What the children copy and change back they give back (docs/decisions/0014). One that cannot keeps more memory."""
    from crumble_native import forked

    with contextlib.suppress(OSError):
        forked.keep()


def _named(entry: str) -> Any:
    """What "module:name" names."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def run_service(entry: str, layers: dict[str, str] | None) -> int:
    """Runs what `entry` names, a Service class or a function, to its end."""
    from crumble_common.service import service_main

    found = _named(entry)
    return service_main(found, layers=layers) if isinstance(found, type) else int(found())


def _standard_streams(log: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)


def _environment(given: dict[str, str], fds: dict[str, int], lifeline: int) -> None:
    os.environ.update(given)
    os.environ["CRUMBLE_BEGUN"] = str(time.monotonic_ns())
    os.environ["CRUMBLE_FDS"] = json.dumps(fds)
    os.environ["CRUMBLE_LIFELINE"] = str(lifeline)


def _process_name(name: str) -> None:
    """The name in `ps` and `top`; at most 15 bytes in the latter, and else as long as our arguments."""
    title = f"crumble-{name}".encode()
    with contextlib.suppress(OSError, ValueError, IndexError):
        Path("/proc/self/comm").write_bytes(title[:15])
        # proc(5), /proc/PID/stat: fields 48 and 49, of those behind the command's name.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        with open("/proc/self/mem", "r+b", 0) as memory:
            memory.seek(start)
            memory.write(title[: end - start - 1].ljust(end - start, b"\0"))


def main(fd: int, runtime: str, preload: list[str]) -> None:
    """The process; `runtime` is removed when the supervisor ended without removing it."""
    _process_name("fork")
    server = ForkServer(fd, preload)
    server.run()
    server.bury()
    place = Path(runtime)
    shutil.rmtree(place, ignore_errors=True)
    link = place.with_name("daemon")
    with contextlib.suppress(OSError):
        if link.readlink() == Path(place.name):
            link.unlink()
    os._exit(0)  # the interpreter need not take itself apart


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
