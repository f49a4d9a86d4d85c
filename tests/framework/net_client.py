"""A guest's side of a virtio-net back end without a guest: rings, frames, and a TCP of its own.

    with NetClient(sock_or_path) as client:
        stream = client.connect((HOST, 8080))
        stream.send(b"GET / HTTP/1.0\\r\\n\\r\\n")
        assert stream.read_all().startswith(b"HTTP")

Its TCP is crumble_netd's own Connection, driven by real time; the frames go through vhost-user. Used by
tests of the service and by the benchmark.
"""

from __future__ import annotations

import itertools
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Self

from crumble_common.vhost_user import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_VERSION_1,
)
from crumble_netd.commands import Frame
from crumble_netd.header import checksum, ethernet, ipv4, ipv6, tcp, virtio_net
from crumble_netd.header.virtio_net import NOTHING, Offload
from crumble_netd.tcp.connection import Connection
from crumble_netd.tcp.outputs import Data, Ended, Established, Freed, PeerClosed, Send
from crumble_netd.tcp.settings import LARGEST, Settings
from framework.netd_guest import GATEWAY_MAC, GUEST, GUEST6, MAC, Guest, Packet, parse
from framework.vhost_user_master import Master

RX, TX = 0, 1
PLAIN = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC
OFFLOADS = (
    PLAIN | virtio_net.F_CSUM | virtio_net.F_GUEST_CSUM | virtio_net.F_MTU | virtio_net.F_MRG_RXBUF
    | virtio_net.F_GUEST_TSO4 | virtio_net.F_GUEST_TSO6
    | virtio_net.F_HOST_TSO4 | virtio_net.F_HOST_TSO6
)  # fmt: skip
_SEND_ROOM = 1 << 20


