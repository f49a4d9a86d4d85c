"""Two TCP connections over a network that loses, delays, reorders and duplicates, on a fake clock.

network = TcpNetwork(seed=1, loss=0.02)
network.connect()
network.client.write(...)
network.run(until=lambda: ...)
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

from crumble_netd.header import tcp
from crumble_netd.tcp.congestion import Congestion
from crumble_netd.tcp.connection import Connection
from crumble_netd.tcp.outputs import Data, Ended, Established, Freed, PeerClosed, Send
from crumble_netd.tcp.settings import DEFAULTS, Settings

SEND_LIMIT = 1 << 20


class Host:
    """One end: an application that writes all of `to_send`, reads all, and closes when it has written."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self.name = name
        self.to_send = b""
        self.sent = 0
        self.room = SEND_LIMIT
        self.received = bytearray()
        self.unread = 0
        self.reading = True
        self.established = self.peer_closed = False
        self.ended = ""
        self.close_when_done = False

    def work(self, now: float) -> None:
        """What the application does when it gets its turn."""
        while self.established and self.room and self.sent < len(self.to_send) and not self.ended:
            piece = self.to_send[self.sent : self.sent + min(self.room, 60_000)]
            self.sent += len(piece)
            self.room -= len(piece)
            self.connection.write(piece, now)
        if self.close_when_done and self.established and self.sent == len(self.to_send):
            self.connection.shutdown(now)
        if self.reading and self.unread:
            count, self.unread = self.unread, 0
            self.connection.consumed(count, now)


class TcpNetwork:
    """Probabilities a packet: loss, duplicate. delay, jitter: seconds, one way. iss: of client and server."""

    def __init__(
        self,
        seed: int = 0,
        *,
        loss: float = 0.0,
        duplicate: float = 0.0,
        delay: float = 0.01,
        jitter: float = 0.0,
        settings: Settings = DEFAULTS,
        control: Congestion | None = None,
        passive: bool = True,
        strip: Callable[[tcp.Segment], tcp.Segment] = lambda segment: segment,
        iss: tuple[int, int] = (0xFFFFFF00, 77),
    ) -> None:
        self.random = random.Random(seed)
        self.loss, self.duplicate, self.delay, self.jitter = loss, duplicate, delay, jitter
        self.now = 1000.0
        self.client = Host(Connection(iss[0], settings, control), "client")
        self.server = Host(Connection(iss[1], settings, control), "server")
        self.packets = 0
        self.strip = strip
        self._passive = passive
        self._flights: list[tuple[float, int, Host, tcp.Segment]] = []
        self._order = itertools.count()

    def open(self) -> None:
        """The client's SYN goes out."""
        self.client.connection.open(self.now)
        self.collect(self.client)

    def run(self, until: Callable[[], bool], limit: float = 600.0) -> bool:
        """Lets time pass until `until()`, at most `limit` seconds of it; whether it came true."""
        end = self.now + limit
        while not until():
            due = [self._flights[0][0]] if self._flights else []
            due += [at for host in self.hosts() if (at := host.connection.deadline())]
            if not due or min(due) > end:
                return until()
            self.now = max(self.now, min(due))
            self.step()
        return True

    def hosts(self) -> tuple[Host, Host]:
        """Both ends."""
        return self.client, self.server

    def step(self) -> None:
        """Everything that is due now."""
        while self._flights and self._flights[0][0] <= self.now:
            _, _, host, segment = heapq.heappop(self._flights)
            self._arrive(host, segment)
        for host in self.hosts():
            if 0 < host.connection.deadline() <= self.now:
                host.connection.tick(self.now)
            self.collect(host)

    def _arrive(self, host: Host, segment: tcp.Segment) -> None:
        connection = host.connection
        opening = segment.flags & (tcp.SYN | tcp.ACK) == tcp.SYN
        waiting = self._passive and host is self.server and connection.block.state == 0
        if opening and waiting and not host.ended:
            connection.accept(segment, self.now)
            return
        connection.arrive(segment, self.now)
        self.collect(host, flush=self.random.random() < 0.7)

    def collect(self, host: Host, *, flush: bool = True) -> None:
        """Carries out what a connection wants."""
        for _ in range(1000):
            if flush:
                host.connection.flush(self.now)
            outputs = host.connection.take()
            for output in outputs:
                self._do(host, output)
            host.work(self.now)
            if not outputs and not host.connection.outputs:
                return
        raise AssertionError("the connection never rests")

    def _do(self, host: Host, output: object) -> None:
        if isinstance(output, Send):
            self._transmit(host, output)
        elif isinstance(output, Data):
            host.received += output.data
            host.unread += len(output.data)
        elif isinstance(output, Established):
            host.established = True
        elif isinstance(output, PeerClosed):
            host.peer_closed = True
        elif isinstance(output, Freed):
            host.room += output.size
        elif isinstance(output, Ended):
            assert not host.ended, "ended twice"
            host.ended = output.reason

    def _transmit(self, host: Host, send: Send) -> None:
        """Cuts, as a device would, encodes, decodes, and puts on the wire, or not."""
        data = b"".join(send.payload)
        size = send.mss or max(len(data), 1)
        other = self.server if host is self.client else self.client
        for at in range(0, max(len(data), 1), size):
            piece = data[at : at + size]
            last = at + size >= len(data)
            flags = send.flags if last else send.flags & ~(tcp.FIN | tcp.PSH)
            seq = (send.seq + at) & 0xFFFFFFFF
            options = tcp.build_options(send.options)
            wire = tcp.build(1, 2, seq, send.ack, flags, send.window, options) + piece
            segment = self.strip(tcp.parse(memoryview(wire), 0, trusted=True))
            self.packets += 1
            copies = 2 if self.random.random() < self.duplicate else 1
            for _ in range(copies):
                if self.random.random() >= self.loss:
                    when = self.now + self.delay + self.random.random() * self.jitter
                    heapq.heappush(self._flights, (when, next(self._order), other, segment))
