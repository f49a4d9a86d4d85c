"""Clients on a plain Unix socket: the same frames, each behind its length (u32, little-endian).

For what must start fast (`crumble ps` would spend most of its time on importing ZeroMQ), and for
leases: ZeroMQ does not say when a peer is gone, but the kernel closes a stream however its owner ends.
A `Lease` ties a ZeroMQ client to the stream; what it did not detach ends with it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crumble_common import log, wire
from crumble_common.errors import CrumbleError, UsageError
from crumble_common.eventloop import EventLoop

LENGTH = struct.Struct("<I")
# What may wait for a client that does not read; it is cut off then.
_QUEUE = 64 << 20
_READ = 64 << 10


class StreamClient:
    """One connection; a listener, like a ZeroMQ client."""

    def __init__(self, owner: Streams, connection: socket.socket) -> None:
        self.connection = connection
        self.lease = b""
        self._owner = owner
        self._received = bytearray()
        self._queue = bytearray()

    def deliver(self, event: Any, source: str) -> None:
        """Sends an event."""
        self._send(wire.Envelope(event, to=source))

    def answer(self, request: int, body: Any) -> None:
        """Answers a request."""
        self._send(wire.Envelope(body, reply_to=request))

    def refuse(self, request: int, error: CrumbleError) -> None:
        """Answers a request with an error."""
        self._send(wire.Envelope(reply_to=request, error=error))

    def received(self) -> bool:
        """Takes what came; False when this connection is over."""
        try:
            data = self.connection.recv(_READ)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        self._received += data
        return bool(data) and self._frames()

    def _frames(self) -> bool:
        while len(self._received) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._received)
            if length > wire.MAX_FRAME:
                return False
            end = LENGTH.size + length
            if len(self._received) < end:
                break
            frame = bytes(self._received[LENGTH.size : end])
            del self._received[:end]
            self._owner.message(self, frame)
        return True

    def _send(self, envelope: wire.Envelope) -> None:
        frame = wire.encode(envelope)
        if len(self._queue) > _QUEUE:
            return
        self._queue += LENGTH.pack(len(frame)) + frame
        self.write()

    def write(self) -> None:
        """Writes what waits, as far as it goes."""
        with contextlib.suppress(BlockingIOError, OSError):
            del self._queue[: self.connection.send(self._queue)]
        self._owner.wants_write(self, bool(self._queue))


class Streams:
    """The listening socket and its connections."""

    def __init__(
        self,
        loop: EventLoop,
        path: Path,
        on_message: Callable[[Any, wire.Envelope], None],
        on_gone: Callable[[StreamClient], None],
    ) -> None:
        self._loop = loop
        self._on_message = on_message
        self._on_gone = on_gone
        self._clients: dict[int, StreamClient] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.setblocking(False)
        self._listener.bind(os.fspath(path))
        self._listener.listen(64)
        loop.add_fd(self._listener.fileno(), "listen", self._accept)

    def message(self, client: StreamClient, frame: bytes) -> None:
        """One frame of a client."""
        try:
            self._on_message(client, wire.decode(frame))
        except wire.WireError as problem:
            if problem.request:
                error = UsageError(f"Malformed message: {problem}.", code="wire.malformed")
                client.refuse(problem.request, error)

    def wants_write(self, client: StreamClient, wanted: bool) -> None:
        """Whether a client has something queued."""
        fd = client.connection.fileno()
        if fd in self._clients:
            self._loop.set_writable(fd, "stream", client.write if wanted else None)

    def close(self) -> None:
        """Ends every connection."""
        self._loop.remove_fd(self._listener.fileno())
        self._listener.close()
        for client in tuple(self._clients.values()):
            self._drop(client)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            client = StreamClient(self, connection)
            self._clients[connection.fileno()] = client
            self._loop.add_fd(connection.fileno(), "stream", lambda: self._readable(client))

    def _readable(self, client: StreamClient) -> None:
        if not client.received():
            self._drop(client)
            self._on_gone(client)

    def _drop(self, client: StreamClient) -> None:
        fd = client.connection.fileno()
        self._loop.remove_fd(fd)
        del self._clients[fd]
        client.connection.close()
        log.debug("stream closed", lease=client.lease.hex())
