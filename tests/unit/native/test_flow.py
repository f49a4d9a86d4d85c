"""Steady TCP flows between a driver's rings and a socket: what is served, what is left, and what is written down first."""

from __future__ import annotations

import mmap
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_native import flow as native
from crumble_native.flow import TIMES, WORDS, Fixed, Flows
from crumble_native.frames import Outgoing
from crumble_native.memory import PAGE_SIZE, Memory
from crumble_native.vring import Virtqueue
from crumble_netd.commands import Frame
from crumble_netd.header import checksum, ethernet, ipv4, ipv6, tcp, virtio_net
from crumble_netd.header.virtio_net import NEEDS_CSUM, NOTHING, Offload
from framework.netd_guest import parse
from framework.virtqueue_driver import VirtqueueDriver

RAM = 0x8000_0000
GATEWAY, GUEST = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"
ENDS4 = (bytes([10, 0, 2, 15]), bytes([10, 0, 2, 1]))
ENDS6 = (bytes(15) + b"\1", bytes(15) + b"\2")
PORTS = (1000, 80)
SEQ, ISS, MSS, ROOM = 5000, 0xFFFFFF00, 1000, 1 << 16
ALL = dict.fromkeys((*TIMES, *WORDS), 0)


class World:
    """A flow between a driver and a socket pair; the guest's next byte is SEQ, ours ISS."""

    def __init__(
        self, *, six: bool = False, stamps: bool = True, buffers: int = 64, credit: int = ROOM,
        window: int = 60_000, fill: bool = False,
    ) -> None:  # fmt: skip
        memory = Memory()
        memory.add(RAM, mmap.mmap(-1, 2048 * PAGE_SIZE))
        half = 1024 * PAGE_SIZE
        self.rings = []
        for at in (RAM, RAM + half):
            arena = (at + 16 * PAGE_SIZE, half - 16 * PAGE_SIZE)
            driver = VirtqueueDriver(memory, size=256, at=at, arena=arena)
            self.rings.append(
                (
                    driver,
                    Virtqueue(memory, 256, driver.desc, driver.avail, driver.used, event_idx=True),
                )
            )
        (self.rx, self.rx_queue), (self.tx, self.tx_queue) = self.rings
        self.give(buffers)
        self.six, self.stamps = six, stamps
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.ring = memoryview(bytearray(ROOM))
        self.notes = memoryview(bytearray(512))
        self.outgoing = Outgoing(merge=True)
        self.flows = Flows(
            self.outgoing, GATEWAY + GUEST, left=True, large4=True, large6=True, cut4=False,
            cut6=False, fill=fill,
        )  # fmt: skip
        source, target = ENDS6 if six else ENDS4
        self.key = source + target + struct.pack("!HH", *PORTS)
        self.lend(credit=credit, snd_wnd=window, max_snd_wnd=window)

    def lend(self, index: int = 7, *, credit: int = ROOM, key: bytes = b"", **numbers: int) -> bool:
        values = ALL | {
            "snd_una": ISS, "snd_nxt": ISS, "snd_wl1": SEQ - 1, "cwnd": 10 * MSS, "rcv_nxt": SEQ,
            "rcv_adv": SEQ + ROOM, "last_ack_sent": SEQ, "rto": 1.0, "ts_recent": 10,
        } | numbers  # fmt: skip
        fixed = Fixed(
            7200.0, 0.0, 0, credit, 0, 1 << 30, MSS, 0, 0, ROOM, MSS, self.stamps, 0, 0, False, 0,
            ROOM, self.ours.fileno(), True,
        )  # fmt: skip
        notes = (self.notes[:64], self.notes[64:320])
        return self.flows.lend(
            index, tuple(values[name] for name in (*TIMES, *WORDS)), fixed, key or self.key,
            self.ring, notes,
        )  # fmt: skip

    def give(self, count: int) -> None:
        for _ in range(count):
            self.rx.submit([], [4096])

    def frame(
        self, data: bytes = b"", seq: int = SEQ, *, ack: int = ISS, flags: int = tcp.ACK,
        value: int = 11, window: int = 60_000, left: bool = True, mac: bytes = GATEWAY,
        options: bytes | None = None, spoil: bool = False,
    ) -> bytes:  # fmt: skip
        """A chain's bytes: virtio_net_hdr and frame."""
        source, target = ENDS6 if self.six else ENDS4
        if options is None:
            given = tcp.Options(timestamps=(value, 0)) if self.stamps else tcp.NO_OPTIONS
            options = tcp.build_options(given)
        head = tcp.build(*PORTS, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, flags, window, options)
        pseudo = checksum.pseudo(source, target, tcp.PROTOCOL, len(head) + len(data))
        total = pseudo if left else checksum.internet([head, data], pseudo)
        head = head[:16] + (total ^ spoil).to_bytes(2, "big") + head[18:]
        build, kind = (ipv6.build, ethernet.IPV6) if self.six else (ipv4.build, ethernet.IPV4)
        ip = build(source, target, tcp.PROTOCOL, len(head) + len(data))
        at = ethernet.SIZE + len(ip)
        offload = Offload(NEEDS_CSUM, 0, at + len(head), 0, at, 16) if left else NOTHING
        return virtio_net.build(offload, 0) + ethernet.build(mac, GUEST, kind) + ip + head + data

    def send(self, *chains: bytes) -> tuple[int, bool]:
        """One burst: how many were served, whether something is left."""
        for chain in chains:
            self.tx.submit([chain], [])
        return tuple(self.flows.burst(self.tx_queue, self.rx_queue, 50.0))  # type: ignore[return-value]

    def received(self) -> bytes:
        """At the host's end."""
        found = b""
        while True:
            try:
                found += self.theirs.recv(1 << 20)
            except BlockingIOError:
                return found

    def segments(self) -> list[tcp.Segment]:
        """What the guest got."""
        found, parts = [], []
        for _, _, data in self.rx.collect():
            parts.append(data)
            if len(parts) == struct.unpack_from("<H", parts[0], 10)[0]:
                whole, parts = b"".join(parts), []
                offload = Offload(*struct.unpack_from("<BBHHHH", whole))
                message = parse(Frame(whole[virtio_net.SIZE :], [], offload)).message
                assert isinstance(message, tcp.Segment)
                found.append(message)
        return found

    def read(self) -> None:
        """The socket is readable."""
        self.flows.read(7, self.rx_queue, 50.0)

    def noted(self) -> dict[str, int]:
        """What is written down."""
        turn = self.notes[:16].cast("Q")[1]
        names = ("rcv_nxt", "rcv_adv", "snd_una")
        values = struct.unpack_from("@QdIIIIIII", self.notes, 64 + (turn & 1) * 128)
        found = dict(
            zip(("turn", "at", "ts", "snd_una", "rcv_nxt", "rcv_adv"), values, strict=False)
        )
        return {name: found[name] for name in names}

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


