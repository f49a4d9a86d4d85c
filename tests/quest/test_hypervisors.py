"""What every back end must do alike. KVM runs them where /dev/kvm runs at all, however slow."""

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from crumble_vmm.hypervisor.base import ExitReason
from framework.quest import BACKENDS, DONE, SOON, Access, Backend, Quest
from framework.quest_guests import MMIO, RiscvGuest

# Between two clocks of a host.
DRIFT = 0.01
VALUE = 0x8877_6655_4433_2211
STATUS, ACKNOWLEDGE, NOTIFY = MMIO + 0x60, MMIO + 0x64, MMIO + 0x50
# x86: the TSC. arm64: the virtual and the physical counter.
CLOCKS = {0x10, 0x6030_0000_0013_DF1A, 0x6030_0000_0013_DF01}

Make = Callable[..., Quest]


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[Quest] = []
    backend: Backend = request.param

    def create(cpus: int = 1) -> Quest:
        made.append(Quest(backend, cpus))
        return made[-1]

    yield create
    for quest in made:
        quest.close()


@pytest.fixture
def quest(make: Make) -> Quest:
    return make()


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_stores_of_all_widths(quest: Quest, size: int) -> None:
    assert quest.run(quest.guest().write(MMIO + 8, size, VALUE).end()) == DONE
    value = VALUE & (1 << 8 * size) - 1
    assert quest.accesses == [Access("write", MMIO + 8, size, value)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_loads_of_all_widths(quest: Quest, size: int) -> None:
    quest.answers[MMIO + 8] = VALUE & (1 << 8 * size) - 1
    assert quest.run(quest.guest().read(MMIO + 8, size, quest.results).end()) == DONE
    assert quest.value() == VALUE & (1 << 8 * size) - 1
    assert quest.accesses == [Access("read", MMIO + 8, size)]


def test_guest_and_host_share_memory(quest: Quest) -> None:
    quest.memory.write(quest.results, VALUE.to_bytes(8, "little"))
    guest = quest.guest().read(quest.results, 8, quest.results + 8).end()
    assert quest.run(guest) == DONE
    assert quest.value(1) == VALUE


def test_memory_that_was_mapped_ahead_is_the_same(quest: Quest) -> None:
    first = quest.results // 0x1000 * 0x1000
    quest.memory.write(quest.results, VALUE.to_bytes(8, "little"))
    quest.load(
        quest.guest().read(quest.results, 8, quest.results + 8).write(first + 0x3000, 8, 1).end()
    )
    quest.cpu.prefault(first, 0x4000)
    assert quest.go_on() == DONE
    assert quest.value(1) == VALUE
    assert quest.memory.read(first + 0x3000, 8) == (1).to_bytes(8, "little")


def test_a_doorbell_rings_without_an_exit(quest: Quest, eventfd: int) -> None:
    quest.vm.add_doorbell(NOTIFY, 4, 1, eventfd)
    guest = quest.guest().write(NOTIFY, 4, 1).write(NOTIFY, 4, 2).write(NOTIFY, 4, 1).end()
    assert quest.run(guest) == DONE
    assert os.eventfd_read(eventfd) == 2
    assert quest.accesses == [Access("write", NOTIFY, 4, 2)]
    quest.vm.remove_doorbell(NOTIFY, 4, 1)
    assert quest.run(quest.guest().write(NOTIFY, 4, 1).end()) == DONE
    with pytest.raises(BlockingIOError):
        os.eventfd_read(eventfd)
    assert quest.accesses[1:] == [Access("write", NOTIFY, 4, 1)]


def test_an_eventfd_interrupts(quest: Quest, eventfd: int) -> None:
    line = quest.backend.line
    interrupt = quest.vm.virtio_interrupt(line, STATUS, ACKNOWLEDGE)
    assert quest.run(quest.guest().enable(line).end()) == DONE
    interrupt.add_call_fd(eventfd)
    guest = quest.guest().write(MMIO, 4, 1).take(line)
    guest.read(STATUS, 4, quest.results).write(ACKNOWLEDGE, 4, 1).end()
    threading.Timer(0.05, lambda: os.eventfd_write(eventfd, 1)).start()
    assert quest.run(guest) == DONE
    assert quest.value() & 1 == 1
    assert quest.accesses == [Access("write", MMIO, 4, 1)]
    interrupt.remove_call_fd(eventfd)


def test_a_configuration_change_interrupts(quest: Quest) -> None:
    line = quest.backend.line
    interrupt = quest.vm.virtio_interrupt(line, STATUS, ACKNOWLEDGE)
    guest = quest.guest().enable(line).take(line).read(STATUS, 4, quest.results)
    guest.write(ACKNOWLEDGE, 4, 2).read(STATUS, 4, quest.results + 8).end()
    threading.Timer(0.05, lambda: interrupt.signal(2)).start()
    assert quest.run(guest) == DONE
    assert (quest.value() & 2, quest.value(1) & 2) == (2, 0)
    assert interrupt.status() & 2 == 0


def test_a_line_interrupts(quest: Quest) -> None:
    line = quest.backend.line
    threading.Timer(0.05, lambda: quest.vm.set_line(line, True)).start()
    assert quest.run(quest.guest().enable(line).take(line).end()) == DONE


def test_cancel_stops_a_guest_that_never_exits(quest: Quest) -> None:
    quest.load(quest.guest().count(quest.results))
    seen = 0
    for _ in range(3):
        asked: list[float] = []

        def cancel(asked: list[float] = asked) -> None:
            asked.append(time.monotonic())
            quest.cpu.cancel()

        threading.Timer(0.02, cancel).start()
        assert quest.cpu.run().reason is ExitReason.CANCELED
        assert time.monotonic() - asked[0] < 1
        assert quest.value() > seen  # it went on where it was
        seen = quest.value()


def test_cancel_before_run(quest: Quest) -> None:
    quest.load(quest.guest().count(quest.results))
    quest.cpu.cancel()
    assert quest.cpu.run().reason is ExitReason.CANCELED


def test_cancel_finishes_the_access_that_is_out(quest: Quest) -> None:
    """A load whose answer has come is not asked for again."""
    quest.answers[MMIO] = 5
    quest.load(quest.guest().read(MMIO, 4, quest.results).write(MMIO + 4, 4, 9).end())
    read = quest.mmio.read
    stops = []

    def cancel_too(address: int, size: int) -> int:
        quest.cpu.cancel()
        return int(read(address, size))

    quest.mmio.read = cancel_too
    while not stops or stops[-1].reason is ExitReason.CANCELED:
        stops.append(quest.go_on())
    assert stops[-1] == DONE and len(stops) == 2
    assert quest.value() == 5
    assert quest.accesses == [Access("read", MMIO, 4), Access("write", MMIO + 4, 4, 9)]


def test_registers_go_into_another_machine(make: Make) -> None:
    first, second = make(), make()
    for quest in (first, second):
        quest.load(quest.guest().count(quest.results))
    threading.Timer(0.02, first.cpu.cancel).start()
    assert first.cpu.run().reason is ExitReason.CANCELED
    state = first.cpu.get_state()
    second.mapping[:] = first.mapping[:]
    before = second.value()
    second.cpu.set_state(state)
    threading.Timer(0.02, second.cpu.cancel).start()
    assert second.cpu.run().reason is ExitReason.CANCELED
    assert second.value() > before
    second.cpu.set_state(state)
    again = second.cpu.get_state()
    differ = {key for key in state if state[key] != again[key]}
    assert differ <= {"lapic", "instret", "msrs", "registers"}  # clocks
    for group in ("msrs", "registers"):
        changed = {pair[0] for pair in state.get(group, ()) if pair not in again[group]}
        assert changed <= CLOCKS


def test_a_cpu_that_was_set_has_its_controllers_interrupt(make: Make) -> None:
    """Whatever its own registers said of it: the two are captured one after the other."""
    quest = make()
    guest = quest.guest()
    if not isinstance(guest, RiscvGuest):
        pytest.skip("only riscv64's controller keeps no state in a CPU")
    line = quest.backend.line
    quest.load(guest.wait().end())
    without = quest.cpu.get_state()
    assert quest.run(quest.guest().enable(line).end()) == DONE
    quest.vm.set_line(line, True)
    controller = quest.vm.get_controller()
    other = make()
    other.load(guest)
    other.vm.set_controller(controller)
    other.cpu.set_state(without)
    assert other.go_on() == DONE


def test_a_controller_goes_into_another_machine(make: Make) -> None:
    first, second = make(), make()
    line = first.backend.line
    assert first.run(first.guest().enable(line).end()) == DONE
    state = first.vm.get_controller()
    for wrong in (state[:-1], state + b"\0", b"\xff" * len(state)):
        with pytest.raises(ValueError):
            second.vm.set_controller(wrong)
    second.vm.set_controller(state)
    second.cpu.set_state(first.cpu.get_state())
    threading.Timer(0.05, lambda: second.vm.set_line(line, True)).start()
    assert second.run(second.guest().take(line).end()) == DONE


def test_states_that_cannot_be(quest: Quest) -> None:
    with pytest.raises(ValueError):
        quest.cpu.set_state({})


def test_the_clock_goes_on_from_where_it_is_set(quest: Quest) -> None:
    quest.vm.set_time(1 << 40)
    first = quest.vm.time
    end = time.monotonic() + SOON
    while quest.vm.time <= first and time.monotonic() < end:
        pass
    assert 1 << 40 <= first < quest.vm.time < (1 << 40) + (1 << 38)


def test_a_second_cpu_starts(make: Make) -> None:
    quest = make(2)
    flag = quest.backend.ram + 0x5000
    other = threading.Thread(target=quest.cpus[1].run)
    other.start()
    try:
        assert quest.run(quest.guest().start_second(flag).poll(flag, 0xFF, 1).end()) == DONE
    finally:
        quest.cpus[1].cancel()
        other.join(SOON)
    assert not other.is_alive()


def test_a_cpu_interrupts_another(make: Make) -> None:
    quest = make(2)
    if getattr(quest.vm, "gic_version", 3) != 3:
        pytest.skip("the tiny guests know a GICv3 only")
    flag = quest.backend.ram + 0x5000
    other = threading.Thread(target=quest.cpus[1].run)
    other.start()
    try:
        guest = quest.guest().start_second(flag).poll(flag, 0xFF, 1)
        assert quest.run(guest.interrupt_second().poll(flag, 0xFF, 2).end()) == DONE
    finally:
        quest.cpus[1].cancel()
        other.join(SOON)
    assert not other.is_alive()


@pytest.mark.parametrize("ns", [1_000_000, 50_000_000])
def test_a_timer_is_never_early(quest: Quest, ns: int) -> None:
    """By the guest's clock, which is no faster than the host's: a host that is busy changes neither."""
    frequency = quest.frequency
    guest = quest.guest().clock(quest.results).sleep(ns, frequency).clock(quest.results + 8)
    quest.load(guest.end())
    start = time.monotonic_ns()
    assert quest.go_on() == DONE
    outside = time.monotonic_ns() - start
    inside = (quest.value(1) - quest.value()) * 10**9 // frequency
    assert ns * (1 - DRIFT) <= inside <= outside * (1 + DRIFT)


def test_pages_that_are_written_are_told_once(quest: Quest) -> None:
    first, last = quest.results, quest.results + 0x6000
    quest.log_dirty()
    # The second store is on two pages.
    guest = quest.guest().write(first, 8, VALUE).write(first + 0x2FFC, 8, VALUE).write(last, 1, 1)
    quest.load(guest.end())
    quest.written()  # by us
    assert quest.go_on() == DONE
    expected = {first + 0x1000 * page for page in (0, 2, 3, 6)}
    assert {page for page in quest.written() if page >= first} == expected
    assert {page for page in quest.written() if page >= first} == set()
    quest.load(quest.guest().read(first, 8, last + 8).end())  # a page that is read is not written
    assert quest.go_on() == DONE
    assert {page for page in quest.written() if page >= first} == {last}


def test_a_guest_that_cannot_go_on(quest: Quest) -> None:
    stop = quest.run(quest.guest().crash())
    # arm64's is an access that KVM cannot emulate.
    assert stop.reason in (ExitReason.CRASH, ExitReason.TRIPLE_FAULT, ExitReason.EMULATION)
    assert stop.detail


def test_counters_count(quest: Quest) -> None:
    before = sum(quest.vm.counters().values())
    assert quest.run(quest.guest().write(MMIO, 4, 1).end()) == DONE
    assert sum(quest.vm.counters().values()) > before
