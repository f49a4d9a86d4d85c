"""Host sockets, one a flow: what `loop.py` does the stack's commands with. All non-blocking. Streams are in `host_streams.py`.

Each tells what happens to it by events, through `tell`; none of them decides anything.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Protocol

from crumble_common.eventloop import EventLoop
from crumble_netd import events
from crumble_netd.commands import Kind

Tell = Callable[[events.Event], None]
SocketAddress = tuple[str, int] | tuple[str, int, int, int]

_CHUNK = 1 << 16
# Datagrams of one socket until others get their turn.
_DATAGRAMS = 32


def family(address: bytes) -> int:
    """The socket family of an address."""
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def socket_address(address: bytes, port: int) -> SocketAddress:
    """As the socket module wants it."""
    if len(address) == 4:
        return socket.inet_ntoa(address), port
    return socket.inet_ntop(socket.AF_INET6, address), port, 0, 0


def unpacked(address: SocketAddress) -> tuple[bytes, int]:
    """The reverse. IPv4 peers of an IPv6 socket are IPv4 peers."""
    kind = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    raw = socket.inet_pton(kind, address[0].partition("%")[0])
    if raw[:12] == bytes(10) + b"\xff\xff":
        raw = raw[12:]
    return raw, address[1]


class Elsewhere(Protocol):
    """What reads a socket in its owner's place."""

    def read(self) -> None:
        """It is readable."""

    def note(self) -> None:
        """Its flow is to be up to date."""

    def recall(self) -> None:
        """It is to be left alone from now on."""


class Datagrams:
    """A connected UDP or ping socket. lent: what reads it. served: datagrams, either way, by
    this one.
    """

    def __init__(self, loop: EventLoop, flow: int, sock: socket.socket, tell: Tell) -> None:
        self.flow = flow
        self.lent: Elsewhere | None = None
        self.served = 0
        self._loop, self._socket, self.tell = loop, sock, tell
        self._fd = sock.fileno()
        sock.setblocking(False)
        loop.add_fd(self._fd, "host datagrams", self._read)

    @property
    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._fd

    def watch(self, *, wanted: bool) -> None:
        """Has the loop wait for datagrams, or not."""
        self._loop.set_readable(self._fd, "host datagrams", self._read if wanted else None)

    def _read(self) -> None:
        if self.lent is not None:
            self.lent.read()
            return
        for _ in range(_DATAGRAMS):
            if self._fd < 0:
                return
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError as error:
                self.tell(events.Failed(self.flow, error.errno or errno.EIO))
                return
            self.served += 1
            self.tell(events.Received(self.flow, data))

    def send(self, data: bytes | memoryview) -> None:
        """Sends one; the network may lose it, so may a full socket."""
        self.served += 1
        try:
            self._socket.send(data)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                self.tell(events.Failed(self.flow, error.errno or errno.EIO))

    def shutdown(self) -> None:
        """Datagrams have no end."""

    def allow(self, size: int) -> None:
        """Datagrams need no credit."""

    def close(self, *, reset: bool) -> None:  # noqa: ARG002  as Stream has it
        """Closes the socket."""
        if self.lent is not None:
            self.lent.recall()
        if self._fd >= 0:
            self._loop.remove_fd(self._fd)
            self._socket.close()
            self._fd = -1


class Peer:
    """The host's end of a flow that came through a UDP forward."""

    def __init__(self, flow: int, forward: UdpForward, peer: SocketAddress) -> None:
        self.flow = flow
        self._forward, self._peer = forward, peer

    def send(self, data: bytes | memoryview) -> None:
        """An answer."""
        self._forward.send(data, self._peer)

    def shutdown(self) -> None:
        """Datagrams have no end."""

    def allow(self, size: int) -> None:
        """Datagrams need no credit."""

    def close(self, *, reset: bool) -> None:  # noqa: ARG002  as Stream has it
        """The peer is a new one when it comes again."""
        self._forward.forget(self._peer)


class TcpForward:
    """A listening socket. accepted: gets each connection and its peer."""

    def __init__(
        self,
        loop: EventLoop,
        sock: socket.socket,
        accepted: Callable[[socket.socket, tuple[bytes, int]], None],
    ) -> None:
        self._loop, self._socket, self._accepted = loop, sock, accepted
        self._stopped = False
        sock.setblocking(False)
        loop.add_fd(sock.fileno(), "forward tcp", self._readable)

    def _readable(self) -> None:
        for _ in range(_DATAGRAMS):
            try:
                connection, peer = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._rest()
                return
            self._accepted(connection, unpacked(peer))

    def _rest(self) -> None:
        """Out of descriptors: asks again when some may have been freed, instead of all the time."""
        self._loop.remove_fd(self._socket.fileno())
        self._loop.call_later(0.1, self._again)

    def _again(self) -> None:
        if not self._stopped:
            self._loop.add_fd(self._socket.fileno(), "forward tcp", self._readable)

    def close(self) -> None:
        """Listens no more; connections stay."""
        self._stopped = True
        self._loop.remove_fd(self._socket.fileno())
        self._socket.close()


class UdpForward:
    """A bound socket and the peers that have flows. incoming: a datagram from one without."""

    def __init__(
        self,
        loop: EventLoop,
        sock: socket.socket,
        incoming: Callable[[SocketAddress, bytes], None],
        tell: Tell,
    ) -> None:
        self._loop, self._socket = loop, sock
        self._incoming, self._tell = incoming, tell
        self._flows: dict[SocketAddress, int] = {}
        sock.setblocking(False)
        loop.add_fd(sock.fileno(), "forward udp", self._readable)

    def _readable(self) -> None:
        for _ in range(_DATAGRAMS):
            try:
                data, peer = self._socket.recvfrom(_CHUNK)
            except OSError:  # nothing there, or an ICMP error about some peer
                return
            flow = self._flows.get(peer)
            if flow is None:
                self._incoming(peer, data)
            else:
                self._tell(events.Received(flow, data))

    def adopt(self, peer: SocketAddress, flow: int) -> Peer:
        """The peer has a flow now."""
        self._flows[peer] = flow
        return Peer(flow, self, peer)

    def forget(self, peer: SocketAddress) -> None:
        """And has none any more."""
        self._flows.pop(peer, None)

    def send(self, data: bytes | memoryview, peer: SocketAddress) -> None:
        """A datagram to a peer."""
        try:
            self._socket.sendto(data, peer)
        except OSError:
            pass  # lost, as datagrams may be

    def close(self) -> None:
        """Listens no more."""
        self._loop.remove_fd(self._socket.fileno())
        self._socket.close()


def connect_datagrams(kind: Kind, address: bytes, port: int) -> socket.socket:
    """A UDP or ping socket for a peer; raises OSError."""
    protocol = 0
    if kind == "icmp":
        protocol = socket.IPPROTO_ICMP if len(address) == 4 else socket.IPPROTO_ICMPV6
    sock = socket.socket(family(address), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, protocol)
    try:
        sock.setblocking(False)
        sock.connect(socket_address(address, port))
    except OSError:
        sock.close()
        raise
    return sock


def listen_at(kind: Kind, address: bytes, port: int) -> socket.socket:
    """A bound socket for a forward, listening when it is TCP; raises OSError."""
    style = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(family(address), style | socket.SOCK_CLOEXEC)
    try:
        if kind == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if len(address) == 16:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(socket_address(address, port))
        if kind == "tcp":
            sock.listen(256)
    except OSError:
        sock.close()
        raise
    return sock
