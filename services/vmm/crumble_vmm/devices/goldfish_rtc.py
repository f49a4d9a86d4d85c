"""Goldfish RTC: the guest's wall clock (Android goldfish, docs/GOLDFISH-VIRTUAL-HARDWARE.TXT, "RTC").

Time is nanoseconds since 1970, UTC. The guest may move its own idea of it; ours is an offset to the
host's clock. One alarm.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from crumble_vmm.chipset.lines import Line
from crumble_vmm.devices.rtc import Loop, Rtc
from crumble_vmm.snapshot.state import RtcState, in_range

SIZE = 0x1000
TIME_LOW, TIME_HIGH, ALARM_LOW, ALARM_HIGH = 0x00, 0x04, 0x08, 0x0C
IRQ_ENABLED, CLEAR_ALARM, ALARM_STATUS, CLEAR_INTERRUPT = 0x10, 0x14, 0x18, 0x1C

_LOW = 0xFFFF_FFFF
# The guest's time has 64 bits, ns.
_WRAP = 1 << 64


class GoldfishRtc(Rtc):
    """The clock."""

    state_type = RtcState

    def __init__(
        self, name: str, line: Line, loop: Loop, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._clock = clock
        super().__init__(name, line, loop)

    def reset(self) -> None:
        """No alarm, the host's time."""
        self._offset = self._time_high = self._alarm_high = self._alarm = 0
        super().reset()

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
            self._update()
        self._alarm_changed()

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
                self._alarm_changed()
            elif offset == CLEAR_ALARM:
                self._armed = False
            elif offset in (IRQ_ENABLED, CLEAR_INTERRUPT):
                self._interrupt(offset, value)

    def _interrupt(self, offset: int, value: int) -> None:
        if offset == IRQ_ENABLED:
            self._enabled = bool(value & 1)
        else:
            self._pending = False
        self._update()

    def _now(self) -> int:
        return self._clock() + self._offset

    def _left(self) -> float:
        return (self._alarm - self._now()) / 1e9
