"""The virtio-pci transport behind its bridge, by configuration space and BAR, with the entropy device in it."""

import mmap
import struct
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_common.eventloop import EventLoop
from crumble_native.memory import Memory
from crumble_vmm.devices.pci.host import PciHost, Window
from crumble_vmm.devices.pci.msix import NO_VECTOR
from crumble_vmm.devices.virtio import pci, transport
from crumble_vmm.devices.virtio.device import F_VERSION_1
from crumble_vmm.devices.virtio.rng import Rng
from crumble_vmm.hypervisor.address_space import Kind, Region
from crumble_vmm.hypervisor.base import MessageInterrupt
from crumble_vmm.snapshot.state import PciState
from framework.virtio_mmio_driver import RAM, RAM_SIZE, Doorbells, Interrupt
from framework.virtqueue_driver import Arena, VirtqueueDriver

WINDOW = Region("window", 0x4000_0000, 0x100_0000, Kind.MMIO)
DEVICE = 1 << 15
COMMAND, BAR0, CAPABILITIES, MEMORY = 0x04, 0x10, 0x34, 2
MESSAGE = (0xFEE0_0000, 0x41)


class Message(MessageInterrupt):
    def __init__(self) -> None:
        self.routed, self.sent, self.fds = (0, 0), 0, set[int]()

    def route(self, address: int, data: int) -> None:
        self.routed = address, data

    def send(self) -> None:
        self.sent += 1

    def add_call_fd(self, fd: int) -> None:
        self.fds.add(fd)

    def remove_call_fd(self, fd: int) -> None:
        self.fds.remove(fd)


class Bells(Doorbells):
    def add_doorbell(self, address: int, size: int, value: int, fd: int) -> None:
        assert size == 2
        self.fds[address, value] = fd

    def remove_doorbell(self, address: int, size: int, value: int) -> None:
        assert size == 2
        del self.fds[address, value]


