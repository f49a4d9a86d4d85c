"""The RTC, with a clock that stands still."""

from collections.abc import Callable

from crumble_vmm.chipset.lines import Line, Trigger
from crumble_vmm.devices import goldfish_rtc as r
from crumble_vmm.devices.goldfish_rtc import GoldfishRtc


class FakeTimer:
    def __init__(self) -> None:
        self.canceled = False

    def cancel(self) -> None:
        self.canceled = True


class Bench:
    """The RTC and its loop in one."""

    def __init__(self) -> None:
        self.level = False
        self.now = 0x1234_5678_9ABC_DEF0
        self.timers: list[tuple[float, Callable[[], None], FakeTimer]] = []
        self.soon: list[Callable[[], None]] = []
        line = Line("rtc", 11, Trigger.LEVEL, self.set_line)
        self.rtc = GoldfishRtc("rtc", line, self, lambda: self.now)

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def set_line(self, number: int, level: bool) -> None:
        self.level = level

    def call_later(self, seconds: float, call: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer()
        self.timers.append((seconds, call, timer))
        return timer

    def read(self, offset: int) -> int:
        return self.rtc.mmio_read(offset, 4)

    def write(self, offset: int, value: int) -> None:
        self.rtc.mmio_write(offset, 4, value)
        while self.soon:
            self.soon.pop()()

    def set_alarm(self, when: int) -> None:
        self.write(r.ALARM_HIGH, when >> 32)
        self.write(r.ALARM_LOW, when & 0xFFFF_FFFF)


def test_low_latches_high() -> None:
    bench = Bench()
    low = bench.read(r.TIME_LOW)
    bench.now += 1 << 40
    assert bench.read(r.TIME_HIGH) << 32 | low == 0x1234_5678_9ABC_DEF0


def test_the_guest_sets_its_own_time() -> None:
    bench = Bench()
    bench.write(r.TIME_HIGH, 1)
    bench.write(r.TIME_LOW, 5)
    bench.now += 7
    assert bench.read(r.TIME_LOW) == 12
    assert bench.read(r.TIME_HIGH) == 1


def test_alarm_fires_when_due() -> None:
    bench = Bench()
    bench.write(r.IRQ_ENABLED, 1)
    bench.set_alarm(bench.now + 2_500_000_000)
    ((seconds, fire, _),) = bench.timers
    assert seconds == 2.5
    assert bench.read(r.ALARM_STATUS) == 1
    bench.now += 2_500_000_000
    fire()
    assert bench.level
    assert bench.read(r.ALARM_STATUS) == 0
    bench.write(r.CLEAR_INTERRUPT, 1)
    assert not bench.level


def test_alarm_in_the_past_fires_at_once_and_far_ones_in_steps() -> None:
    bench = Bench()
    bench.write(r.IRQ_ENABLED, 1)
    bench.set_alarm(bench.now - 1)
    assert bench.level
    bench.write(r.CLEAR_INTERRUPT, 1)
    bench.set_alarm(bench.now + 4000 * 10**9)
    seconds, fire, _ = bench.timers.pop()
    assert seconds == 3600
    bench.now += 3600 * 10**9
    fire()
    assert not bench.level
    assert bench.timers[-1][0] == 400


def test_an_alarm_that_was_cleared_or_reset_does_not_fire() -> None:
    for end in ("clear", "reset"):
        bench = Bench()
        bench.write(r.IRQ_ENABLED, 1)
        bench.set_alarm(bench.now + 10**9)
        if end == "clear":
            bench.write(r.CLEAR_ALARM, 1)
        else:
            bench.rtc.reset()
        bench.now += 2 * 10**9
        bench.timers[-1][1]()
        assert not bench.level
        assert bench.read(r.ALARM_STATUS) == 0


def test_stop_and_another_alarm_cancel_the_timer() -> None:
    bench = Bench()
    bench.set_alarm(bench.now + 10**9)
    bench.set_alarm(bench.now + 2 * 10**9)
    assert bench.timers[0][2].canceled
    bench.rtc.stop()
    assert bench.timers[1][2].canceled
    assert bench.read(0x100) == 0
