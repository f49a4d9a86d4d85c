"""The two things a confined `ocid` must do outside its store, done by a process that is not confined.

It may read any file its user can, write only its store, and start nothing. Exports and credential helpers
need more: `Broker` forks a process before the sandbox closes, which makes new files (never touches one
that is there) and runs programs called docker-credential-*, on request over a socket pair. `Outside`
does the same directly, for the command line.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from crumble_common.errors import HostError, UsageError
from crumble_ocid.files import as_host_error

_HELPER = re.compile(r"docker-credential-[A-Za-z0-9_.-]{1,64}")
_HELPER_SECONDS = 30
_MAX_MESSAGE = 1 << 16
_EXISTS = "exists"


class Outside:
    """Does it directly."""

    def close(self) -> None:
        """Nothing to end."""

    def create(self, path: Path) -> IO[bytes]:
        """A new file, with the directories it lies in; raises UsageError when it is there."""
        try:
            return os.fdopen(_create(path), "wb")
        except FileExistsError:
            raise _exists(path) from None
        except OSError as error:
            raise as_host_error(error, "write", path) from error

    def remove(self, path: Path) -> None:
        """Removes a file `create` made and nothing came of."""
        with contextlib.suppress(OSError):
            path.unlink()

    def run_helper(self, program: str, server: str) -> bytes:
        """What docker-credential-… get answers for a server; empty when it knows nothing."""
        return _run_helper(program, server)


class Broker(Outside):
    """Has it done by a process forked when this is made; call while there is one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, served = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                self._socket.close()
                _serve(served)
                status = 0
            finally:
                os._exit(status)
        served.close()

    def close(self) -> None:
        """Ends the process."""
        self._socket.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._pid, signal.SIGTERM)
            os.waitpid(self._pid, 0)

    def create(self, path: Path) -> IO[bytes]:
        answer, fds = self._ask({"create": str(path)})
        if fds:
            return os.fdopen(fds[0], "wb")
        if answer.get("error") == _EXISTS:
            raise _exists(path)
        raise as_host_error(
            OSError(answer.get("errno", 0), answer.get("error", "?")), "write", path
        )

    def remove(self, path: Path) -> None:
        self._ask({"remove": str(path)})

    def run_helper(self, program: str, server: str) -> bytes:
        answer, _ = self._ask({"helper": program, "server": server})
        if "error" in answer:
            raise OSError(str(answer["error"]))
        return str(answer.get("output", "")).encode()

    def _ask(self, request: dict[str, str]) -> tuple[dict[str, Any], list[int]]:
        with self._lock:
            try:
                self._socket.send(json.dumps(request).encode())
                data, fds, _, _ = socket.recv_fds(self._socket, _MAX_MESSAGE, 1)
                return json.loads(data), fds
            except (OSError, ValueError):
                raise HostError(
                    "The process that writes outside the image store is gone.",
                    code="host.broker",
                    hint="Start the command again.",
                ) from None


def _serve(connection: socket.socket) -> None:
    """The other process: until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    made: set[str] = set()
    while request := connection.recv(_MAX_MESSAGE):
        for answer, fds in _answer(json.loads(request), made):
            socket.send_fds(connection, [json.dumps(answer).encode()], fds)


def _answer(request: dict[str, str], made: set[str]) -> Iterator[tuple[dict[str, Any], list[int]]]:
    if "create" in request:
        try:
            fd = _create(Path(request["create"]))
        except FileExistsError:
            yield {"error": _EXISTS}, []
        except OSError as error:
            yield {"error": error.strerror, "errno": error.errno}, []
        else:
            made.add(request["create"])
            yield {}, [fd]
            os.close(fd)
    elif "remove" in request:
        if request["remove"] in made:
            Path(request["remove"]).unlink(missing_ok=True)
        yield {}, []
    else:
        try:
            yield {"output": _run_helper(request["helper"], request["server"]).decode()}, []
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            yield {"error": type(error).__name__}, []


def _create(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # a file, where a directory should be
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)


def _run_helper(program: str, server: str) -> bytes:
    if not _HELPER.fullmatch(program):
        raise OSError(f"{program!r} is no credential helper")
    done = subprocess.run(
        [program, "get"],
        input=server.encode(),
        capture_output=True,
        timeout=_HELPER_SECONDS,
        check=False,
    )
    return done.stdout[: _MAX_MESSAGE // 2] if done.returncode == 0 else b""


def _exists(path: Path) -> UsageError:
    return UsageError(
        f"{path} is there already.",
        code="export.exists",
        hint="Choose another path, or remove it first.",
    )
