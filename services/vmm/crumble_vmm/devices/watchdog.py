"""A watchdog: ends the VM when its guest has not fed it for as long as it asked for.

The registers are those of Allwinner's A31 (User Manual V1.1, §4.8; Linux, drivers/watchdog/sunxi_wdt.c), whose
driver Debian's riscv64 and arm64 kernels have, and one of ours, COUNT, for ACPI's table, whose times are linear.
It counts the time in which the guest can run: none while it is paused, or held for a capture.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from crumble_vmm.chipset.builder import RegisterDevice
from crumble_vmm.devices.rtc import Loop, Timer
from crumble_vmm.hypervisor.base import Exit, ExitReason
from crumble_vmm.snapshot.state import WatchdogState, in_range

SIZE = 0x1000
CONTROL, CONFIG, MODE, COUNT = 0x10, 0x14, 0x18, 0x20
# CONTROL: starts the interval again. CONFIG: what the end of it does. MODE: on, and the interval.
RELOAD = 0xA57 << 1 | 1
RESETS, _CONFIG_MASK = 1, 3
ENABLE, _INTERVAL_SHIFT, _INTERVAL_MASK = 1, 4, 0xF
_MODE_MASK = ENABLE | _INTERVAL_MASK << _INTERVAL_SHIFT
# Seconds; codes beyond these are reserved, and taken as the longest.
_INTERVALS = (0.5, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16)
MAX_COUNT = 0xFFFF


class Watchdog(RegisterDevice):
    """The one of a machine. on_fire: told once, in the loop's thread, that the time is over.

    The timer belongs to the loop's thread; being fed costs none of it: it looks when it is due.
    """

    name = "watchdog"
    state_type = WatchdogState

    def __init__(self, loop: Loop, clock: Callable[[], float] = time.monotonic) -> None:
        self.on_fire: Callable[[Exit], None] = lambda _exit: None
        self._loop, self._clock = loop, clock
        self._lock = threading.Lock()
        self._timer: Timer | None = None
        self._asked = False  # the loop's thread will look
        self._paused = True  # until it starts
        self.reset()

    def reset(self) -> None:
        """Off."""
        with self._lock:
            self._config, self._mode, self._count = RESETS, 0, 0
            self._left = self._deadline = 0.0

    def start(self) -> None:
        """From now on it counts."""
        self.resume()

    def stop(self) -> None:
        """Gives the timer back."""
        if self._timer is not None:
            self._timer.cancel()

    def pause(self) -> None:
        """What is left stays as it is."""
        with self._lock:
            if not self._paused:
                self._left, self._paused = self._deadline - self._clock(), True

    def resume(self) -> None:
        """Counts on."""
        with self._lock:
            if self._paused:
                self._deadline, self._paused = self._clock() + self._left, False
                self._ask()

    def get_state(self) -> WatchdogState:
        """Registers, and what is left, in ms."""
        with self._lock:
            left = self._left if self._paused else self._deadline - self._clock()
            left = min(max(left, 0.0), self._interval) if self._on else 0.0
            return WatchdogState(self._config, self._mode, self._count, int(left * 1000))

    def set_state(self, state: WatchdogState) -> None:
        """ValueError for what it cannot be."""
        with self._lock:
            self._config = in_range("config", state.config, 2)
            self._mode = in_range("mode", state.mode, 8)
            self._count = in_range("count", state.count, 16)
            self._left = in_range("left", state.left, 32) / 1000
            if self._mode & ~_MODE_MASK or self._left > self._interval:
                raise ValueError("a watchdog that cannot be")

    def mmio_read(self, offset: int, size: int, /) -> int:
        """Registers are 32 bits wide; others read as zero."""
        if size != 4:
            return 0
        with self._lock:
            return {CONFIG: self._config, MODE: self._mode, COUNT: self._count}.get(offset, 0)

    def mmio_write(self, offset: int, size: int, value: int, /) -> None:
        """As mmio_read."""
        if size != 4:
            return
        with self._lock:
            was_on = self._on
            if offset == CONTROL:
                if value == RELOAD:
                    self._reload()
                return
            if offset == CONFIG:
                self._config = value & _CONFIG_MASK
            elif offset == MODE:
                self._mode = value & _MODE_MASK
            elif offset == COUNT:
                self._count = value & MAX_COUNT
            if self._on and (not was_on or offset == COUNT):
                self._reload()
                self._ask()

    @property
    def _on(self) -> bool:
        return bool(self._mode & ENABLE) and self._config == RESETS

    @property
    def _interval(self) -> float:
        """Seconds; ours counts when it was set."""
        if self._count:
            return self._count
        code = self._mode >> _INTERVAL_SHIFT & _INTERVAL_MASK
        return _INTERVALS[min(code, len(_INTERVALS) - 1)]

    def _reload(self) -> None:
        self._left = self._interval
        self._deadline = self._clock() + self._left

    def _ask(self) -> None:
        """Has the loop's thread look; under the lock. Any thread, as often as it likes."""
        if not self._asked:
            self._asked = True
            self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        """Fires when it is time, or looks again then. In the loop's thread."""
        self.stop()
        self._timer = None
        with self._lock:
            self._asked = False
            if self._paused or not self._on:
                return
            interval, left = self._interval, self._deadline - self._clock()
            if left > 0:
                self._timer = self._loop.call_later(left, self._look)
                return
            self._mode &= ~ENABLE
        self.on_fire(Exit(ExitReason.WATCHDOG, f"nobody fed it for {interval:g} s"))