class NetClient:
    """mtu: 65520 when it is negotiated, else 1500. buffer: bytes of each receive buffer."""

    def __init__(
        self,
        target: str | socket.socket,
        *,
        features: int = OFFLOADS,
        size: int = 256,
        buffer: int = 4096,
        memory: int = 256 << 20,
        spin_us: float = 0.0,
        inflight: bool = False,
    ) -> None:
        self.master = Master(target, memory=memory)
        self.master.attach(queues=2, features=features, size=size, inflight=inflight)
        self.rx, self.tx = self.master.queues
        self.features = self.master.acked
        if not self.features & virtio_net.F_MRG_RXBUF:
            buffer = 66_000 if self.features & virtio_net.F_GUEST_TSO4 else 1600
        self._buffer = buffer
        self._spin = spin_us
        for _ in range(size):
            self.rx.submit([], [buffer], kick=False)
        self.rx.kick()
        self._begin(self.features, 65_520 if self.features & virtio_net.F_MTU else 1500)
        self.guest = Guest(self)  # type: ignore[arg-type]  # it needs `frame` only

    def _begin(self, features: int, mtu: int) -> None:
        self.features, self.mtu = features, mtu
        self.streams: dict[tuple[bytes, int, int], Stream] = {}
        self.packets: deque[Packet] = deque()
        self.listening: dict[int, deque[Stream]] = {}
        # Gets the frames that come, which are not looked at then.
        self.heard: Callable[[bytes], None] | None = None
        self._ports = itertools.count(50_000)
        self._parts: list[bytes] = []
        self._missing = 0

    # Frames.

    def frame(self, frame: bytes, offload: Offload = NOTHING) -> None:
        """Sends one."""
        self._transmit([virtio_net.build(offload, 0) + frame])

    def _transmit(self, parts: list[bytes]) -> None:
        while True:
            try:
                self.tx.submit(parts, [], kick=False)
            except (IndexError, MemoryError):
                self.tx.kick()
                self.tx.driver.collect()
                continue
            return

    def pump(self, timeout: float = 0.0) -> None:
        """Kicks, takes what has come, serves streams; waits at most `timeout` seconds for something."""
        self._serve()
        self.tx.kick()
        self.tx.driver.collect()
        end = time.monotonic() + timeout
        while not self._take():
            left = end - time.monotonic()
            if left <= 0:
                break
            self._sleep(min(left, self._next_deadline(left)))
            self._tick()
            self._serve()
            self.tx.kick()
        self._tick()
        self._serve()
        self.tx.kick()

    def _sleep(self, seconds: float) -> None:
        if self._spin:
            end = time.perf_counter() + min(seconds, self._spin / 1e6)
            while time.perf_counter() < end:
                if self.rx.driver.more:
                    return
        self.rx.driver.interrupts(wanted=True)
        if self.rx.driver.more:
            return
        from framework.ready import readable

        if readable(self.rx.call_fd, timeout=max(seconds, 0.0)):
            import os

            os.eventfd_read(self.rx.call_fd)

    def _next_deadline(self, most: float) -> float:
        now = time.monotonic()
        due = [at for s in self.streams.values() if (at := s.connection.deadline())]
        return max(0.0, min([most, *(at - now for at in due)]))

    def _take(self) -> int:
        done = self.rx.driver.collect()
        for _, _, data in done:
            self._received(data)
            self.rx.submit([], [self._buffer], kick=False)
        if done:
            self.rx.kick()
        return len(done)

    def _received(self, data: bytes) -> None:
        """One buffer: a frame, or a part of one (§5.1.6.4)."""
        if not self._missing:
            self._missing = struct.unpack_from("<H", data, 10)[0]
        self._parts.append(data)
        self._missing -= 1
        if not self._missing:
            whole, self._parts = b"".join(self._parts), []
            offload = Offload(*struct.unpack_from("<BBHHHH", whole))
            self._frame(whole[virtio_net.SIZE :], offload)

    def _frame(self, raw: bytes, offload: Offload) -> None:
        if self.heard is not None:
            self.heard(raw)
            return
        packet = parse(Frame(raw, [], offload))
        if packet.kind != "tcp":
            self.packets.append(packet)
            return
        segment = packet.message
        assert isinstance(segment, tcp.Segment)
        key = (packet.source, segment.source, segment.destination)
        if stream := self.streams.get(key):
            stream.connection.arrive(segment, time.monotonic())
        elif segment.flags & tcp.SYN and segment.destination in self.listening:
            stream = Stream(self, packet.source, segment.source, segment.destination)
            self.streams[key] = stream
            self.listening[segment.destination].append(stream)
            stream.connection.accept(segment, time.monotonic())
        elif not segment.flags & tcp.RST:
            ack = segment.seq + segment.length
            self.guest.tcp(
                (packet.source, segment.source), tcp.RST | tcp.ACK, segment.ack, ack,
                port=segment.destination,
            )  # fmt: skip

    def _tick(self) -> None:
        now = time.monotonic()
        for stream in tuple(self.streams.values()):
            if 0 < stream.connection.deadline() <= now:
                stream.connection.tick(now)

    def _serve(self) -> None:
        for stream in tuple(self.streams.values()):
            stream.serve()

    # Streams.

    def connect(self, to: tuple[bytes, int], timeout: float = 10.0) -> Stream:
        """Opens a connection; raises ConnectionError."""
        stream = self.start(to)
        stream.wait(lambda: stream.established or bool(stream.ended), timeout)
        if not stream.established:
            raise ConnectionError(stream.ended)
        return stream

    def start(self, to: tuple[bytes, int]) -> Stream:
        """Begins to."""
        stream = Stream(self, *to, next(self._ports))
        self.streams[to[0], to[1], stream.port] = stream
        stream.connection.open(time.monotonic())
        return stream

    def listen(self, port: int) -> None:
        """Takes connections from now on; `accept` gives them."""
        self.listening[port] = deque()

    def accept(self, port: int, timeout: float = 10.0) -> Stream:
        """The next one."""
        self.wait(lambda: bool(self.listening[port]), timeout)
        return self.listening[port].popleft()

    def wait(self, until: object, timeout: float = 10.0) -> None:
        """Until `until()`; raises TimeoutError."""
        end = time.monotonic() + timeout
        while not until():  # type: ignore[operator]
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError("what was waited for did not happen")
            self.pump(left)

    def packet(self, kind: str, timeout: float = 10.0) -> Packet:
        """The next packet of a kind that is not TCP's; others are dropped."""
        found: list[Packet] = []

        def look() -> bool:
            while self.packets and not found:
                if (packet := self.packets.popleft()).kind == kind:
                    found.append(packet)
            return bool(found)

        self.wait(look, timeout)
        return found[0]

    def segment(self, stream: Stream, send: Send) -> None:
        """A stream's segment: whole, as an offloading guest hands it to its device, or cut."""
        six = len(stream.remote) == 16
        source = GUEST6 if six else GUEST
        data = b"".join(send.payload)
        tso = virtio_net.F_HOST_TSO6 if six else virtio_net.F_HOST_TSO4
        step = max(len(data), 1) if self.features & tso or not send.mss else send.mss
        options = tcp.build_options(send.options)
        for at in range(0, max(len(data), 1), step):
            piece = data[at : at + step]
            flags = send.flags if at + step >= len(data) else send.flags & ~(tcp.FIN | tcp.PSH)
            head = tcp.build(
                stream.port, stream.remote_port, (send.seq + at) & 0xFFFFFFFF, send.ack, flags,
                send.window, options,
            )  # fmt: skip
            pseudo = checksum.pseudo(source, stream.remote, tcp.PROTOCOL, len(head) + len(piece))
            left = bool(self.features & virtio_net.F_CSUM)
            total = pseudo if left else checksum.internet([head, piece], pseudo)
            head = head[:16] + total.to_bytes(2, "big") + head[18:]
            self._packet(source, stream.remote, head, piece, send.mss if left else 0, left=left)

    def _packet(
        self, source: bytes, to: bytes, head: bytes, data: bytes, mss: int, *, left: bool
    ) -> None:
        six, size = len(to) == 16, len(head) + len(data)
        build = ipv6.build if six else ipv4.build
        ip = build(source, to, tcp.PROTOCOL, size)
        link = ethernet.build(GATEWAY_MAC, MAC, ethernet.IPV6 if six else ethernet.IPV4)
        offload = NOTHING
        if left:
            at = len(link) + len(ip)
            kind = virtio_net.GSO_TCPV6 if six else virtio_net.GSO_TCPV4
            gso = kind if mss and len(data) > mss else virtio_net.GSO_NONE
            offload = Offload(
                virtio_net.NEEDS_CSUM, gso, at + len(head), mss if gso else 0, at, tcp.CHECKSUM
            )
        header = virtio_net.build(offload, 0) + link + ip + head
        self._transmit([header, data] if data else [header])

    def close(self) -> None:
        """Ends the connection to the back end."""
        self.master.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream:
    """One connection of the guest."""

    def __init__(self, client: NetClient, remote: bytes, remote_port: int, port: int) -> None:
        self.client = client
        self.remote, self.remote_port, self.port = remote, remote_port, port
        headers = 60 if len(remote) == 16 else 40
        settings = Settings(
            mss=client.mtu - headers, max_segment=LARGEST, rcv_start=1 << 20, rcv_max=1 << 20
        )
        self.connection = Connection(port * 7919, settings)
        self.received: deque[bytes] = deque()
        self.count = 0
        self.established = self.eof = False
        self.ended = ""
        self.reading = True
        self.room = _SEND_ROOM
        self._waiting: deque[bytes] = deque()
        self._closing = False

    def serve(self) -> None:
        """Carries out what the connection wants, and gives it what waits."""
        now, connection = time.monotonic(), self.connection
        while True:
            connection.flush(now)
            if not connection.outputs:
                break
            for output in connection.take():
                self._do(output, now)
        self._write(now)
        for output in connection.take():
            self._do(output, now)

    def _do(self, output: object, now: float) -> None:
        if isinstance(output, Send):
            self.client.segment(self, output)
        elif isinstance(output, Data):
            self.count += len(output.data)
            self.received.append(output.data)
            if self.reading:
                self.connection.consumed(len(output.data), now)
        elif isinstance(output, Established):
            self.established = True
        elif isinstance(output, Freed):
            self.room += output.size
        elif isinstance(output, PeerClosed):
            self.eof = True
        elif isinstance(output, Ended):
            self.ended = output.reason
            self.client.streams.pop((self.remote, self.remote_port, self.port), None)

    def _write(self, now: float) -> None:
        while self._waiting and self.room > 0 and self.established and not self.ended:
            data = self._waiting.popleft()
            if len(data) > self.room:
                self._waiting.appendleft(data[self.room :])
                data = data[: self.room]
            self.room -= len(data)
            self.connection.write(data, now)
        if self._closing and not self._waiting and self.established and not self.ended:
            self.connection.shutdown(now)

    def send(self, data: bytes) -> None:
        """Sends, as the window allows, while the client is pumped."""
        self._waiting.append(data)
        self.client.pump()

    @property
    def idle(self) -> bool:
        """Everything was sent and acknowledged."""
        return not self._waiting and self.room == _SEND_ROOM

    def shutdown(self) -> None:
        """No more follows."""
        self._closing = True
        self.client.pump()

    def abort(self) -> None:
        """A RST."""
        self.connection.abort(time.monotonic())
        self.serve()
        self.client.pump()

    def wait(self, until: object, timeout: float = 10.0) -> None:
        """As the client's."""
        self.client.wait(until, timeout)

    def read(self, size: int, timeout: float = 10.0) -> bytes:
        """Exactly `size` bytes, or what came before the end."""
        self.wait(lambda: sum(map(len, self.received)) >= size or self.eof or self.ended, timeout)
        data = b"".join(self.received)
        self.received = deque([data[size:]] if data[size:] else [])
        return data[:size]

    def read_all(self, timeout: float = 20.0) -> bytes:
        """Everything up to the peer's end."""
        self.wait(lambda: self.eof or bool(self.ended), timeout)
        data = b"".join(self.received)
        self.received.clear()
        return data
