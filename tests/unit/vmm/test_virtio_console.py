"""virtio-console: the control dialogue, bytes both ways, and hostile drivers."""

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_common.errors import InternalError
from crumble_common.eventloop import EventLoop
from crumble_vmm.devices.virtio import mmio, transport
from crumble_vmm.devices.virtio.console import (
    CONTROL_RX,
    CONTROL_TX,
    Console,
    Event,
    Port,
    rx_queue,
)
from framework.virtio_mmio_driver import RAM, MmioDriver
from framework.virtqueue_driver import VirtqueueDriver


class Guest(MmioDriver):
    """A driver with its two ports and what their host sides saw."""

    def __init__(self) -> None:
        loop = EventLoop()
        self.log: list[object] = []
        self.hvc = Port("", lambda data: self.log.append(("hvc", data)))
        self.agent = Port(
            "crumble.agent",
            lambda data: self.log.append(("agent", data)),
            lambda is_open: self.log.append(("open", is_open)),
        )
        self.device = Console("console", [self.hvc, self.agent], loop)
        super().__init__(self.device, loop)
        self.queues: list[VirtqueueDriver] = []

    def boot(self) -> None:
        assert self.negotiate()
        self.queues = [self.add_queue(index) for index in range(6)]
        self.go()

    def tell(self, port: int, event: Event, value: int = 0) -> None:
        self.queues[CONTROL_TX].submit([struct.pack("<IHH", port, event, value)], [])
        self.kick(CONTROL_TX)

    def told(self) -> list[tuple[int, int, int, bytes]]:
        messages = [data for _, _, data in self.queues[CONTROL_RX].collect()]
        return [(*struct.unpack("<IHH", data[:8]), data[8:]) for data in messages]

    def offer(self, queue: int, size: int = 4096, count: int = 1) -> None:
        for _ in range(count):
            self.queues[queue].submit([], [size])
        self.kick(queue)


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest()
    made.boot()
    yield made
    made.close()


def test_queues_are_numbered_as_the_specification_says() -> None:
    assert [rx_queue(port) for port in range(4)] == [0, 4, 6, 8]


def test_ports_are_introduced_on_request(guest: Guest) -> None:
    guest.offer(CONTROL_RX, count=16)
    guest.tell(0, Event.DEVICE_READY, 1)
    assert guest.told() == [(0, Event.DEVICE_ADD, 0, b""), (1, Event.DEVICE_ADD, 0, b"")]
    guest.tell(0, Event.PORT_READY, 1)
    assert guest.told() == [
        (0, Event.CONSOLE_PORT, 1, b""),
        (0, Event.RESIZE, 0, struct.pack("<HH", 80, 25)),
        (0, Event.PORT_OPEN, 1, b""),
    ]
    guest.tell(1, Event.PORT_READY, 1)
    assert guest.told() == [
        (1, Event.PORT_NAME, 1, b"crumble.agent"),
        (1, Event.PORT_OPEN, 1, b""),
    ]
    guest.tell(1, Event.PORT_OPEN, 1)
    guest.tell(1, Event.PORT_OPEN, 1)
    guest.tell(1, Event.PORT_OPEN, 0)
    assert guest.log == [("open", True), ("open", False)]


def test_control_messages_wait_for_buffers(guest: Guest) -> None:
    guest.tell(0, Event.DEVICE_READY, 1)
    assert guest.told() == []
    guest.offer(CONTROL_RX)
    assert len(guest.told()) == 1
    guest.offer(CONTROL_RX)
    assert len(guest.told()) == 1


def test_config_says_how_many_ports(guest: Guest) -> None:
    config = b"".join(
        guest.transport.mmio_read(mmio.CONFIG + at, 2).to_bytes(2, "little")
        for at in range(0, 12, 2)
    )
    assert config == struct.pack("<HHII", 80, 25, 2, 0)
    assert guest.transport.mmio_read(mmio.CONFIG + 0x800, 4) == 0


