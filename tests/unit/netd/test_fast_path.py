"""What goes through C and what goes through Python is the same stream, whatever a guest sends in between."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_netd.commands import Frame
from crumble_netd.header import checksum, ethernet, ipv4, tcp, udp, virtio_net
from crumble_netd.header.virtio_net import NEEDS_CSUM, NOTHING, Offload
from crumble_netd.pcap import Capture
from crumble_netd.tcp_flow import TcpFlow
from framework.netd_guest import GATEWAY_MAC, GUEST, HOST, MAC, parse
from framework.netd_side import NetdSide

START = 7000  # the guest's first sequence number
STREAM = bytes(i * 7 & 0xFF for i in range(60_000))


class Side(NetdSide):
    """One netd, a guest that has connected to a server of the host, and that server's socket."""

    def __init__(self, *, fast: bool, buffers: int = 200) -> None:
        super().__init__(buffers=buffers)
        if not fast:
            self.device.lend = lambda *_, **__: False  # type: ignore[method-assign]
        self.segments: list[tcp.Segment] = []
        self.got: dict[int, int] = {}  # from the host, by sequence number from the first on
        self.seq = START
        self._connect()

    def _connect(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.number = server.getsockname()[1]
            options = tcp.Options(mss=65_000, scale=7, sack_ok=True, timestamps=(1, 0))
            self.send(b"", 0, flags=tcp.SYN, options=options)
            self.run()
            self.socket, _ = server.accept()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.run()
        (answer,) = self.segments
        self.first = answer.seq + 1
        self.seq += 1
        self.send(b"", 0)
        self.run()

    @property
    def flow(self) -> TcpFlow | None:
        found = self.stack.flows.all()
        return found[0] if found and isinstance(found[0], TcpFlow) else None

    @property
    def ack(self) -> int:
        """What the guest has."""
        return self.first + next(i for i in itertools.count() if i not in self.got)

    def send(
        self, data: bytes, at: int, *, flags: int = tcp.ACK, options: tcp.Options | None = None,
        ack: int = 0, window: int = 500,
    ) -> None:  # fmt: skip
        """A segment with bytes from offset `at` of the guest's stream."""
        if options is None:
            options = tcp.Options(timestamps=(int(self.time), 0))
        number = 0 if flags & tcp.SYN else (self.ack + ack) & 0xFFFFFFFF
        head = tcp.build(
            40_000, self.number, self.seq + at, number, flags, window, tcp.build_options(options)
        )
        pseudo = checksum.pseudo(GUEST, HOST, tcp.PROTOCOL, len(head) + len(data))
        head = head[:16] + pseudo.to_bytes(2, "big") + head[18:]
        ip = ipv4.build(GUEST, HOST, tcp.PROTOCOL, len(head) + len(data))
        offload = Offload(NEEDS_CSUM, 0, 34 + len(head), 0, 34, 16)
        frame = ethernet.build(GATEWAY_MAC, MAC, ethernet.IPV4) + ip + head + data
        self.tx.submit([virtio_net.build(offload, 0) + frame], [])

    def run(self) -> None:
        """Until nothing happens any more; the guest takes what has come."""
        for offload, frame in self.turn():
            self._frame(offload, frame)

    def _frame(self, offload: Offload, frame: bytes) -> None:
        message = parse(Frame(frame, [], offload)).message
        if isinstance(message, tcp.Segment):
            self.segments.append(message)
            for i, byte in enumerate(message.payload):
                at = message.seq + i - getattr(self, "first", 0)
                assert self.got.setdefault(at, byte) == byte, "a byte was sent twice, and differs"

    def received(self) -> bytes:
        """At the host's end, without waiting."""
        found = b""
        try:
            while piece := self.socket.recv(1 << 20):
                found += piece
        except (BlockingIOError, ConnectionResetError):
            pass
        return found

    def close(self) -> None:
        super().close()
        self.socket.close()


@pytest.fixture
def side() -> Iterator[Side]:
    made = Side(fast=True)
    yield made
    made.close()


def exchange(side: Side) -> None:
    """Makes it worth lending."""
    side.send(STREAM[:100], 0)
    side.run()
    assert side.received() == STREAM[:100]


def test_a_flow_is_lent_and_looked_at_again(side: Side) -> None:
    exchange(side)
    flow = side.flow
    assert flow is not None
    assert flow.lent is not None
    side.send(STREAM[100:200], 100)
    side.run()
    assert flow.lent is not None
    assert side.received() == STREAM[100:200]
    assert side.segments[-1].ack == START + 201
    assert flow.connection is not None
    assert flow.lent is None
    assert (flow.connection.block.rcv_nxt, flow.sent) == (START + 201, 200)
    side.socket.send(b"answer")
    side.run()
    assert bytes(side.got[i] for i in range(6)) == b"answer"
    side.device.count()
    # The handshake's three, and one ACK for each of ours but the last.
    assert side.port.counts["rx.frames"] == 4


def test_a_capture_takes_flows_back(side: Side) -> None:
    exchange(side)
    flow = side.flow
    assert flow is not None
    assert flow.lent is not None
    read, write = os.pipe()
    side.device.capture = Capture(write, 100)
    assert flow.lent is None
    side.send(STREAM[100:200], 100)
    side.run()
    assert flow.lent is None
    assert side.device.capture.frames == 2
    side.device.capture.close()
    os.close(read)


def test_a_timer_of_a_lent_flow_is_kept(side: Side) -> None:
    exchange(side)
    side.socket.send(b"lost")
    side.run()
    assert side.segments[-1].payload == b"lost"
    count = len(side.segments)
    side.time += 1.5
    side.run()
    assert [bytes(s.payload) for s in side.segments[count:]] == [b"lost"]


def test_a_timer_that_has_moved_on_leaves_a_flow_lent(side: Side) -> None:
    exchange(side)
    flow = side.flow
    assert flow is not None
    lent = flow.lent
    assert lent is not None
    due = lent.deadline()
    assert due > side.time
    for at in (100, 200):  # the later one is not known to the first timer
        side.time += 0.9 * (due - side.time)
        side.send(STREAM[at : at + 100], at)
        side.run()
    side.time = due + 0.01
    side.run()
    assert flow.lent is lent
    assert lent.deadline() > side.time


def test_a_full_ring_leaves_other_flows_lent(side: Side) -> None:
    exchange(side)
    flow = side.flow
    assert flow is not None
    lent = flow.lent
    assert lent is not None
    side.stack.pause(side.port.number, paused=True)
    side.send(STREAM[100:200], 100)
    side.run()
    assert flow.lent is lent
    assert side.received() == STREAM[100:200]
    # Taken back meanwhile, it waits as others do.
    assert flow.connection is not None
    assert flow.connection.paused
    side.stack.pause(side.port.number, paused=False)
    side.run()
    assert flow.kept is not None
    assert not flow.kept.paused
    assert flow.lent is not None


def test_a_full_ring_makes_it_wait() -> None:
    side = Side(fast=True, buffers=6)
    exchange(side)
    data = bytes(range(251)) * 200
    side.socket.send(data)
    side.run()
    assert len(side.got) < len(data)
    for _ in range(30):
        side.give(3)
        side.send(b"", 100)
        side.run()
    assert bytes(side.got[i] for i in range(len(data))) == data
    side.close()


def test_datagrams_get_room_on_a_full_ring_too() -> None:
    """C waits for the guest's buffers while connections are lent; what waits in Python must not wait for ever."""
    side = Side(fast=True, buffers=8)
    exchange(side)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        number = server.getsockname()[1]
        for _ in range(3):
            head = udp.build(40_001, number, b"hi", 0)[:6] + bytes(2)
            ip = ipv4.build(GUEST, HOST, udp.PROTOCOL, len(head) + 2)
            link = ethernet.build(GATEWAY_MAC, MAC, ethernet.IPV4)
            side.tx.submit([virtio_net.build(NOTHING, 0) + link + ip + head + b"hi"], [])
            side.run()
            _, peer = server.recvfrom(10)
        data = bytes(range(251)) * 2000
        side.socket.send(data)
        side.run()
        sent = [b"%d" % number for number in range(10)]
        for datagram in sent:
            server.sendto(datagram, peer)
        found = []
        for _ in range(200):
            for offload, frame in side.turn():
                message = parse(Frame(frame, [], offload)).message
                if isinstance(message, udp.Udp):
                    found.append(bytes(message.payload))
                side._frame(offload, frame)
            side.give(3 if side.rx.waiting < 3 else 0)
            side.send(b"", 100)
    assert found == sent
    assert bytes(side.got[i] for i in range(len(side.got))) == data[: len(side.got)]
    side.close()


def test_the_host_s_end_is_the_guest_s_end(side: Side) -> None:
    exchange(side)
    side.socket.send(b"last")
    side.socket.shutdown(socket.SHUT_WR)
    side.run()
    assert [s.flags & tcp.FIN for s in side.segments][-1]
    assert bytes(side.got[i] for i in range(4)) == b"last"


steps = st.one_of(
    st.tuples(st.just("next"), st.integers(0, 3000), st.sampled_from([tcp.ACK, tcp.ACK | tcp.PSH])),
    st.tuples(st.just("next"), st.integers(1, 9000), st.just(tcp.ACK)),
    st.tuples(st.just("other"), st.integers(-2000, 2000), st.integers(0, 1500)),
    st.tuples(st.just("odd"), st.sampled_from(["rst", "syn", "nostamp", "sack", "ahead", "behind", "closed"])),
    st.tuples(st.just("host"), st.integers(1, 20_000)),
    st.tuples(st.just("run"), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.3, 2.0])),
)  # fmt: skip


