"""How frames travel between a client and its supervisor: a plain Unix stream to the daemon, ZeroMQ in
our own process. The daemon's stream needs no ZeroMQ, whose import is half of what a command takes.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from crumble.supervisor.locate import is_locked
from crumble_common import wire
from crumble_common.errors import InternalError
from crumble_common.eventloop import EventLoop

if TYPE_CHECKING:
    import zmq

_LENGTH = struct.Struct("<I")
_READ = 256 << 10
# A killed supervisor may lose its connections before its lock: waited for so long, looking so often, s.
_DYING = 5.0
_LOOK = 0.01


class Wire(Protocol):
    """A connection."""

    def attach(
        self, loop: EventLoop, on_frame: Callable[[bytes], None], on_gone: Callable[[], None]
    ) -> None:
        """Serves what comes in on `loop`."""

    def send(self, frame: bytes) -> None:
        """Sends a frame; to a supervisor that is gone it is lost."""

    def close(self) -> None:
        """Ends it."""


class StreamWire:
    """The daemon's plain socket: the supervisor notices when it closes, however we end."""

    def __init__(self, daemon: str) -> None:
        self._loop: EventLoop | None = None
        self._daemon = daemon
        self._received = bytearray()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(f"{daemon}/stream")
        except OSError as error:
            self._socket.close()
            raise InternalError(
                f"The supervisor does not answer: {error.strerror}.",
                code="supervisor.gone",
                hint="`crumble down`, then `crumble up`, restarts it.",
            ) from error

    def attach(
        self, loop: EventLoop, on_frame: Callable[[bytes], None], on_gone: Callable[[], None]
    ) -> None:
        """Serves what comes in on `loop`."""
        self._loop, self._on_frame, self._on_gone = loop, on_frame, on_gone
        loop.add_fd(self._socket.fileno(), "supervisor", self._readable)

    def send(self, frame: bytes) -> None:
        """Waits until the supervisor has taken it: it always does, soon."""
        with contextlib.suppress(OSError):
            self._socket.sendall(_LENGTH.pack(len(frame)) + frame)

    def close(self) -> None:
        """Ends the connection."""
        if self._loop is not None:
            self._loop.remove_fd(self._socket.fileno())
            self._loop = None
        self._socket.close()

    def _readable(self) -> None:
        data = b""
        with contextlib.suppress(ConnectionError):
            try:
                data = self._socket.recv(_READ, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
        if not data:
            assert self._loop is not None
            self._loop.remove_fd(self._socket.fileno())
            self._buried(self._loop.now() + _DYING)
            return
        self._received += data
        while self._loop is not None and (frame := self._next()) is not None:
            self._on_frame(frame)

    def _buried(self, deadline: float) -> None:
        """Says that it is gone when its lock is, too: who goes on must not find it while it dies."""
        loop = self._loop
        if loop is None:
            return
        with contextlib.suppress(OSError):
            if loop.now() < deadline and is_locked(self._daemon):
                loop.call_later(_LOOK, lambda: self._buried(deadline))
                return
        self._on_gone()

    def _next(self) -> bytes | None:
        if len(self._received) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._received)
        if length > wire.MAX_FRAME:
            self._on_gone()
            return None
        end = _LENGTH.size + length
        if len(self._received) < end:
            return None
        frame = bytes(self._received[_LENGTH.size : end])
        del self._received[:end]
        return frame


class ZmqWire:
    """A DEALER on a supervisor's ROUTER, which may be a thread of ours."""

    def __init__(self, context: zmq.Context[Any], address: str) -> None:
        import zmq

        self._loop: EventLoop | None = None
        self._again = zmq.Again
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 200)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(address)

    def attach(
        self,
        loop: EventLoop,
        on_frame: Callable[[bytes], None],
        on_gone: Callable[[], None],  # noqa: ARG002  ZeroMQ does not say so
    ) -> None:
        """Serves what comes in on `loop`."""
        self._loop, self._on_frame = loop, on_frame
        loop.add_socket(self.socket, "supervisor", self._serve)

    def send(self, frame: bytes) -> None:
        """Queues it; a supervisor that has ended does not get it."""
        with contextlib.suppress(self._again):  # its end is told by who runs it
            self.socket.send(frame, 1)  # ZMQ_NOBLOCK

    def close(self) -> None:
        """Frees the socket."""
        if self._loop is not None:
            self._loop.remove_socket(self.socket)
            self._loop = None
            self.socket.close()

    def _serve(self) -> None:
        try:
            frame = self.socket.recv(1)  # ZMQ_NOBLOCK
        except self._again:
            return
        self._on_frame(frame)
