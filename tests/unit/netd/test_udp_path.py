"""What goes through C and what goes through Python is the same, datagram by datagram, both ways."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_common.arena import Arena
from crumble_common.messages.net import ARENA, ARENA_SIZE, ARENA_VERSION
from crumble_common.parking import Lot, Parking
from crumble_netd.commands import Frame
from crumble_netd.flow_table import Flow
from crumble_netd.header import checksum, ethernet, icmp, ipv4, ipv6, udp, virtio_net
from crumble_netd.header.virtio_net import NEEDS_CSUM, NOTHING, Offload
from crumble_netd.host_sockets import Datagrams
from crumble_netd.layers.udp import TIMEOUT, UNANSWERED
from crumble_netd.ledger import Ledger
from crumble_netd.pcap import Capture
from framework.net_client import OFFLOADS, PLAIN
from framework.netd_guest import (
    GATEWAY_MAC,
    GUEST,
    GUEST6,
    HOST,
    HOST6,
    MAC,
    Packet,
    parse,
)
from framework.netd_side import NetdSide

# Datagrams that a guest gets are no longer than this without fragments, with an MTU of 1500.
PACKET = 1472


class Side(NetdSide):
    """A guest and a server of the host's."""

    def __init__(self, *, fast: bool = True, six: bool = False, **options: int) -> None:
        super().__init__(**options)
        if not fast:
            self.device.lend_datagrams = lambda *_: None  # type: ignore[method-assign]
        self.six = six
        self.server = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
        self.server.bind(("::1" if six else "127.0.0.1", 0))
        self.server.setblocking(False)
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 200_000)
        self.number = self.server.getsockname()[1]
        self.peer: Any = None
        self.packets: list[Packet] = []
        self.size = 0  # of what the guest sent since the last step

    def send(self, data: bytes, *, left: bool = True, **odd: int) -> None:
        """A datagram of the guest's; `odd`: what is wrong with it."""
        source, target = (GUEST6, HOST6) if self.six else (GUEST, HOST)
        left = left and bool(self.port.features & virtio_net.F_CSUM)
        size = udp.SIZE + len(data)
        pseudo = checksum.pseudo(source, target, udp.PROTOCOL, size)
        head = udp.build(odd.get("port", 40_000), self.number, data, pseudo)
        if left:
            head = head[:6] + pseudo.to_bytes(2, "big")
        head = head[:4] + (size + odd.get("longer", 0)).to_bytes(2, "big") + head[6:]
        head = head[:6] + bytes([head[6] ^ odd.get("spoil", 0)]) + head[7:]
        build: Any = ipv6.build if self.six else ipv4.build
        ip = build(source, target, udp.PROTOCOL, size)
        kind = ethernet.IPV6 if self.six else ethernet.IPV4
        at = ethernet.SIZE + len(ip)
        offload = Offload(NEEDS_CSUM, 0, 0, 0, at, 6) if left else NOTHING
        link = ethernet.build(GATEWAY_MAC, MAC, kind)
        if odd.get("mac"):
            link = ethernet.build(GATEWAY_MAC, bytes(5) + b"\2", kind)
        chain = virtio_net.build(offload, 0) + link + ip + head + data + bytes(odd.get("pad", 0))
        self.tx.submit([chain], [])
        self.size += len(chain)

    def step(self) -> None:
        """Until nothing happens any more."""
        self.size = 0
        for offload, frame in self.turn():
            packet = parse(Frame(frame, [], offload))
            if packet.kind in ("udp", "ip") or isinstance(packet.message, icmp.Icmp):
                self.packets.append(packet)

    def received(self) -> list[bytes]:
        """At the server."""
        found = []
        while True:
            try:
                data, self.peer = self.server.recvfrom(1 << 16)
            except BlockingIOError:
                return found
            found.append(data)

    def answer(self, data: bytes) -> None:
        """The server sends."""
        self.server.sendto(data, self.peer)

    @property
    def answers(self) -> list[bytes]:
        """What the guest got."""
        return [bytes(p.message.payload) for p in self.packets if isinstance(p.message, udp.Udp)]

    @property
    def flow(self) -> Flow:
        (found,) = self.stack.flows.all()
        return found

    @property
    def lent(self) -> bool:
        sock = self.host._sockets[self.flow.number]
        return isinstance(sock, Datagrams) and sock.lent is not None

    def begin(self) -> None:
        """A flow that is lent, if it may be."""
        for _ in range(3):
            self.send(b"begin")
            self.step()
        assert self.received() == [b"begin"] * 3

    def close(self) -> None:
        super().close()
        self.server.close()