class PciDriver:
    """Configuration space of device 1, and its BAR where it is."""

    def __init__(self, *, messages: bool = True, state: PciState | None = None) -> None:
        self.loop, self.line, self.bells = EventLoop(), Interrupt(), Bells()
        self.messages = [Message(), Message()] if messages else []
        self.memory = Memory()
        self.memory.add(RAM, mmap.mmap(-1, RAM_SIZE))
        self.device = Rng("rng", self.loop)
        self.transport = pci.PciTransport(self.device, self.memory, self.line, self.messages)
        self.host = PciHost(WINDOW)
        assert self.host.add(self.transport.function) == 1
        self.window = Window(self.host)
        self.transport.connect_doorbells(cast(Any, self.bells))
        if state is not None:
            self.transport.set_state(state)
        self.transport.start()

    def config(self, offset: int, size: int, value: int | None = None) -> int:
        if value is None:
            return self.host.mmio_read(DEVICE + offset, size)
        self.host.mmio_write(DEVICE + offset, size, value)
        return value

    def capabilities(self) -> list[tuple[int, int, int]]:
        """Number, virtio's type, offset."""
        at, found = self.config(CAPABILITIES, 1), []
        while at:
            found.append((self.config(at, 1), self.config(at + 3, 1), at))
            at = self.config(at + 1, 1)
        return found

    def enable(self, base: int = WINDOW.base) -> None:
        self.config(BAR0, 4, base)
        self.config(COMMAND, 2, MEMORY)
        self.base = base

    def read(self, offset: int, size: int) -> int:
        return self.window.mmio_read(self.base - WINDOW.base + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.window.mmio_write(self.base - WINDOW.base + offset, size, value)

    def use_msix(self) -> int:
        """Both vectors open; gives where the control is."""
        (at,) = [at for number, _, at in self.capabilities() if number == 0x11]
        for vector in range(2):
            entry = pci.TABLE + 16 * vector
            self.write(entry, 8, MESSAGE[0])
            self.write(entry + 8, 4, MESSAGE[1] + vector)
            self.write(entry + 12, 4, 0)
        self.config(at + 2, 2, 0x8000)
        self.write(pci.CONFIG_VECTOR, 2, 0)
        self.write(pci.QUEUE_VECTOR, 2, 1)
        assert (self.read(pci.CONFIG_VECTOR, 2), self.read(pci.QUEUE_VECTOR, 2)) == (0, 1)
        return at + 2

    def go(self) -> VirtqueueDriver:
        """Negotiates; queue 0 is live."""
        known = transport.ACKNOWLEDGE | transport.DRIVER
        self.write(pci.STATUS, 1, known)
        for sel, bits in ((0, 0), (1, F_VERSION_1 >> 32)):
            self.write(pci.DEVICE_FEATURE_SELECT, 4, sel)
            assert self.read(pci.DEVICE_FEATURE, 4) & bits == bits
            self.write(pci.DRIVER_FEATURE_SELECT, 4, sel)
            self.write(pci.DRIVER_FEATURE, 4, bits)
            assert self.read(pci.DRIVER_FEATURE, 4) == bits
        self.write(pci.STATUS, 1, known | transport.FEATURES_OK)
        assert self.read(pci.STATUS, 1) & transport.FEATURES_OK
        size = self.read(pci.QUEUE_SIZE, 2)
        arena = Arena(RAM + (1 << 20), RAM_SIZE - (1 << 20))
        queue = VirtqueueDriver(self.memory, size=size, at=RAM, arena=arena)
        self.write(pci.QUEUE_DESC, 4, queue.desc)
        self.write(pci.QUEUE_DRIVER, 8, queue.avail)
        self.write(pci.QUEUE_DEVICE, 4, queue.used)
        self.write(pci.QUEUE_DEVICE + 4, 4, queue.used >> 32)
        assert self.read(pci.QUEUE_DRIVER, 8) == queue.avail
        self.write(pci.QUEUE_ENABLE, 2, 1)
        self.write(pci.STATUS, 1, known | transport.FEATURES_OK | transport.DRIVER_OK)
        self.settle()
        return queue

    def ask(self, queue: VirtqueueDriver) -> int:
        """Entropy; gives how much came."""
        queue.submit([], [16])
        self.write(pci.NOTIFY, 2, 0)
        self.settle()
        return sum(written for _, written, _ in queue.collect())

    def settle(self) -> None:
        for _ in range(8):
            self.loop.step(0)

    def close(self) -> None:
        self.transport.stop()
        self.loop.close()


@pytest.fixture
def driver() -> Iterator[PciDriver]:
    made = PciDriver()
    yield made
    made.close()


def test_a_bus_is_enumerated(driver: PciDriver) -> None:
    assert driver.host.mmio_read(0, 4) == 0x0008_1B36
    assert driver.config(0, 4) == 0x1044_1AF4
    for absent in (2 << 15, 1 << 15 | 1 << 12, 31 << 15):
        assert driver.host.mmio_read(absent, 4) == 0xFFFF_FFFF
        driver.host.mmio_write(absent, 4, 0)
    assert driver.config(0, 4, 0) == 0 and driver.config(0, 4) == 0x1044_1AF4
    assert [(number, kind) for number, kind, _ in driver.capabilities() if number == 9] == [
        (9, kind) for kind in (1, 2, 3, 4, 5)
    ]
    assert driver.capabilities()[-1][0] == 0x11


def test_a_bar_says_its_size_and_goes_where_it_is_put(driver: PciDriver) -> None:
    assert driver.config(BAR0, 4) == WINDOW.base and driver.bells.fds == {}
    driver.config(BAR0, 4, 0xFFFF_FFFF)
    assert driver.config(BAR0, 4) == 0x1_0000_0000 - pci.BAR_SIZE
    driver.config(BAR0 + 4, 4, 0xFFFF_FFFF)
    assert driver.config(BAR0 + 4, 4) == 0
    for base in (WINDOW.base + 0x10_0000, WINDOW.base):
        driver.enable(base)
        assert driver.read(pci.NUM_QUEUES, 2) == 1
        assert list(driver.bells.fds) == [(base + pci.NOTIFY, 0)]
    assert driver.window.mmio_read(0x10_0000 + pci.NUM_QUEUES, 2) == 0xFFFF
    driver.config(COMMAND, 2, 0)
    assert driver.read(pci.NUM_QUEUES, 2) == 0xFFFF and driver.bells.fds == {}


def test_entropy_comes_with_a_message(driver: PciDriver) -> None:
    driver.enable()
    driver.use_msix()
    queue = driver.go()
    assert driver.ask(queue) == 16
    assert [message.sent for message in driver.messages] == [0, 1]
    assert driver.messages[1].routed == (MESSAGE[0], MESSAGE[1] + 1)
    assert driver.line.raised == 0
    driver.transport.config_changed()
    assert [message.sent for message in driver.messages] == [1, 1]


def test_a_masked_message_waits(driver: PciDriver) -> None:
    driver.enable()
    control = driver.use_msix()
    queue = driver.go()
    driver.write(pci.TABLE + 16 + 12, 4, 1)
    assert driver.messages[1].routed == (0, 0)
    assert driver.ask(queue) == 16
    assert (driver.messages[1].sent, driver.read(pci.PENDING, 8)) == (0, 2)
    driver.config(control, 2, 0xC000)  # all masked
    driver.write(pci.TABLE + 16 + 12, 4, 0)
    assert driver.messages[1].sent == 0
    driver.config(control, 2, 0x8000)
    assert (driver.messages[1].sent, driver.read(pci.PENDING, 8)) == (1, 0)


@pytest.mark.parametrize("messages", [False, True])
def test_without_messages_there_is_a_line(messages: bool) -> None:
    driver = PciDriver(messages=messages)
    driver.enable()
    driver.write(pci.QUEUE_VECTOR, 2, 7)
    assert driver.read(pci.QUEUE_VECTOR, 2) == NO_VECTOR
    assert driver.ask(driver.go()) == 16
    assert driver.line.bits == 1
    assert [driver.read(pci.ISR, 1) for _ in range(2)] == [1, 0]
    driver.close()


def test_eventfds_follow_what_the_driver_chooses(driver: PciDriver) -> None:
    interrupt = driver.transport._interrupt
    interrupt.add_call_fd(99, 0)
    assert driver.line.call_fds == {99}
    driver.enable()
    control = driver.use_msix()
    assert (driver.line.call_fds, driver.messages[1].fds) == (set(), {99})
    driver.config(control, 2, 0)
    assert (driver.line.call_fds, driver.messages[1].fds) == ({99}, set())
    interrupt.remove_call_fd(99)
    assert driver.line.call_fds == set()


def test_the_bar_through_configuration_space(driver: PciDriver) -> None:
    """§4.1.4.9, also while no BAR is decoded."""
    (at,) = [at for number, kind, at in driver.capabilities() if (number, kind) == (9, 5)]
    driver.config(at + 8, 4, pci.STATUS)
    driver.config(at + 12, 4, 1)
    driver.config(at + 16, 1, transport.ACKNOWLEDGE)
    assert driver.config(at + 16, 4) & 0xFF == transport.ACKNOWLEDGE
    driver.config(at + 8, 4, pci.NUM_QUEUES)
    driver.config(at + 12, 4, 2)
    assert driver.config(at + 16, 2) == 1
    driver.config(at + 12, 4, 3)  # no such width
    driver.config(at + 8, 4, 0xFFFF_FFFC)
    driver.config(at + 16, 4, 0)


def test_a_successor_goes_on(driver: PciDriver) -> None:
    driver.enable(WINDOW.base + 0x10_0000)
    driver.use_msix()
    driver.go()
    driver.write(pci.TABLE + 12, 4, 1)
    state = driver.transport.get_state()
    other = PciDriver(state=state)
    other.base = driver.base
    assert other.transport.get_state() == state
    assert other.messages[1].routed == (MESSAGE[0], MESSAGE[1] + 1)
    assert (other.messages[0].sent, other.messages[1].sent > 0) == (0, True)
    assert list(other.bells.fds) == [(driver.base + pci.NOTIFY, 0)]
    other.close()


@pytest.mark.parametrize(
    "change",
    [
        {"config": b""},
        {"config": struct.pack("<I", 1).ljust(4096, b"\0")},
        {"msix": b"x"},
        {"vectors": []},
        {"vectors": [0, 1 << 16]},
    ],
)
def test_states_that_cannot_be(driver: PciDriver, change: dict[str, Any]) -> None:
    state = PciState(**{**vars(driver.transport.get_state()), **change})
    with pytest.raises(ValueError):
        PciDriver(state=state)


OFFSETS = st.one_of(st.integers(0, 0x40), st.integers(0, pci.BAR_SIZE - 8), st.integers(0, 4095))
ACCESS = st.tuples(st.booleans(), OFFSETS, st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), ACCESS), max_size=30))
def test_whatever_a_driver_does_only_its_device_suffers(
    accesses: list[tuple[bool, tuple[bool, int, int, int]]],
) -> None:
    """No access raises, and after a reset the device works again."""
    driver = PciDriver()
    driver.enable()
    for in_bar, (write, offset, size, value) in accesses:
        value &= (1 << 8 * size) - 1
        if in_bar:
            driver.write(offset, size, value) if write else driver.read(offset, size)
        else:
            driver.config(offset, size, value if write else None)
    driver.enable()
    driver.write(pci.STATUS, 1, 0)
    driver.config(driver.capabilities()[-1][2] + 2, 2, 0)
    driver.write(pci.QUEUE_SELECT, 2, 0)
    assert driver.ask(driver.go()) == 16
    driver.close()
