"""The PL031, with a clock of the test's own."""

from collections.abc import Callable

import pytest

from crumble_vmm.chipset.lines import Line, Trigger
from crumble_vmm.devices import pl031
from crumble_vmm.devices.pl031 import Pl031
from crumble_vmm.snapshot.state import Pl031State

NOW = 1_700_000_000


class Bench:
    """Also the loop: calls at once what is to be called soon, keeps what is to be called later."""

    def __init__(self) -> None:
        self.now, self.level = float(NOW), False
        self.later: list[tuple[float, Callable[[], None]]] = []
        line = Line("rtc", 2, Trigger.LEVEL, self.drive)
        self.rtc = Pl031("rtc", line, self, lambda: self.now)

    def drive(self, _number: int, level: bool) -> None:
        self.level = level

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        callback()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> "Bench":
        self.later.append((seconds, callback))
        return self

    def cancel(self) -> None:
        self.later.clear()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        due, self.later = self.later, []
        for _, callback in due:
            callback()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_it_is_the_hosts_time_until_it_is_set(bench: Bench) -> None:
    assert bench.rtc.mmio_read(pl031.DR, 4) == NOW
    bench.rtc.mmio_write(pl031.LR, 4, 1000)
    bench.now += 5.5
    assert bench.rtc.mmio_read(pl031.DR, 4) == 1005
    found = [bench.rtc.mmio_read(at, 4) for at in range(0xFE0, 0xFF0, 4)]
    assert found == [0x31, 0x10, 0x04, 0x00]


def test_the_alarm(bench: Bench) -> None:
    bench.rtc.mmio_write(pl031.IMSC, 4, 1)
    bench.rtc.mmio_write(pl031.MR, 4, NOW + 10)
    assert bench.later[0][0] == 10
    bench.pass_time(9)
    assert not bench.level and bench.later[0][0] == 1
    bench.pass_time(1)
    assert bench.level and bench.rtc.mmio_read(pl031.MIS, 4) == 1
    bench.rtc.mmio_write(pl031.ICR, 4, 1)
    assert not bench.level and not bench.later


def test_its_state_goes_into_another(bench: Bench) -> None:
    bench.rtc.mmio_write(pl031.LR, 4, 100)
    bench.rtc.mmio_write(pl031.MR, 4, 107)
    other = Bench()
    other.rtc.set_state(bench.rtc.get_state())
    assert other.rtc.mmio_read(pl031.DR, 4) == 100 and other.later[0][0] == 7
    with pytest.raises(ValueError):
        other.rtc.set_state(Pl031State(1 << 32, 0, False, False, False))
