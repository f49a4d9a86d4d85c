"""Signals as calls on the event loop, where they may raise into whatever waits there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from crumble_common.eventloop import EventLoop

# So many ^C and the process ends at once; what it leaves is cleaned up by the forkserver.
_PATIENCE = 4
_WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGWINCH)


class Interrupted(BaseException):
    """A signal ended the command before the guest's process was there to take it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


class Signals:
    """While entered, each signal calls `on_signal(number)` on the loop."""

    def __init__(self, loop: EventLoop, on_signal: Callable[[int], None]) -> None:
        self._loop = loop
        self._on_signal = on_signal
        self._before: dict[int, Any] = {}
        self._seen = 0

    def __enter__(self) -> Self:
        # A signal that comes just before the loop goes to sleep must wake it, for its handler to run.
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop.add_fd(self._reader, "signal", self._woken)
        self._woke = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in _WATCHED:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup, a shell's background job
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._woke)
        self._loop.remove_fd(self._reader)
        os.close(self._reader)
        os.close(self._writer)

    def _woken(self) -> None:
        os.read(self._reader, 64)

    def _handle(self, number: int, _frame: object) -> None:
        if number == signal.SIGINT:
            self._seen += 1
            if self._seen >= _PATIENCE:
                os._exit(128 + number)
        self._loop.call_soon_threadsafe(lambda: self._on_signal(number))
