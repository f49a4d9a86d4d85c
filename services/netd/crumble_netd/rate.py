"""Rates: so much a second, with a burst. What is spent too much is waited for: nothing is dropped here."""

from __future__ import annotations

# Of a second, that may come at once.
_BURST = 0.1


class Rate:
    """a_second: 0 is no limit. least: of the burst."""

    __slots__ = ("_a_second", "_burst", "_last", "_left")

    def __init__(self, a_second: float = 0.0, least: float = 0.0) -> None:
        self._a_second = a_second
        self._burst = max(a_second * _BURST, least)
        self._left = self._burst
        self._last = 0.0

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return bool(self._a_second)

    def spend(self, size: float, now: float) -> None:
        """It happened; `wait` says when more may."""
        if self._a_second:
            self._fill(now)
            self._left -= size

    def wait(self, now: float) -> float:
        """Seconds until something may happen; 0: now."""
        if not self._a_second:
            return 0.0
        self._fill(now)
        return max(0.0, -self._left / self._a_second)

    def take(self, now: float) -> bool:
        """Whether one more may happen now; then it has."""
        if not self._a_second:
            return True
        self._fill(now)
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def full(self, now: float) -> bool:
        """Whether all of the burst may come."""
        self._fill(now)
        return self._left == self._burst

    def _fill(self, now: float) -> None:
        self._left = min(self._burst, self._left + (now - self._last) * self._a_second)
        self._last = now