@pytest.fixture(params=[False, True], ids=["ipv4", "ipv6"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    made = Side(six=request.param)
    yield made
    made.close()


def test_a_flow_is_lent_with_its_third_datagram(side: Side) -> None:
    for number in range(4):
        side.send(b"%d" % number)
        side.step()
        assert side.lent == (number >= 2)
    assert side.received() == [b"0", b"1", b"2", b"3"]
    side.answer(b"answer")
    side.step()
    assert side.answers == [b"answer"]
    assert side.lent
    side.stack.udp.look(side.flow)
    assert (side.flow.sent, side.flow.received) == (4, 6)
    side.device.count()
    assert side.port.counts["rx.frames"] == 4


def test_a_flow_to_the_guest_alone_is_lent(side: Side) -> None:
    side.send(b"begin")
    side.step()
    side.received()
    for number in range(4):
        assert side.lent == (number >= 2)
        side.answer(b"%d" % number)
        side.step()
    assert side.answers == [b"0", b"1", b"2", b"3"]


def test_a_lent_flow_ends_when_it_was_silent_for_its_time(side: Side) -> None:
    side.begin()
    side.time += UNANSWERED - 1
    side.send(b"still there")
    side.step()
    side.time += UNANSWERED - 1
    side.step()
    assert side.lent
    side.received()
    side.answer(b"answer")
    side.step()
    side.time += TIMEOUT - 1
    side.step()
    assert side.lent
    side.time += 1
    side.step()
    assert side.stack.flows.all() == []
    side.send(b"a new one")
    side.step()
    assert side.received() == [b"a new one"]


def test_the_flow_that_was_silent_for_longest_makes_room() -> None:
    side = Side()
    side.stack.flows.limits = side.stack.flows.limits.__class__(udp=2)
    for port in (1000, 2000):
        for _ in range(3):
            side.send(b"x", port=port)
            side.step()
            side.time += 1
    side.send(b"x", port=1000)  # of which C alone knows
    side.step()
    side.time += 1
    side.send(b"x", port=3000)
    side.step()
    assert sorted(flow.key.guest_port for flow in side.stack.flows.all()) == [1000, 3000]
    side.close()


def test_a_capture_sees_every_datagram(side: Side) -> None:
    side.begin()
    read, write = os.pipe()
    side.device.capture = Capture(write, 100)
    assert not side.lent
    side.send(b"seen")
    side.step()
    assert not side.lent
    side.received()
    side.answer(b"too")
    side.step()
    assert side.device.capture.frames == 2
    side.device.capture.close()
    side.device.capture = None
    side.send(b"again")
    side.step()
    assert side.lent
    os.close(read)


def test_an_error_is_told_the_guest_once(side: Side) -> None:
    side.begin()
    side.server.close()
    side.send(b"nobody hears")
    side.step()
    (packet,) = side.packets
    assert isinstance(packet.message, icmp.Icmp)
    assert packet.message.type == (icmp.UNREACHABLE6 if side.six else icmp.UNREACHABLE)
    assert side.lent


def test_a_full_ring_leaves_datagrams_in_the_socket(side: Side) -> None:
    side.begin()
    side.rx.collect()
    while side.rx.waiting:  # the guest has no buffers left
        side.answer(b"fill")
        side.step()
    del side.packets[:]
    sent = [b"%d" % i for i in range(60)]
    for data in sent:
        side.answer(data)
    side.step()
    assert side.answers == []
    for _ in range(4):
        side.give(20)
        side.step()
    assert side.answers == sent
    assert side.port.counts["tx.dropped"] == 0


def test_a_large_one_comes_in_fragments_and_in_order() -> None:
    side = Side(features=PLAIN, mtu=1500)
    side.begin()
    for size in (PACKET, PACKET + 1, 5):
        side.answer(bytes(size))
    side.step()
    assert [packet.fragment for packet in side.packets] == [None, (0, True), (1480, False), None]
    side.close()


# -- Both.

datagrams = st.tuples(st.just("guest"), st.integers(0, 3000), st.booleans())
steps = st.one_of(
    datagrams,
    st.tuples(st.just("burst"), st.integers(1, 40), st.integers(0, 1500)),
    st.tuples(st.just("odd"), st.sampled_from(["spoil", "mac", "pad", "longer", "port", "huge"])),
    st.tuples(st.just("host"), st.integers(1, 20), st.integers(0, 1472)),
    st.tuples(st.just("large"), st.integers(1473, 20_000), st.just(0)),
    st.tuples(st.just("run"), st.just(0), st.just(0)),
)


def act(side: Side, script: list[tuple[Any, ...]]) -> tuple[list[bytes], list[tuple[Any, ...]]]:
    """What the server got, and what the guest got."""
    got: list[bytes] = []
    side.begin()
    for number, (kind, *values) in enumerate(script):
        mark = bytes([number + 1])
        if kind == "guest":
            side.send(mark * values[0], left=values[1])
        elif kind == "burst":
            for i in range(values[0]):
                side.send(mark * (values[1] + (i % 7 == 6)))
        elif kind == "odd" and values[0] == "huge":
            side.send(mark * 30_000)
        elif kind == "odd":
            side.send(mark * 9, left=False, **{values[0]: 4})
        elif kind == "host":
            for i in range(values[0]):
                side.answer(mark * ((values[1] + i) % 1473))
        elif kind == "large":
            side.answer(mark * values[0])
        # No more than what the server's socket has room for.
        if kind not in ("guest", "burst", "odd") or side.size > 30_000 or side.tx.waiting > 40:
            side.step()
            got += side.received()
            side.give(200 - side.rx.waiting)
    side.step()
    got += side.received()
    frames = [(p.kind, p.source, p.destination, p.fragment, _body(p), p.mac) for p in side.packets]
    return got, frames


def _body(packet: Packet) -> Any:
    """Without the server's port, which is another one each time."""
    message = packet.message
    if packet.fragment is not None and packet.fragment[0] == 0 and isinstance(message, memoryview):
        message = message[udp.SIZE :]
    if isinstance(message, udp.Udp):
        return message.destination, bytes(message.payload)
    return bytes(message) if isinstance(message, memoryview) else message


def test_a_socket_is_parked_before_it_sends(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """A successor of a netd that is killed at any instant goes on from the port that the peer saw."""
    arena, lot = Arena.create(ARENA, ARENA_VERSION, ARENA_SIZE), Lot(8)
    side.stack.ledger = Ledger(arena)
    side.host.parking = Parking(lot.open().detach())
    parked = []
    send = Datagrams.send

    def look_and_send(sock: Datagrams, data: bytes) -> None:
        lot.receive()
        parked.append(list(lot.fds))
        send(sock, data)

    monkeypatch.setattr(Datagrams, "send", look_and_send)
    side.send(b"first")
    side.step()
    assert parked == [[f"flow:{side.flow.number}"]]
    assert side.received() == [b"first"]
    side.host.parking.close()
    side.host.parking = None
    lot.close()
    arena.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(steps, max_size=12), st.booleans(),
    st.sampled_from([(OFFLOADS, 65_520), (OFFLOADS & ~1, 65_520), (PLAIN, 1500)]),
)  # fmt: skip
def test_c_and_python_give_the_same_datagrams(
    script: list[tuple[Any, ...]], six: bool, device: tuple[int, int]
) -> None:
    """The server gets the same datagrams in the same order, and the guest the same packets, whoever serves them."""
    features, mtu = device
    found = []
    for fast in (False, True):
        side = Side(fast=fast, six=six, features=features, mtu=mtu)
        found.append(act(side, script))
        flow = side.stack.flows.all()[0]
        side.stack.udp.look(flow)
        side.device.count()
        found.append((flow.sent, flow.received, side.port.counts))  # type: ignore[arg-type]
        side.close()
    assert found[:2] == found[2:]
