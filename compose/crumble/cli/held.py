"""Signals kept waiting while something is made that must be unmade when one of them ends the command."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Held:
    """While entered, signals that end the command wait; leaving lets them come. In the main thread.

    A handler that was set meanwhile stays, and gets them.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._seen: list[int] = []
        self._handler = self._note

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._seen.append(number)

    def __enter__(self) -> Self:
        for number in _ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                self._before[number] = signal.signal(number, self._handler)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            if signal.getsignal(number) is self._handler:
                signal.signal(number, before)
        for number in self._seen:
            signal.raise_signal(number)
