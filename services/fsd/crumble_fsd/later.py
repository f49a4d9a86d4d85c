"""File data that is captured while the guest goes on: what it is about to change is copied first.

All is done by the loop's thread, a piece at a time, so that a request of the guest waits for one piece at
most, or for those that it changes itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from crumble_fsd import copying

_PIECE = 1 << 20


@dataclass(slots=True)
class _Job:
    """`length` bytes at `at` of `source` belong at `to`. left: numbers of the pieces that are not there yet."""

    source: int
    at: int
    length: int
    to: int
    holes: bool
    left: set[int]

    def copy(self, number: int, target: int) -> None:
        first = number * _PIECE
        length = min(_PIECE, self.length - first)
        take = copying.copy_sparse if self.holes else copying.copy
        take(self.source, self.at + first, target, self.to + first, length)
        self.left.discard(number)

    def changed(self, start: int, length: int) -> list[int]:
        """The pieces left with bytes in [start, start + length) of the source."""
        first, last = (start - self.at) // _PIECE, (start + length - 1 - self.at) // _PIECE
        if last - first > len(self.left):
            return [number for number in self.left if first <= number <= last]
        return [number for number in range(first, last + 1) if number in self.left]


class Later:
    """Copies to `target`. changing: the file that the guest writes to, each of its files in a window of so many
    bytes; other sources do not change. failed: called once, with what went wrong; nothing is left then.
    """

    def __init__(
        self, target: int, changing: int, window: int, failed: Callable[[OSError], None]
    ) -> None:
        self._target, self._changing, self._window = target, changing, window
        self._failed = failed
        self._jobs: deque[_Job] = deque()
        self._windows: dict[int, _Job] = {}
        self.complete = True  # unless it failed, or was given up

    @property
    def pending(self) -> bool:
        """Something is left."""
        return bool(self._jobs)

    def add(self, source: int, at: int, length: int, to: int, *, holes: bool) -> None:
        """To be copied; the ranges of a source that changes are in one window each."""
        parts = copying.extents(source, at, at + length) if holes else [(at, at + length)]
        left = {
            number
            for start, end in parts
            for number in range((start - at) // _PIECE, (end - at - 1) // _PIECE + 1)
        }
        if not left:
            return
        job = _Job(source, at, length, to, holes, left)
        self._jobs.append(job)
        if source == self._changing:
            self._windows[at // self._window] = job

    def before_change(self, start: int, length: int) -> None:
        """Bytes of the source that changes are about to."""
        job = self._windows.get(start // self._window)
        if job is not None and length > 0:
            for number in job.changed(start, length):
                self._copy(job, number)

    def step(self) -> bool:
        """Copies a piece; False when there is none left."""
        while self._jobs and not self._jobs[0].left:
            job = self._jobs.popleft()
            if job.source == self._changing:
                self._windows.pop(job.at // self._window, None)
        if self._jobs:
            self._copy(self._jobs[0], min(self._jobs[0].left))
        return bool(self._jobs)

    def give_up(self) -> None:
        """Nothing is copied any more."""
        self.complete = False
        self._jobs.clear()
        self._windows.clear()

    def _copy(self, job: _Job, number: int) -> None:
        if not self.complete:
            return  # the target may be somebody else's number by now
        try:
            job.copy(number, self._target)
        except OSError as error:
            self.give_up()
            self._failed(error)
