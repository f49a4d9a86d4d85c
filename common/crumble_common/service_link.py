"""The ways a service may have to its supervisor: a real one comes late (link.py), or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from crumble_common import log

if TYPE_CHECKING:
    from crumble_common import wire
    from crumble_common.eventloop import EventLoop
    from crumble_common.messages import service as messages


class Sender(Protocol):
    """Where replies and events go."""

    def send(self, envelope: wire.Envelope) -> None: ...


class Link(Sender, Protocol):
    """The way to the supervisor."""

    def heartbeat(self, beat: messages.Heartbeat) -> None: ...

    def attach(self, loop: EventLoop, serve: Callable[[wire.Envelope], None]) -> None: ...

    def close(self) -> None: ...


class NoLink:
    """Standalone: nobody to talk to."""

    def send(self, envelope: wire.Envelope) -> None:
        log.debug("event", body=envelope.body)

    def heartbeat(self, beat: messages.Heartbeat) -> None: ...

    def attach(self, loop: EventLoop, serve: Callable[[wire.Envelope], None]) -> None: ...

    def close(self) -> None: ...


class LateLink:
    """A link that is made when threads may be; until then what is sent waits."""

    def __init__(self, connect: Callable[[], Link]) -> None:
        self._connect = connect
        self._link: Link | None = None
        self._waiting: list[wire.Envelope] = []

    def connect(self) -> Link:
        """Makes the link, once, and sends what waited; UsageError when there is no address."""
        if self._link is None:
            self._link = self._connect()
            for envelope in self._waiting:
                self._link.send(envelope)
        return self._link

    def send(self, envelope: wire.Envelope) -> None:
        if self._link is None:
            self._waiting.append(envelope)
        else:
            self._link.send(envelope)

    def heartbeat(self, beat: messages.Heartbeat) -> None:
        if self._link is not None:
            self._link.heartbeat(beat)

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