def test_bytes_from_the_guest(guest: Guest) -> None:
    guest.queues[1].submit([b"Linux ", b"version"], [])
    guest.queues[5].submit([b"x" * 70_000], [])
    guest.kick(1)
    guest.kick(5)
    assert guest.log[0] == ("hvc", b"Linux version")
    assert [len(data) for who, data in guest.log[1:]] == [32768, 32768, 4464]  # type: ignore[misc]
    assert len(guest.queues[5].collect()) == 1


def test_the_last_bytes_of_a_guest_that_is_off_are_heard(guest: Guest) -> None:
    """Its vCPU's end can reach the loop before the kick that came first."""
    guest.queues[5].submit([b"the end"], [])
    guest.device.finish()
    assert guest.log == [("agent", b"the end")]
    guest.device.finish()
    assert len(guest.log) == 1


def test_bytes_for_the_guest_fill_buffers_as_they_come(guest: Guest) -> None:
    guest.agent.send(b"abcdef")
    guest.settle()
    queue = guest.queues[4]
    guest.offer(4, size=4)
    assert [data for _, _, data in queue.collect()] == [b"abcd"]
    guest.offer(4, size=4, count=2)
    assert [data for _, _, data in queue.collect()] == [b"ef"]
    guest.agent.send(b"gh")
    assert [data for _, _, data in queue.collect()] == [b"gh"]
    assert guest.interrupt.bits == 1


def test_a_reset_closes_ports_and_forgets_what_waits(guest: Guest) -> None:
    guest.tell(1, Event.PORT_OPEN, 1)
    guest.agent.send(b"stale")
    guest.boot()
    assert guest.log == [("open", True), ("open", False)]
    guest.offer(4)
    assert guest.queues[4].collect() == []


def test_a_port_needs_its_console() -> None:
    with pytest.raises(InternalError):
        Port("lonely", lambda _data: None).send(b"x")


def test_a_driver_that_takes_no_control_messages_breaks_only_the_device(guest: Guest) -> None:
    for _ in range(200):
        guest.tell(0, Event.DEVICE_READY, 1)
        if guest.status & transport.NEEDS_RESET:
            break
        guest.queues[CONTROL_TX].collect()
    assert guest.status & transport.NEEDS_RESET
    guest.boot()
    guest.queues[1].submit([b"again"], [])
    guest.kick(1)
    assert guest.log[-1] == ("hvc", b"again")


@pytest.mark.parametrize(
    "message",
    [b"", b"short", struct.pack("<IHH", 7, Event.PORT_READY, 1), struct.pack("<IHH", 0, 99, 1)],
)
def test_odd_control_messages_are_ignored(guest: Guest, message: bytes) -> None:
    if message:
        guest.queues[CONTROL_TX].submit([message], [])
    else:
        guest.queues[CONTROL_TX].submit([], [8])
    guest.kick(CONTROL_TX)
    guest.offer(CONTROL_RX)
    assert guest.told() == []
    assert guest.status == 0xF


@settings(max_examples=100, deadline=None)
@given(
    queue=st.integers(0, 5),
    rows=st.lists(
        st.tuples(
            st.one_of(st.integers(RAM, RAM + 0x4000), st.integers(0, 2**64 - 1)),
            st.one_of(st.integers(0, 64), st.integers(0, 2**32 - 1)),
            st.integers(0, 7),
            st.integers(0, 80),
        ),
        min_size=1,
        max_size=8,
    ),
    heads=st.lists(st.integers(0, 70), max_size=6),
    jump=st.integers(0, 0xFFFF),
)
def test_hostile_rings(
    queue: int, rows: list[tuple[int, int, int, int]], heads: list[int], jump: int
) -> None:
    """Whatever a ring holds, the machine goes on and a driver that starts over is served."""
    guest = Guest()
    try:
        guest.boot()
        guest.agent.send(b"secret")
        ring = guest.queues[queue]
        for index, row in enumerate(rows):
            ring.set_descriptor(index, *row)
        for slot, head in enumerate(heads):
            ring.set_available(slot, head)
        ring.set_avail_idx(len(heads) if jump % 2 else jump)
        guest.kick(queue)
        guest.boot()
        guest.queues[1].submit([b"alive"], [])
        guest.kick(1)
        assert guest.log[-1] == ("hvc", b"alive")
    finally:
        guest.close()
