"""A service's ZeroMQ sockets: DEALER to the supervisor's ROUTER, PUB for heartbeats."""

from __future__ import annotations

from collections.abc import Callable

import zmq

from crumble_common import log, wire
from crumble_common.errors import InternalError, UsageError
from crumble_common.eventloop import EventLoop
from crumble_common.messages.service import Heartbeat

# How long the last messages may take on their way out, ms.
_LINGER = 1000
# A supervisor on the same host that does not accept within this time is gone, ms.
_CONNECT = 5000


class ControlLink:
    """Connects once, when it is made: a lost supervisor does not come back at the same address, and
    the sandbox lets no more connections be made afterwards. Nobody there: what is sent is lost.
    """

    FROM = ("CONTROL", "HEARTBEAT", "IDENTITY")

    def __init__(self, control: str, heartbeat: str, identity: str) -> None:
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, identity.encode())
        _connect(self.socket, control)
        self._beats: zmq.Socket[bytes] | None = None
        if heartbeat:
            self._beats = self._socket(zmq.PUB)
            _connect(self._beats, heartbeat)

    def send(self, envelope: wire.Envelope) -> None:
        """Queues one frame; never blocks. For a reply that cannot be sent goes the reason."""
        try:
            frame = wire.encode(envelope)
        except UsageError as error:
            if not envelope.reply_to:
                raise
            frame = wire.encode(wire.Envelope(reply_to=envelope.reply_to, error=error))
        self.socket.send(frame)

    def attach(self, loop: EventLoop, serve: Callable[[wire.Envelope], None]) -> None:
        """Serves what comes in on `loop`."""
        loop.add_socket(self.socket, "control", lambda: self.serve_one(serve))

    def serve_one(self, serve: Callable[[wire.Envelope], None]) -> None:
        """Takes one frame that is waiting; a malformed one is answered with an error."""
        try:
            envelope = wire.decode(self.socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            return
        except wire.WireError as problem:
            log.warning("malformed message", problem=problem)
            if problem.request:
                error = InternalError(f"Malformed message: {problem}.", code="wire.malformed")
                self.send(wire.Envelope(reply_to=problem.request, error=error))
            return
        serve(envelope)

    def heartbeat(self, beat: Heartbeat) -> None:
        """Publishes a heartbeat; dropped when nobody listens."""
        if self._beats is not None:
            self._beats.send(wire.encode(wire.Envelope(beat)))

    def close(self) -> None:
        """Sends what is queued, at most a second long, and ends."""
        self._context.destroy(_LINGER)

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, _LINGER)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        return socket


def _connect(socket: zmq.Socket[bytes], address: str) -> None:
    """Connects and waits until it is done: ZeroMQ does it in a thread of its own."""
    done = socket.get_monitor_socket(zmq.EVENT_CONNECTED)
    socket.connect(address)
    done.poll(_CONNECT)
    socket.disable_monitor()
