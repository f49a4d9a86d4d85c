"""Goldfish RTC: the guest's wall clock (Android goldfish, docs/GOLDFISH-VIRTUAL-HARDWARE.TXT, "RTC").

Time is nanoseconds since 1970, UTC. The guest may move its own idea of it; ours is an offset to the
host's clock. One alarm.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from crumble_vmm.chipset.builder import Device
from crumble_vmm.chipset.lines import Line
from crumble_vmm.snapshot.state import RtcState, in_range

SIZE = 0x1000
TIME_LOW, TIME_HIGH, ALARM_LOW, ALARM_HIGH = 0x00, 0x04, 0x08, 0x0C
IRQ_ENABLED, CLEAR_ALARM, ALARM_STATUS, CLEAR_INTERRUPT = 0x10, 0x14, 0x18, 0x1C

_LOW = 0xFFFF_FFFF
# Alarms further away than this are looked at again then; the loop's timers are floats.
MAX_WAIT = 3600.0
# The guest's time has 64 bits, ns.
_WRAP = 1 << 64


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


class GoldfishRtc(Device):
    """The clock. The alarm's timer belongs to the loop's thread, the registers to whoever has the lock."""

    state_type = RtcState

    def __init__(
        self, name: str, line: Line, loop: Loop, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.name = name
        self._line = line
        self._loop = loop
        self._clock = clock
        self._lock = threading.Lock()
        self._timer: Timer | None = None
        self.reset()

    def reset(self) -> None:
        """No alarm, the host's time."""
        self._offset = self._time_high = self._alarm_high = self._alarm = 0
        self._enabled = self._pending = self._armed = False
        self._line.set(False)

    def get_state(self) -> RtcState:
        """Registers, and what the guest thinks of the host's time."""
        with self._lock:
            return RtcState(
                self._offset % _WRAP, self._time_high, self._alarm_high, self._alarm,
                self._enabled, self._pending, self._armed,
            )  # fmt: skip

    def set_state(self, state: RtcState) -> None:
        """Also drives the line, and sets the alarm's timer."""
        with self._lock:
            offset = in_range("offset", state.offset, 64)
            self._offset = offset if offset < _WRAP // 2 else offset - _WRAP
            self._time_high = in_range("time_high", state.time_high, 32)
            self._alarm_high = in_range("alarm_high", state.alarm_high, 32)
            self._alarm = in_range("alarm", state.alarm, 64)
            self._enabled, self._pending, self._armed = state.enabled, state.pending, state.armed
            self._line.set(self._enabled and self._pending)
        self._loop.call_soon_threadsafe(self._look)

    def stop(self) -> None:
        """Gives the timer back."""
        if self._timer is not None:
            self._timer.cancel()

    def mmio_read(self, offset: int, _size: int, /) -> int:
        """TIME_LOW latches TIME_HIGH, so the guest reads it first."""
        with self._lock:
            if offset == TIME_LOW:
                now = self._now()
                self._time_high = now >> 32 & _LOW
                return now & _LOW
            return {
                TIME_HIGH: self._time_high,
                ALARM_LOW: self._alarm & _LOW,
                ALARM_HIGH: self._alarm >> 32 & _LOW,
                IRQ_ENABLED: int(self._enabled),
                ALARM_STATUS: int(self._armed),
            }.get(offset, 0)

    def mmio_write(self, offset: int, _size: int, value: int, /) -> None:
        """TIME_LOW and ALARM_LOW make the pair of registers take effect."""
        value &= _LOW
        with self._lock:
            if offset == TIME_LOW:
                self._offset += (self._time_high << 32 | value) - self._now()
            elif offset == TIME_HIGH:
                self._time_high = value
            elif offset == ALARM_HIGH:
                self._alarm_high = value
            elif offset == ALARM_LOW:
                self._alarm = self._alarm_high << 32 | value
                self._armed = True
                self._loop.call_soon_threadsafe(self._look)
            elif offset == CLEAR_ALARM:
                self._armed = False
            elif offset in (IRQ_ENABLED, CLEAR_INTERRUPT):
                self._interrupt(offset, value)

    def _interrupt(self, offset: int, value: int) -> None:
        if offset == IRQ_ENABLED:
            self._enabled = bool(value & 1)
        else:
            self._pending = False
        self._line.set(self._enabled and self._pending)

    def _now(self) -> int:
        return self._clock() + self._offset

    def _look(self) -> None:
        """Raises the alarm when it is due, or looks again then. In the loop's thread."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self._lock:
            left = (self._alarm - self._now()) / 1e9
            if self._armed and left <= 0:
                self._armed, self._pending = False, True
                self._line.set(self._enabled)
            elif self._armed:
                self._timer = self._loop.call_later(min(left, MAX_WAIT), self._look)
