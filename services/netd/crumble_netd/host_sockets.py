"""Host sockets, one a flow: what `loop.py` does the stack's commands with. All non-blocking.

Each tells what happens to it by events, through `tell`; none of them decides anything.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable

from crumble_common.eventloop import EventLoop
from crumble_netd import events
from crumble_netd.addresses import text
from crumble_netd.commands import Kind

Tell = Callable[[events.Event], None]
SocketAddress = tuple[str, int] | tuple[str, int, int, int]

_CHUNK = 1 << 16
# Reads of one socket, and datagrams, until others get their turn.
_READS, _DATAGRAMS = 4, 32
# What a peer may take to read what was left when its connection had ended, s.
LINGER = 60.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def family(address: bytes) -> int:
    """The socket family of an address."""
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def socket_address(address: bytes, port: int) -> SocketAddress:
    """As the socket module wants it."""
    return (text(address), port) if len(address) == 4 else (text(address), port, 0, 0)


def unpacked(address: SocketAddress) -> tuple[bytes, int]:
    """The reverse. IPv4 peers of an IPv6 socket are IPv4 peers."""
    kind = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    raw = socket.inet_pton(kind, address[0].partition("%")[0])
    if raw[:12] == bytes(10) + b"\xff\xff":
        raw = raw[12:]
    return raw, address[1]


class Stream:
    """A TCP socket: connecting, then read as far as credit goes and written as far as it takes."""

    def __init__(
        self, loop: EventLoop, flow: int, sock: socket.socket, tell: Tell, *, connecting: bool
    ) -> None:
        self.flow = flow
        self._loop, self._socket, self._tell = loop, sock, tell
        self._fd = sock.fileno()
        self._connecting = connecting
        self._credit = 0
        self._queue: deque[memoryview] = deque()
        self._shutdown = self._shut = self._eof = self._closing = False
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if connecting:
            loop.set_writable(self._fd, "host connect", self._connected)

    @classmethod
    def connect(cls, loop: EventLoop, flow: int, address: bytes, port: int, tell: Tell) -> Stream:
        """Begins to connect; raises OSError."""
        sock = socket.socket(family(address), socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            code = sock.connect_ex(socket_address(address, port))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except OSError:
            sock.close()
            raise
        return cls(loop, flow, sock, tell, connecting=True)

    def _connected(self) -> None:
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._loop.set_writable(self._fd, "host write", None)
        if code:
            self._fail(code)
            return
        self._connecting = False
        self._tell(events.Connected(self.flow))
        self._write()
        self._want()

    def _fail(self, code: int) -> None:
        self._end()
        if not self._closing:
            self._tell(events.Failed(self.flow, code))

    def send(self, data: bytes | memoryview) -> None:
        """Writes, now or when there is room."""
        self._queue.append(memoryview(data))
        if len(self._queue) == 1 and not self._connecting:
            self._write()

    def _write(self) -> None:
        took = 0
        try:
            while self._queue:
                piece = self._queue[0]
                count = self._socket.send(piece)
                took += count
                if count < len(piece):
                    self._queue[0] = piece[count:]
                    break
                self._queue.popleft()
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(error.errno or errno.EIO)
            return
        if took and not self._closing:
            self._tell(events.Took(self.flow, took))
        self._loop.set_writable(self._fd, "host write", self._write if self._queue else None)
        if not self._queue:
            self._drained()

    def _drained(self) -> None:
        if self._shutdown and not self._shut:
            self._shut = True
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    self._fail(error.errno or errno.EIO)
                    return
        if self._closing:
            self._end()

    def shutdown(self) -> None:
        """No more bytes follow."""
        self._shutdown = True
        if not self._queue and not self._connecting:
            self._drained()

    def allow(self, size: int) -> None:
        """So many bytes more may be read."""
        self._credit += size
        self._want()

    def _want(self) -> None:
        if self._fd >= 0:
            wanted = self._credit > 0 and not self._eof and not self._connecting
            self._loop.set_readable(self._fd, "host read", self._read if wanted else None)

    def _read(self) -> None:
        for _ in range(_READS):
            if self._credit <= 0 or self._fd < 0:
                break
            try:
                data = self._socket.recv(min(self._credit, _CHUNK))
            except BlockingIOError:
                break
            except OSError as error:
                self._fail(error.errno or errno.EIO)
                return
            if not data:
                self._eof = True
                self._tell(events.Closed(self.flow))
                break
            self._credit -= len(data)
            self._tell(events.Received(self.flow, data))
            if len(data) < _CHUNK:
                break
        self._want()

    def close(self, *, reset: bool) -> None:
        """The end: at once, or when what is left has been written."""
        self._closing = True
        if reset or not self._queue or self._connecting:
            self._end(reset=reset)
        elif self._fd >= 0:
            self._shutdown = True
            self._loop.set_readable(self._fd, "host read", None)
            self._loop.call_later(LINGER, lambda: self._end(reset=True))

    def _end(self, *, reset: bool = False) -> None:
        if self._fd < 0:
            return
        self._loop.remove_fd(self._fd)
        if reset and not self._connecting:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._socket.close()
        self._fd = -1


class Datagrams:
    """A connected UDP or ping socket."""

    def __init__(
        self, loop: EventLoop, flow: int, kind: Kind, address: bytes, port: int, tell: Tell
    ) -> None:
        """Raises OSError."""
        self.flow = flow
        self._loop, self._tell = loop, tell
        protocol = 0
        if kind == "icmp":
            protocol = socket.IPPROTO_ICMP if len(address) == 4 else socket.IPPROTO_ICMPV6
        self._socket = socket.socket(
            family(address), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, protocol
        )
        try:
            self._socket.setblocking(False)
            self._socket.connect(socket_address(address, port))
        except OSError:
            self._socket.close()
            raise
        self._fd = self._socket.fileno()
        loop.add_fd(self._fd, f"host {kind}", self._read)

    def _read(self) -> None:
        for _ in range(_DATAGRAMS):
            if self._fd < 0:
                return
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError as error:
                self._tell(events.Failed(self.flow, error.errno or errno.EIO))
                return
            self._tell(events.Received(self.flow, data))

    def send(self, data: bytes | memoryview) -> None:
        """Sends one; the network may lose it, so may a full socket."""
        try:
            self._socket.send(data)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                self._tell(events.Failed(self.flow, error.errno or errno.EIO))

    def shutdown(self) -> None:
        """Datagrams have no end."""

    def allow(self, size: int) -> None:
        """Datagrams need no credit."""

    def close(self, *, reset: bool) -> None:  # noqa: ARG002  as Stream has it
        """Closes the socket."""
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


HostSocket = Stream | Datagrams | Peer


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
