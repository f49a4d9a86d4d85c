"""The command's own stdin, stdout and stderr on its event loop, without changing how others use them.

They may be shared with other processes, so they are not set non-blocking. A pipe is written to when it
is writable, at most PIPE_BUF bytes at once, which then cannot block; files are written to directly.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Callable

from crumble_common.errors import HostError
from crumble_common.eventloop import EventLoop

# Linux's PIPE_BUF: a writable pipe takes this much.
_AT_ONCE = 4096
_READ = 64 << 10
# There is a reader, but no place for more.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Writer:
    """Writes what comes, in order; says what was written, so that more may come.

    on_broken: called once, when the reader has gone; what comes then is thrown away.
    HostError from the loop when what it writes to is full: output would be lost unseen.
    """

    def __init__(
        self,
        loop: EventLoop,
        fd: int,
        on_written: Callable[[int], None],
        on_broken: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._on_written = on_written
        self._on_broken = on_broken
        self._queue: deque[memoryview] = deque()
        self._waits = _can_wait(fd)
        self._broken = False
        self._watched = False

    @property
    def empty(self) -> bool:
        """Everything was written."""
        return not self._queue

    def write(self, data: bytes) -> None:
        """Adds output."""
        self._queue.append(memoryview(data))
        if not self._waits or self._broken:
            while self._queue:
                self._some()
        elif not self._watched:
            self._watched = True
            self._loop.set_writable(self._fd, "output", self._some)

    def close(self) -> None:
        """Stops writing; what is queued is lost."""
        if self._watched:
            self._loop.set_writable(self._fd, "output", None)
            self._watched = False

    def _some(self) -> None:
        view = self._queue[0]
        done = len(view) if self._broken else self._put(view)
        if done == len(view):
            self._queue.popleft()
        else:
            self._queue[0] = view[done:]
        if not self._queue:
            self.close()
        self._on_written(done)

    def _put(self, view: memoryview) -> int:
        try:
            return os.write(self._fd, view[:_AT_ONCE] if self._waits else view)
        except BlockingIOError:
            return 0  # somebody else made it non-blocking
        except OSError as error:
            self._broken = True
            if error.errno in _FULL:
                raise _full(self._fd, error) from None
            self._on_broken()
            return len(view)


def _full(fd: int, error: OSError) -> HostError:
    name = {1: "stdout", 2: "stderr"}.get(fd, f"descriptor {fd}")
    return HostError(
        f"The command's output cannot be written to {name}: {error.strerror}.",
        code="output.full",
        hint="Free some space there; the command was ended.",
    )


class Reader:
    """Reads stdin, at most `credit` bytes ahead; calls with what came, and with b"" at its end."""

    def __init__(self, loop: EventLoop, fd: int, on_data: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._on_data = on_data
        self._credit = 0
        self._waits = _can_wait(fd)
        self._active = False
        self._ended = False

    def allow(self, size: int) -> None:
        """May read `size` bytes more."""
        self._credit += size
        if self._ended or self._active or self._credit <= 0:
            return
        self._active = True
        if self._waits:
            self._loop.add_fd(self._fd, "input", self._read)
        else:
            self._loop.call_soon(self._read)

    def close(self) -> None:
        """Stops reading."""
        if self._waits and self._active:
            self._loop.remove_fd(self._fd)
        self._active = False
        self._ended = True

    def _read(self) -> None:
        if self._ended:
            return
        data = b""
        with contextlib.suppress(OSError):  # a terminal that was hung up reads as its end
            data = os.read(self._fd, min(_READ, self._credit))
        self._credit -= len(data)
        if not data:
            self.close()
        elif self._credit <= 0:
            if self._waits:
                self._loop.remove_fd(self._fd)
            self._active = False
        elif not self._waits:
            self._loop.call_soon(self._read)
        self._on_data(data)


def _can_wait(fd: int) -> bool:
    """Regular files are always ready, and cannot be waited for."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not _is_null(fd, mode)


def _is_null(fd: int, mode: int) -> bool:
    return stat.S_ISCHR(mode) and not os.isatty(fd)
