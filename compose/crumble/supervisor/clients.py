"""The supervisor's clients on ZeroMQ: DEALERs on our ROUTER."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import zmq

from crumble_common import log, wire
from crumble_common.errors import CrumbleError, UsageError
from crumble_common.eventloop import EventLoop

# Messages that may wait for a client that does not read; then events for it are dropped. What a
# process prints is bounded by credit, long before this.
_QUEUE = 10_000


class Client(Protocol):
    """Whoever asks: it gets answers, and is the listener of what it started."""

    def deliver(self, event: Any, source: str) -> None: ...

    def answer(self, request: int, body: Any) -> None: ...

    def refuse(self, request: int, error: CrumbleError) -> None: ...


class ZmqClient:
    """One client, which is its identity."""

    def __init__(self, identity: bytes, owner: Clients) -> None:
        self.identity = identity
        self._owner = owner

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZmqClient) and other.identity == self.identity

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
    """The ROUTER that clients speak to."""

    def __init__(
        self,
        loop: EventLoop,
        context: zmq.Context[Any],
        on_message: Callable[[Any, wire.Envelope], None],
    ) -> None:
        self._loop = loop
        self._on_message = on_message
        self._router = context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.SNDHWM, _QUEUE)
        self._router.setsockopt(zmq.RCVHWM, 0)
        self._router.setsockopt(zmq.LINGER, 500)
        loop.add_socket(self._router, "client", self._serve)

    def bind(self, address: str) -> None:
        """Takes clients at an inproc or ipc address."""
        self._router.bind(address)

    def client(self, identity: bytes) -> ZmqClient:
        """The client with an identity."""
        return ZmqClient(identity, self)

    def send(self, identity: bytes, envelope: wire.Envelope) -> None:
        """Queues a message for a client; one that has gone or does not read does not get it."""
        try:
            self._router.send_multipart([identity, wire.encode(envelope)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.debug("client unreachable", client=identity.hex(), error=error)

    def close(self) -> None:
        """Sends what is queued and frees the socket."""
        self._loop.remove_socket(self._router)
        self._router.close()

    def _serve(self) -> None:
        identity, *frames = self._router.recv_multipart(zmq.NOBLOCK)
        client = self.client(identity)
        try:
            envelope = wire.decode(frames[0] if len(frames) == 1 else b"")
        except wire.WireError as problem:
            if problem.request:
                error = UsageError(f"Malformed message: {problem}.", code="wire.malformed")
                client.refuse(problem.request, error)
            return
        self._on_message(client, envelope)
