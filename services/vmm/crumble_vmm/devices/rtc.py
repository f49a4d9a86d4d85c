"""What real-time clocks have in common: an alarm that a timer of the loop looks after."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

from crumble_vmm.chipset.builder import RegisterDevice
from crumble_vmm.chipset.lines import Line

# Alarms further away than this are looked at again then; the loop's timers are floats.
MAX_WAIT = 3600.0


class Timer(Protocol):
    """A call to come."""

    def cancel(self) -> None:
        """It will not come."""


class Loop(Protocol):
    """What the alarm needs of crumble_common.eventloop.EventLoop."""

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Calls in the loop's thread."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Calls later; only from the loop's thread."""


class Rtc(RegisterDevice):
    """The alarm. Its timer belongs to the loop's thread, the registers to whoever has the lock.

    armed: it is to come. pending: it has. enabled: the line says so.
    """

    def __init__(self, name: str, line: Line, loop: Loop) -> None:
        self.name = name
        self._line = line
        self._loop = loop
        self._lock = threading.Lock()
        self._timer: Timer | None = None
        self.reset()

    def reset(self) -> None:
        """No alarm."""
        self._armed = self._enabled = self._pending = False
        self._update()

    def stop(self) -> None:
        """Gives the timer back."""
        if self._timer is not None:
            self._timer.cancel()

    @abstractmethod
    def _left(self) -> float:
        """Seconds until the alarm is due, 0 or less when it is; under the lock."""

    def _update(self) -> None:
        """Drives the line; under the lock."""
        self._line.set(self._enabled and self._pending)

    def _alarm_changed(self) -> None:
        """Has the loop's thread look. Any thread."""
        self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        """Raises the alarm when it is due, or looks again then. In the loop's thread."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self._lock:
            if not self._armed:
                return
            left = self._left()
            if left <= 0:
                self._armed, self._pending = False, True
                self._update()
            else:
                self._timer = self._loop.call_later(min(left, MAX_WAIT), self._look)
