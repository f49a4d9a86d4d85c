"""How far something is that takes its time."""

from __future__ import annotations

import time
from collections.abc import Callable

# (step, bytes done, bytes altogether, 0 when nobody knows).
Tell = Callable[[str, int, int], None]
# As often as a person can see; what is done sooner says nothing, s.
INTERVAL = 0.1


def silent(_step: str, _done: int, _total: int) -> None:
    """For whom nobody waits."""


class Meter:
    """Counts the bytes of a step, and tells now and then."""

    def __init__(self, tell: Tell, step: str, total: int) -> None:
        self._tell, self._step, self._total = tell, step, total
        self._done = 0
        self._told = time.monotonic()

    def add(self, count: int) -> None:
        """So many more are done."""
        self.set(self._done + count)

    def set(self, done: int) -> None:
        """So many are done altogether."""
        self._done = done
        now = time.monotonic()
        if now - self._told >= INTERVAL:
            self._told = now
            self._tell(self._step, done, self._total)


#: Counts for nobody.
UNSEEN = Meter(silent, "", 0)
