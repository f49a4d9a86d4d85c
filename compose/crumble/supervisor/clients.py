"""The supervisor's clients: who they are, what is sent to them, and how their going away is noticed.

A client is a DEALER on our ROUTER. ZeroMQ does not say when a peer is gone, so a client that wants its
VMs and processes to end with it also connects to the lease socket and sends its identity there; the
kernel closes that connection however the client ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from crumble_common import log, wire
from crumble_common.errors import CrumbleError, UsageError
from crumble_common.eventloop import EventLoop

# Messages that may wait for a client that does not read; then events for it are dropped. What a
# process prints is bounded by credit, long before this.
_QUEUE = 10_000
_MAX_IDENTITY = 64


class Client:
    """One client, which is its identity; it is the listener of what it started."""

    def __init__(self, identity: bytes, owner: Clients) -> None:
        self.identity = identity
        self._owner = owner

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Client) and other.identity == self.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def deliver(self, event: Any, source: str) -> None:
        """Sends an event."""
        self._owner.send(self.identity, wire.Envelope(event, to=source))

    def answer(self, request: int, body: Any) -> None:
        """Answers a request."""
        self._owner.send(self.identity, wire.Envelope(body, reply_to=request))

    def refuse(self, request: int, error: CrumbleError) -> None:
        """Answers a request with an error."""
        self._owner.send(self.identity, wire.Envelope(reply_to=request, error=error))


class Clients:
    """The ROUTER that clients speak to, and their leases."""

    def __init__(
        self,
        loop: EventLoop,
        context: zmq.Context[Any],
        on_message: Callable[[Client, wire.Envelope], None],
        on_gone: Callable[[Client], None],
    ) -> None:
        self._loop = loop
        self._on_message = on_message
        self._on_gone = on_gone
        self._leases: dict[int, tuple[socket.socket, bytes]] = {}
        self._listener: socket.socket | None = None
        self._router = context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.SNDHWM, _QUEUE)
        self._router.setsockopt(zmq.RCVHWM, 0)
        self._router.setsockopt(zmq.LINGER, 500)
        loop.add_socket(self._router, "client", self._serve)

    def bind(self, address: str) -> None:
        """Takes clients at an inproc or ipc address."""
        self._router.bind(address)

    def bind_leases(self, path: Path) -> None:
        """Takes leases at a Unix socket."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.setblocking(False)
        self._listener.bind(os.fspath(path))
        self._listener.listen(64)
        self._loop.add_fd(self._listener.fileno(), "lease", self._accept)

    def send(self, identity: bytes, envelope: wire.Envelope) -> None:
        """Queues a message for a client; one that has gone or does not read does not get it."""
        try:
            self._router.send_multipart([identity, wire.encode(envelope)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.debug("client unreachable", client=identity.hex(), error=error)

    def close(self) -> None:
        """Sends what is queued and frees the sockets."""
        if self._listener is not None:
            self._loop.remove_fd(self._listener.fileno())
            self._listener.close()
        for lease, _ in self._leases.values():
            self._loop.remove_fd(lease.fileno())
            lease.close()
        self._leases.clear()
        self._loop.remove_socket(self._router)
        self._router.close()

    def _serve(self) -> None:
        identity, *frames = self._router.recv_multipart(zmq.NOBLOCK)
        client = Client(identity, self)
        try:
            envelope = wire.decode(frames[0] if len(frames) == 1 else b"")
        except wire.WireError as problem:
            if problem.request:
                error = UsageError(f"Malformed message: {problem}.", code="wire.malformed")
                client.refuse(problem.request, error)
            return
        self._on_message(client, envelope)

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError, ConnectionError):
            lease, _ = self._listener.accept()
            lease.setblocking(False)
            self._leases[lease.fileno()] = (lease, b"")
            self._loop.add_fd(lease.fileno(), "lease", lambda: self._lease_event(lease))

    def _lease_event(self, lease: socket.socket) -> None:
        try:
            data = lease.recv(_MAX_IDENTITY)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        _, identity = self._leases[lease.fileno()]
        if data and len(identity) + len(data) <= _MAX_IDENTITY:
            self._leases[lease.fileno()] = (lease, identity + data)
            return
        self._loop.remove_fd(lease.fileno())
        del self._leases[lease.fileno()]
        lease.close()
        log.info("client gone", client=identity.hex())
        self._on_gone(Client(identity, self))
