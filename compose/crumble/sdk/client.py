"""One connection to a supervisor: requests with deadlines, and events.

Everything runs in the thread of the event loop it is given; `sdk.session` wraps it for other threads,
the CLI runs the loop itself. `connect` finds the daemon; `sdk.embedded` has the supervisor in our own
process when there is none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from crumble.sdk.wires import Wire
from crumble_common import wire
from crumble_common.errors import CrumbleError, InternalError
from crumble_common.eventloop import EventLoop, Timer
from crumble_common.messages.service import Ok  # noqa: F401  replies of every kind must be known

OnReply = Callable[[Any, CrumbleError | None], None]
OnEvent = Callable[[Any], None]


class _Pending:
    """A request on its way."""

    __slots__ = ("on_reply", "timer")

    def __init__(self, on_reply: OnReply) -> None:
        self.on_reply = on_reply
        self.timer: Timer | None = None


class Client:
    """A client over a connection, which it closes. lost: why it cannot be used any more, if so."""

    def __init__(self, loop: EventLoop, connection: Wire) -> None:
        self.loop = loop
        self._listeners: dict[str, OnEvent] = {}
        self.lost: CrumbleError | None = None
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._wire = connection
        connection.attach(loop, self._serve, self._supervisor_gone)

    def request(
        self, body: wire.Message, on_reply: OnReply, *, to: str = "", deadline: float = 0.0
    ) -> None:
        """Asks; `on_reply(body, None)` or `on_reply(None, error)` is called once."""
        if self.lost is not None:
            on_reply(None, self.lost)
            return
        number = next(self._numbers)
        envelope = wire.Envelope(body, request=number, to=to, deadline=deadline)
        try:
            frame = wire.encode(envelope)
        except CrumbleError as error:
            on_reply(None, error)
            return
        pending = self._pending[number] = _Pending(on_reply)
        if deadline:
            pending.timer = self.loop.call_later(deadline, lambda: self._late(number, deadline))
        self._wire.send(frame)

    def send(self, event: wire.Message, to: str) -> None:
        """Sends an event."""
        if self.lost is None:
            self._wire.send(wire.encode(wire.Envelope(event, to=to)))

    def listen(self, source: str, listener: OnEvent | None) -> None:
        """Who gets the events of `source` ("vm:NAME", "images"), and the error when the supervisor
        is lost; None ends it."""
        if listener is None:
            self._listeners.pop(source, None)
        else:
            self._listeners[source] = listener
            if self.lost is not None:
                listener(self.lost)

    def listen_all(self, listener: OnEvent) -> None:
        """Who gets the events that nobody else listens for."""
        self.listen("", listener)

    def call(self, body: wire.Message, *, to: str = "", deadline: float = 0.0) -> Any:
        """Asks and runs the loop until the answer is there; raises the error."""
        answers: list[tuple[Any, CrumbleError | None]] = []
        self.request(body, lambda *answer: answers.append(answer), to=to, deadline=deadline)
        while not answers:
            self.loop.step()
        answer, error = answers[0]
        if error is not None:
            raise error
        return answer

    def close(self) -> None:
        """Ends the connection; the supervisor ends what was not detached. Listeners hear nothing."""
        self._listeners.clear()
        self.lose(InternalError("The connection was closed.", code="client.closed"))

    def _supervisor_gone(self) -> None:
        self.lose(
            InternalError(
                "The supervisor has ended, and its VMs with it.",
                code="supervisor.gone",
                hint="`crumble up` starts one.",
            )
        )

    def lose(self, error: CrumbleError) -> None:
        """The supervisor is gone: everybody who waits for it gets `error`."""
        if self.lost is not None:
            return
        self.lost = error
        self._wire.close()
        for number in tuple(self._pending):
            self._resolve(number, None, error)
        for listener in tuple(self._listeners.values()):
            listener(error)

    def _serve(self, frame: bytes) -> None:
        try:
            envelope = wire.decode(frame)
        except wire.WireError as error:
            # From our own supervisor: another version of it. Nothing can be trusted to be answered.
            text = f"The supervisor speaks another language: {error}."
            hint = "`crumble down`, then `crumble up`, restarts it in this version."
            self.lose(InternalError(text, code="wire.malformed", hint=hint))
            return
        if envelope.reply_to:
            self._resolve(envelope.reply_to, envelope.body, envelope.error)
        elif listener := self._listeners.get(envelope.to) or self._listeners.get(""):
            listener(envelope.body)

    def _resolve(self, number: int, body: Any, error: CrumbleError | None) -> None:
        pending = self._pending.pop(number, None)
        if pending is None:
            return
        if pending.timer is not None:
            pending.timer.cancel()
        pending.on_reply(body, error)

    def _late(self, number: int, deadline: float) -> None:
        text = f"No answer within {deadline:g} s."
        self._resolve(number, None, InternalError(text, code="deadline"))
