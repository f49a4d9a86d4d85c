"""The watchdog, as Linux' sunxi_wdt and wdat_wdt drive it, in a time that only the test moves."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_common.errors import GuestError
from crumble_common.vm_faults import fault_of
from crumble_vmm.boot.wdat import wdat
from crumble_vmm.console_log import ConsoleLog
from crumble_vmm.devices import watchdog as w
from crumble_vmm.devices.watchdog import Watchdog
from crumble_vmm.endings import ending
from crumble_vmm.hypervisor.base import Exit
from crumble_vmm.snapshot.state import WatchdogState

BASE = 0xD00F_0000


class Timer:
    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due, self.call, self.canceled = due, call, False

    def cancel(self) -> None:
        self.canceled = True


class Bench:
    """A watchdog, its loop and its clock. fired: what it said, and when."""

    def __init__(self, start: bool = True) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []
        self.soon: list[Callable[[], None]] = []
        self.fired: list[tuple[float, Exit]] = []
        self.dog = Watchdog(self, lambda: self.now)
        self.dog.on_fire = lambda stop: self.fired.append((self.now, stop))
        if start:
            self.dog.start()

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + seconds, callback))
        return self.timers[-1]

    def run_soon(self) -> None:
        while self.soon:
            self.soon.pop(0)()

    def wait(self, seconds: float) -> None:
        """Time passes; timers that fall due are called."""
        end = self.now + seconds
        while True:
            self.run_soon()
            due = [timer for timer in self.timers if not timer.canceled and timer.due <= end]
            if not due:
                break
            first = min(due, key=lambda timer: timer.due)
            self.timers.remove(first)
            self.now = max(self.now, first.due)
            first.call()
        self.now = end

    def write(self, offset: int, value: int) -> None:
        self.dog.mmio_write(offset, 4, value)

    def read(self, offset: int) -> int:
        return self.dog.mmio_read(offset, 4)

    def linux_starts(self, code: int) -> None:
        """sunxi_wdt_start."""
        self.write(w.MODE, self.read(w.MODE) & ~0xF0 | code << 4)
        self.write(w.CONTROL, w.RELOAD)
        self.write(w.CONFIG, self.read(w.CONFIG) & ~3 | 1)
        self.write(w.MODE, self.read(w.MODE) | 1)


@pytest.mark.parametrize(("code", "seconds"), [(0, 0.5), (1, 1), (6, 6), (0xB, 16), (0xF, 16)])
def test_fires_once_when_nobody_feeds_it(code: int, seconds: float) -> None:
    bench = Bench()
    bench.linux_starts(code)
    bench.wait(100)
    ((when, stop),) = bench.fired
    assert when == pytest.approx(1000 + seconds)
    event = ending("vm1", stop, ConsoleLog(bench, lambda _: None))
    fault = fault_of(event)
    assert isinstance(fault, GuestError) and fault.code == "guest.watchdog"
    assert event.detail == f"The guest's watchdog ended it: nobody fed it for {seconds:g} s."


def test_being_fed_or_stopped_keeps_it_quiet() -> None:
    bench = Bench()
    bench.linux_starts(4)
    for _ in range(20):
        bench.wait(3)
        bench.write(w.CONTROL, w.RELOAD)
        assert len(bench.timers) <= 1 and not bench.soon
    bench.write(w.CONTROL, 1)  # without the key it is no food
    bench.write(w.MODE, 0)
    bench.wait(100)
    assert bench.fired == []
    bench.linux_starts(4)
    bench.write(w.CONFIG, 2)  # an interrupt only, which it has not
    bench.wait(100)
    assert bench.fired == []


def test_a_shorter_interval_holds_at_once() -> None:
    bench = Bench()
    bench.linux_starts(0xB)
    bench.write(w.COUNT, 2)
    bench.wait(3)
    assert [when for when, _ in bench.fired] == [1002]


def test_time_in_which_the_guest_stands_does_not_count() -> None:
    bench = Bench()
    bench.linux_starts(4)
    bench.wait(3)
    bench.dog.pause()
    bench.dog.pause()
    bench.wait(1000)
    assert bench.dog.get_state().left == 1000
    bench.dog.resume()
    bench.dog.resume()
    bench.wait(0.9)
    assert bench.fired == []
    bench.wait(0.2)
    assert len(bench.fired) == 1


@pytest.mark.parametrize("paused", [False, True])
def test_a_restored_one_counts_on(paused: bool) -> None:
    first = Bench()
    first.linux_starts(4)
    first.wait(3)
    if paused:
        first.dog.pause()
        first.wait(50)
    bench = Bench(start=False)
    bench.dog.set_state(first.dog.get_state())
    bench.wait(50)
    bench.dog.start()
    bench.wait(0.9)
    assert bench.fired == []
    bench.wait(0.2)
    assert len(bench.fired) == 1


@given(*[st.integers(-1, 1 << 33)] * 4)
def test_a_state_is_taken_as_it_was_or_refused(
    config: int, mode: int, count: int, left: int
) -> None:
    bench = Bench(start=False)
    state = WatchdogState(config, mode, count, left)
    try:
        bench.dog.set_state(state)
    except ValueError:
        return
    again = bench.dog.get_state()
    assert (again.config, again.mode, again.count) == (config, mode, count)


@given(
    st.lists(
        st.tuples(st.integers(0, 0x30), st.sampled_from([1, 2, 4, 8]), st.integers(0, 1 << 64))
    )
)
def test_any_accesses_leave_a_state_that_can_be_restored(
    accesses: list[tuple[int, int, int]],
) -> None:
    """... and at most one call and one timer wait in the loop."""
    bench = Bench()
    for offset, size, value in accesses:
        bench.dog.mmio_write(offset, size, value)
        assert bench.dog.mmio_read(offset, size) < 1 << 32
        assert len(bench.soon) <= 1
    bench.run_soon()
    assert sum(not timer.canceled for timer in bench.timers) <= 1
    Bench(start=False).dog.set_state(bench.dog.get_state())


class WdatDriver:
    """Runs the table's instructions as Linux' drivers/watchdog/wdat_wdt.c does."""

    def __init__(self, bench: Bench) -> None:
        body = wdat(BASE)
        size, *pci, self.period, most, least, flags, count = struct.unpack_from(
            "<IHBBB3xIIIB3xI", body
        )
        assert (size, pci, flags) == (32, [0xFF] * 4, 1) and least <= most
        entries = struct.iter_unpack("<BBxxBBBBQII", body[size:])
        self.entries = {action: rest for action, *rest in entries}
        assert len(self.entries) == count
        self.bench = bench

    def run(self, action: int, parameter: int = 0) -> int:
        instruction, space, width, shift, access, address, value, mask = self.entries[action]
        assert (space, width, access) == (0, 32, 3)
        at = address - BASE
        kind = instruction & ~0x80
        if kind < 2:
            found = self.bench.read(at) >> shift & mask
            return found if kind else int(found == value)
        new = (parameter if kind == 3 else value) & mask
        if instruction & 0x80:
            new |= self.bench.read(at) & ~mask
        self.bench.write(at, new << shift)
        return 0


def test_acpis_table_drives_it() -> None:
    bench = Bench()
    driver = WdatDriver(bench)
    driver.run(6, 30_000 // driver.period)
    assert driver.run(5) == 30 and not driver.run(8) and driver.run(10)
    driver.run(9)
    assert driver.run(8) and not driver.run(10)
    bench.wait(29)
    driver.run(1)
    bench.wait(29)
    assert bench.fired == []
    driver.run(11)
    bench.wait(100)
    assert bench.fired == []
    driver.run(9)
    bench.wait(31)
    assert len(bench.fired) == 1
