"""TCP sockets of the host, one a flow. Non-blocking; see `host_sockets.py`."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from crumble_common.eventloop import EventLoop
from crumble_netd import events
from crumble_netd.host_sockets import Tell, family, socket_address
from crumble_netd.policy import LOOPBACK4, LOOPBACK6
from crumble_netd.tcp.buffers import SendBuffer
from crumble_netd.tcp.sequence import MASK, add
from crumble_netd.tcp.settings import LARGEST

# Bytes read from one socket until others get their turn: four of the largest segments.
_CHUNK = 4 * LARGEST
# What a peer may take to read what was left when its connection had ended, s.
LINGER = 60.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

_NONE = SendBuffer(0, memoryview(b""))


class Elsewhere(Protocol):
    """What serves a socket in this module's place."""

    def recall(self) -> None:
        """It does no longer, and has said how far it came (`Stream.returned`)."""

    def read(self) -> None:
        """The socket is readable."""


class Buffers(Protocol):
    """Of the stack, for the bytes of streams."""

    def space(self, number: int, count: int) -> list[memoryview]:
        """Where bytes are read to."""

    def waiting(self, number: int) -> SendBuffer:
        """Where bytes wait that the kernel has no room for."""


class Stream:
    """A TCP socket: connecting, then read as far as credit goes and written as far as it takes.

    ended: told the flow's number when its socket, which was to be closed, is. written: bytes that the kernel has. waiting: bytes that it had no room for.
    """

    def __init__(
        self,
        loop: EventLoop,
        flow: int,
        sock: socket.socket,
        tell: Tell,
        buffers: Buffers,
        ended: Callable[[int], None],
        *,
        connecting: bool = False,
        written: int = 0,
        waiting: SendBuffer | None = None,
    ) -> None:
        self.flow = flow
        self.lent: Elsewhere | None = None
        self._loop, self._socket, self._tell = loop, sock, tell
        self._fd = sock.fileno()
        self._connecting = connecting
        self._buffers, self._ended = buffers, ended
        self._credit = 0
        self._wanted = False  # to read
        self._written = written
        self._waiting = waiting or _NONE
        self._shutdown = self._shut = self._eof = self._closing = False
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if connecting:
            loop.set_writable(self._fd, "host connect", self._connected)
        elif self._waiting.size:
            loop.set_writable(self._fd, "host write", self._write)

    @property
    def fileno(self) -> int:
        """The socket's descriptor; -1 when it is closed."""
        return self._fd

    # While it is lent.

    @property
    def lendable(self) -> bool:
        """It is read and written, and nothing else."""
        special = self._connecting or self._eof or self._closing or self._shutdown
        return self._fd >= 0 and not special and not self._waiting.size

    @property
    def credit(self) -> int:
        """Bytes that may be read."""
        return self._credit

    @property
    def watched(self) -> bool:
        """The loop waits for bytes."""
        return self._wanted

    def watch(self, wanted: bool) -> None:
        """Has the loop wait for bytes, or not."""
        self._wanted = wanted
        self._loop.set_readable(self._fd, "host read", self.read if wanted else None)

    def returned(self, written: int, credit: int) -> None:
        """It is lent no longer. written: since it was."""
        self._written += written
        self._credit = credit
        self._want()

    def _recall(self) -> None:
        if self.lent is not None:
            self.lent.recall()

    # What it does.

    def _connected(self) -> None:
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._loop.set_writable(self._fd, "host write", None)
        if code:
            self.fail(code)
            return
        self._connecting = False
        self._tell(events.Connected(self.flow))
        self._write()
        self._want()

    def fail(self, code: int) -> None:
        """The connection broke."""
        self._end()
        if not self._closing:
            self._tell(events.Failed(self.flow, code))

    def send(self, data: bytes | memoryview) -> None:
        """Writes, now or when there is room."""
        self._recall()
        took = 0
        if not self._waiting.size and not self._connecting:
            try:
                took = self._socket.send(data)
            except BlockingIOError:
                pass
            except OSError as error:
                self.fail(error.errno or errno.EIO)
                return
            self._written += took
        if took < len(data):
            self._wait(memoryview(data)[took:])
        if took and not self._closing:
            self._tell(events.Took(self.flow, took))

    def _wait(self, data: memoryview) -> None:
        """Keeps bytes until there is room for them."""
        if self._waiting is _NONE:
            self._waiting = self._buffers.waiting(self.flow)
        if not self._waiting.size:
            self._waiting.start = self._written & MASK
        self._waiting.append(data)
        if not self._connecting:
            self._loop.set_writable(self._fd, "host write", self._write)

    def _write(self) -> None:
        waiting, took = self._waiting, 0
        try:
            while waiting.size:
                count = self._socket.send(waiting.peek(waiting.start, waiting.size)[0])
                took += waiting.discard(add(waiting.start, count))
                self._written += count
        except BlockingIOError:
            pass
        except OSError as error:
            self.fail(error.errno or errno.EIO)
            return
        if took and not self._closing:
            self._tell(events.Took(self.flow, took))
        if self._fd >= 0:
            self._loop.set_writable(self._fd, "host write", self._write if waiting.size else None)
        if not waiting.size:
            self._drained()

    def _drained(self) -> None:
        if self._shutdown and not self._shut and self._fd >= 0:
            self._shut = True
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    self.fail(error.errno or errno.EIO)
                    return
        if self._closing:
            self._end()

    def shutdown(self) -> None:
        """No more bytes follow."""
        self._recall()
        self._shutdown = True
        if not self._waiting.size and not self._connecting:
            self._drained()

    def allow(self, size: int) -> None:
        """So many bytes more may be read."""
        self._recall()
        self._credit += size
        self._want()

    def _want(self) -> None:
        if self._fd >= 0:
            wanted = self._credit > 0 and not self._eof and not self._connecting
            if wanted != self._wanted:
                self.watch(wanted)

    def read(self) -> None:
        """The socket is readable, it seems."""
        if self.lent is not None:
            self.lent.read()
            return
        try:
            self._take(min(self._credit, _CHUNK))
        except BlockingIOError:
            pass
        except OSError as error:
            self.fail(error.errno or errno.EIO)
            return
        self._want()

    def _take(self, wanted: int) -> None:
        """Reads at most `wanted` bytes."""
        space = self._buffers.space(self.flow, wanted)
        if len(space) == 1:
            size = self._socket.recv_into(space[0])
        elif space:
            size = self._socket.recvmsg_into(space)[0]
        else:
            data = self._socket.recv(wanted)
            size = len(data)
        if not size:
            self._eof = True
            self._tell(events.Closed(self.flow))
            return
        self._credit -= size
        self._tell(events.Filled(self.flow, size) if space else events.Received(self.flow, data))

    def close(self, *, reset: bool) -> None:
        """The end: at once, or when what is left has been written."""
        self._recall()
        self._closing = True
        if self._fd < 0:
            self._ended(self.flow)
        elif reset or not self._waiting.size or self._connecting:
            self._end(reset=reset)
        else:
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
        if self._closing:
            self._ended(self.flow)


def connect(address: bytes, port: int) -> tuple[socket.socket, bool]:
    """A socket that begins to connect, and whether it has; raises OSError."""
    kind = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    sock = socket.socket(family(address), kind)
    try:
        to = socket_address(address, port)
        code = sock.connect_ex(to)
        if code == errno.EINPROGRESS and address in (LOOPBACK4, LOOPBACK6):
            code = sock.connect_ex(to)  # there it took no time
        if code not in (0, errno.EINPROGRESS, errno.EALREADY):
            raise OSError(code, os.strerror(code))
    except OSError:
        sock.close()
        raise
    return sock, code == 0
