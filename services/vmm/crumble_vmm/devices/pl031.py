"""A PL031 real-time clock: the guest's wall clock on arm64 (ARM DDI 0224, chapter 3).

Time is whole seconds since 1970, UTC. The guest may load another one; ours is an offset to the host's
clock. The alarm is a match register.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from crumble_vmm.chipset.lines import Line
from crumble_vmm.devices.primecell import ID_BASE, identification
from crumble_vmm.devices.rtc import Loop, Rtc
from crumble_vmm.snapshot.state import Pl031State, in_range

SIZE = 0x1000
DR, MR, LR, CR, IMSC, RIS, MIS, ICR = range(0x00, 0x20, 4)
_PART = 0x0004_1031
_LOW = 0xFFFF_FFFF


class Pl031(Rtc):
    """The clock."""

    state_type = Pl031State

    def __init__(
        self, name: str, line: Line, loop: Loop, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        super().__init__(name, line, loop)

    def reset(self) -> None:
        """No alarm, the host's time."""
        self._offset = self._match = 0
        super().reset()

    def get_state(self) -> Pl031State:
        """Registers, and what the guest thinks of the host's time."""
        with self._lock:
            return Pl031State(
                self._offset & _LOW, self._match, self._armed, self._enabled, self._pending
            )

    def set_state(self, state: Pl031State) -> None:
        """Also drives the line, and sets the alarm's timer."""
        with self._lock:
            self._offset = in_range("offset", state.offset, 32)
            self._match = in_range("match", state.match, 32)
            self._armed, self._enabled, self._pending = state.armed, state.enabled, state.pending
            self._update()
        self._alarm_changed()

    def mmio_read(self, offset: int, _size: int, /) -> int:
        """A register."""
        with self._lock:
            if offset >= ID_BASE:
                return identification(_PART, offset)
            return {
                DR: self._now() & _LOW, LR: self._now() & _LOW, MR: self._match, CR: 1,
                IMSC: int(self._enabled), RIS: int(self._pending),
                MIS: int(self._enabled and self._pending),
            }.get(offset, 0)  # fmt: skip

    def mmio_write(self, offset: int, _size: int, value: int, /) -> None:
        """A register; LR sets the time, MR the alarm."""
        with self._lock:
            if offset == LR:
                self._offset += value - self._now()
            elif offset == MR:
                self._match, self._armed = value & _LOW, True
            elif offset == IMSC:
                self._enabled = bool(value & 1)
            elif offset == ICR:
                self._pending = self._pending and not value & 1
            self._update()
        if offset in (LR, MR):
            self._alarm_changed()

    def _now(self) -> int:
        return int(self._clock()) + self._offset

    def _left(self) -> float:
        left = (self._match - self._now()) & _LOW
        return (
            left - self._clock() % 1 if left else 0
        )  # within the second: the clock counts whole ones