# -- From the guest.


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("stamps", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_bytes_in_order_are_written_and_acknowledged_once(
    six: bool, stamps: bool, left: bool
) -> None:
    world = World(six=six, stamps=stamps)
    assert world.send(
        world.frame(b"one", left=left), world.frame(b"two", SEQ + 3, left=left),
        world.frame(b"three", SEQ + 6, left=left, flags=tcp.ACK | tcp.PSH),
    ) == (3, False)  # fmt: skip
    assert world.received() == b"onetwothree"
    (segment,) = world.segments()
    assert (segment.seq, segment.ack, segment.flags) == (ISS, SEQ + 11, tcp.ACK)
    assert (segment.options.timestamps is not None) == stamps
    assert world.noted() == {"rcv_nxt": SEQ + 11, "rcv_adv": SEQ + ROOM, "snd_una": ISS}
    assert len(world.tx.collect()) == 3
    moved = world.flows.recall(7)
    assert (moved.sent, moved.ack_due) == (11, False)
    assert moved.numbers[len(TIMES) + WORDS.index("rcv_nxt")] == SEQ + 11
    world.close()


LEFT = {
    "a gap": {"seq": SEQ + 1},
    "old": {"seq": SEQ - 1},
    "fin": {"flags": tcp.ACK | tcp.FIN},
    "reset": {"flags": tcp.RST},
    "no ack": {"flags": tcp.PSH},
    "acknowledges the future": {"ack": ISS + 1},
    "acknowledges the past": {"ack": ISS - 1},
    "an old timestamp": {"value": 9},
    "no timestamp": {"options": b""},
    "sack": {"options": tcp.build_options(tcp.Options(sack=((1, 2),), timestamps=(11, 0)))},
    "wrong checksum": {"left": False, "spoil": True},
    "another's": {"mac": GUEST},
}


@pytest.mark.parametrize("what", LEFT.values(), ids=LEFT.keys())
def test_what_is_special_is_left_in_the_ring_with_what_follows(
    world: World, what: dict[str, object]
) -> None:
    special = world.frame(b"two", **{"seq": SEQ + 3, **what})  # type: ignore[arg-type]
    if "seq" in what:
        special = world.frame(b"two", **what)  # type: ignore[arg-type]
        assert world.send(special, world.frame(b"one")) == (0, True)
        return
    assert world.send(world.frame(b"one"), special, world.frame(b"x", SEQ + 6)) == (1, True)
    assert world.received() == b"one"
    assert [s.ack for s in world.segments()] == [SEQ + 3]
    chain = world.tx_queue.pop()
    assert chain is not None
    assert chain.read() == special


def test_more_than_the_window_is_left(world: World) -> None:
    sizes = [30_000, 30_000, 6_000]
    at, chains = SEQ, []
    for size in sizes:
        chains.append(world.frame(bytes(size), at))
        at += size
    assert world.send(*chains) == (2, True)
    assert len(world.received()) == 60_000


def test_what_the_host_has_no_room_for_is_left_and_comes_again(world: World) -> None:
    while True:
        try:
            world.ours.send(bytes(1 << 16))
        except BlockingIOError:
            break
    assert world.send(world.frame(b"one"), world.frame(b"two", SEQ + 3)) == (0, True)
    assert world.segments() == []
    world.received()
    assert tuple(world.flows.burst(world.tx_queue, world.rx_queue, 50.0)) == (2, False)
    assert world.received() == b"onetwo"


def test_half_of_a_segment_is_not_acknowledged_in_whole() -> None:
    world = World()
    world.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    chains = [world.frame(bytes([i]) * 6000, SEQ + i * 6000) for i in range(9)]
    served, left = world.send(*chains)
    got = world.received()
    assert left
    assert served == len(got) // 6000
    assert [s.ack for s in world.segments()] == ([SEQ + len(got)] if got else [])
    assert world.noted()["rcv_nxt"] == SEQ + len(got)
    world.close()


def test_another_flow_s_bytes_do_not_mix(world: World) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        key = world.key[:-2] + struct.pack("!H", 81)
        first = world.ours
        world.ours = ours
        assert world.lend(8, key=key)
        world.ours = first
        other = bytearray(world.frame(b"B", SEQ))
        at = virtio_net.SIZE + ethernet.SIZE + 20 + 2
        other[at : at + 2] = struct.pack("!H", 81)
        assert world.send(world.frame(b"a"), bytes(other), world.frame(b"c", SEQ + 1)) == (3, False)
        assert world.received() == b"ac"
        assert theirs.recv(10) == b"B"


def test_one_cannot_be_lent_twice(world: World) -> None:
    assert not world.lend(7)
    assert not world.lend(8)
    world.flows.recall(7)
    assert world.flows.live == 0
    assert world.lend(8)
    assert not world.lend(9, key=world.key[:-1] + b"\0", snd_nxt=ISS + 5), (
        "more on its way than there is"
    )


# -- To the guest.


@pytest.mark.parametrize("fill", [False, True])
def test_bytes_from_the_host_go_as_far_as_windows_do(fill: bool) -> None:
    world = World(fill=fill)
    data = bytes(range(256)) * 80
    world.theirs.send(data)
    world.read()
    segments = world.segments()
    assert b"".join(bytes(s.payload) for s in segments) == data[: 10 * MSS]
    assert [s.seq for s in segments] == [(ISS + i * MSS) & 0xFFFFFFFF for i in range(10)]
    assert world.flows.events() == [(7, native.TIMER, 0)]
    assert world.flows.deadline(7) == 51.0
    world.send(world.frame(ack=ISS + 10 * MSS))
    segments = world.segments()
    assert b"".join(bytes(s.payload) for s in segments) == data[10 * MSS :]
    assert segments[-1].flags == tcp.ACK | tcp.PSH
    assert world.noted()["snd_una"] == (ISS + 10 * MSS) & 0xFFFFFFFF
    moved = world.flows.recall(7)
    assert (moved.received, moved.size, moved.credit) == (20480, 10480, ROOM - 10480)
    world.close()


def test_without_buffers_it_waits_and_loses_nothing() -> None:
    world = World(buffers=3)
    world.theirs.send(bytes(range(250)) * 20)
    world.read()
    assert world.flows.blocked
    first = world.segments()
    assert len(first) == 3
    world.send(world.frame(b"x"))  # its ACK waits, too
    assert world.segments() == []
    world.give(10)
    world.flows.unblock(world.rx_queue, 50.0)
    assert not world.flows.blocked
    rest = world.segments()
    assert b"".join(bytes(s.payload) for s in first + rest) == bytes(range(250)) * 20
    assert rest[-1].ack == SEQ + 1
    world.close()


def test_credit_ends_and_comes_back_with_acknowledgements() -> None:
    world = World(credit=3000)
    world.theirs.send(bytes(5000))
    world.read()
    assert world.flows.events() == [(7, native.TIMER | native.WATCH, 0)]
    assert not world.flows.watch(7)
    assert sum(len(s.payload) for s in world.segments()) == 3000
    world.send(world.frame(ack=ISS + 3000))  # reads on by itself
    assert sum(len(s.payload) for s in world.segments()) == 2000
    assert world.flows.events()[0][1] & native.WATCH
    assert world.flows.watch(7)
    world.close()


def test_a_window_that_shrinks_is_kept_to(world: World) -> None:
    world.theirs.send(bytes(4000))
    world.read()
    assert len(world.segments()) == 4
    world.send(world.frame(ack=ISS + 1000, window=500))  # 3000 are on their way
    world.theirs.send(bytes(100))
    world.read()
    assert world.segments() == []
    world.send(world.frame(ack=ISS + 4000, window=500))
    assert [len(s.payload) for s in world.segments()] == [100]


def test_the_socket_s_end_and_errors_are_somebody_else_s(world: World) -> None:
    world.theirs.close()
    world.read()
    assert world.flows.events() == [(7, native.RECALL, 0)]
    assert world.send(world.frame(b"x")) == (0, True)


def test_a_broken_ring_is_told() -> None:
    world = World(buffers=0)
    world.rx.set_available(0, 300)
    world.rx.set_avail_idx(1)
    world.send(world.frame(b"x"))
    with pytest.raises(Exception, match="head index"):
        world.flows.check(world.rx_queue)
    world.close()


# -- Hostile.


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_frame_does_harm(data: st.DataObject) -> None:
    """Whatever a guest sends: what the host gets is the stream's next bytes, and no more is acknowledged."""
    world = World(six=data.draw(st.booleans()), stamps=data.draw(st.booleans()))
    stream, sent = bytes(range(256)) * 8, 0
    for _ in range(data.draw(st.integers(1, 12))):
        size = data.draw(st.integers(0, 300))
        chain = bytearray(
            world.frame(stream[sent : sent + size], SEQ + sent, left=data.draw(st.booleans()))
        )
        for _ in range(data.draw(st.sampled_from([0, 0, 1, 2]))):
            chain[data.draw(st.integers(0, min(len(chain), 90) - 1))] = data.draw(
                st.integers(0, 255)
            )
        cut = data.draw(st.sampled_from([len(chain)] * 4 + [data.draw(st.integers(1, len(chain)))]))
        parts = [bytes(chain[:cut])]
        if cut > 60 and data.draw(st.booleans()):
            at = data.draw(st.integers(1, cut - 1))
            parts = [bytes(chain[:at]), bytes(chain[at:cut])]
        world.tx.submit(parts, [])
        _, left = world.flows.burst(world.tx_queue, world.rx_queue, 50.0)
        if left:
            taken = world.tx_queue.pop()
            assert taken is not None
            world.tx_queue.push(taken, 0)
        sent = (world.noted()["rcv_nxt"] - SEQ) if any(world.notes[:16]) else 0
    got = world.received()
    assert len(got) == world.flows.recall(7).sent
    assert all(SEQ <= s.ack <= SEQ + len(got) for s in world.segments())
    world.close()