class Script:
    """A guest's and a server's doing, the same on any side."""

    def __init__(self, side: Side) -> None:
        self.side, self.next, self.host, self.got = side, 0, 0, b""

    def step(self, kind: str, *values: Any) -> None:
        """Of `steps`."""
        side = self.side
        if kind == "next":
            size, flags = values
            side.send(STREAM[self.next : self.next + size], self.next, flags=flags)
            self.next = min(self.next + size, len(STREAM))
        elif kind == "other":
            at, size = max(self.next + values[0], 0), values[1]
            side.send(STREAM[at : at + size], at)
        elif kind == "odd":
            self._odd(values[0])
        elif kind == "host":
            side.socket.send(bytes((self.host + i) % 253 for i in range(values[0])))
            self.host += values[0]
        elif kind == "wait":
            side.time += values[0]
            side.run()
        else:
            side.run()
            side.send(b"", self.next)

    def _odd(self, what: str) -> None:
        side, at = self.side, self.next
        stamps = tcp.Options(timestamps=(int(side.time), 0))
        if what == "rst":
            side.send(b"", at + 5, flags=tcp.RST | tcp.ACK)
        elif what == "syn":
            side.send(b"", at, flags=tcp.SYN)
        elif what == "nostamp":
            side.send(STREAM[at : at + 9], at, options=tcp.NO_OPTIONS)
        elif what == "sack":
            side.send(b"", at, options=stamps._replace(sack=((side.ack + 5, side.ack + 9),)))
        elif what == "closed":
            side.send(b"", at, window=0)
        else:
            side.send(b"", at, ack=70_000 if what == "ahead" else -9)

    def end(self) -> None:
        """Sends again what has not been acknowledged, until all is."""
        side = self.side
        for _ in range(40):
            side.run()
            side.give(200 - side.rx.waiting)
            acked = side.segments[-1].ack - START - 1
            side.time += 0.5
            side.send(STREAM[acked : max(acked, self.next)][:30_000], acked)
            self.got += side.received()
        side.run()
        self.got += side.received()


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=25))
def test_c_and_python_give_the_same_bytes_and_acknowledge_the_same(
    script: list[tuple[Any, ...]],
) -> None:
    """The host gets the same bytes, and the guest the same bytes and the same last ACK, whoever serves it."""
    found = []
    for fast in (False, True):
        side = Side(fast=fast)
        exchange(side)
        actor = Script(side)
        actor.next = 100
        for step in script:
            actor.step(*step)
        actor.end()
        guest = bytes(side.got[i] for i in range(len(side.got)) if i in side.got)
        found.append((actor.got, side.segments[-1].ack, guest))
        side.close()
        assert actor.got == STREAM[100 : 100 + len(actor.got)]
        assert guest == bytes(i % 253 for i in range(len(guest)))
    assert found[0] == found[1]
    assert len(found[1][0]) >= actor.next - 100
    assert len(found[1][2]) == actor.host
