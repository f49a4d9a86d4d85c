"""The SDK's connection to a supervisor, for any thread: the user's daemon, else one of our own.

A loop thread owns the client; other threads post to it and wait. One session a process is enough; it
is opened when first needed and closed when the process ends.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from crumble.sdk.client import Client, OnEvent, OnReply
from crumble.sdk.wires import StreamWire, ZmqWire
from crumble.supervisor.locate import find_daemon
from crumble_common import log, wire
from crumble_common.errors import CrumbleError, InternalError
from crumble_common.eventloop import EventLoop

if TYPE_CHECKING:
    import zmq

    from crumble.sdk.embedded import Embedded

_lock = threading.Lock()
_session: Session | None = None


class Session:
    """A client in a thread of its own."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.loop = EventLoop()
        self.loop.on_error = lambda kind, error: log.exception("bug in the SDK", error, kind=kind)
        self._zmq: zmq.Context[zmq.Socket[bytes]] | None = None
        self._embedded: Embedded | None = None
        if daemon := find_daemon():
            self._client = Client(self.loop, StreamWire(daemon))
        else:
            self._client = self._embed()
        self._thread = threading.Thread(target=self.loop.run, name="crumble-client", daemon=True)
        self._thread.start()

    @property
    def open(self) -> bool:
        """It can be used, in this process."""
        return self._client.lost is None and self.owner == os.getpid()

    def post(self, call: Callable[[], None]) -> None:
        """Runs `call` in the loop's thread, soon."""
        self.loop.call_soon_threadsafe(call)

    def call(self, body: wire.Message, *, to: str = "", deadline: float = 0.0) -> Any:
        """Asks and waits for the answer; raises the error."""
        box: SimpleQueue[tuple[Any, CrumbleError | None]] = SimpleQueue()
        self.request(body, lambda *answer: box.put(answer), to=to, deadline=deadline)
        answer, error = box.get()
        if error is not None:
            raise error
        return answer

    def request(
        self, body: wire.Message, on_reply: OnReply, *, to: str = "", deadline: float = 0.0
    ) -> None:
        """Asks; `on_reply` is called in the loop's thread."""
        if not self._thread.is_alive():
            error = InternalError(
                "The session was closed.",
                code="client.closed",
                hint="Make another VM; a forked child has no part in its parent's.",
            )
            on_reply(None, error)
        else:
            self.post(lambda: self._client.request(body, on_reply, to=to, deadline=deadline))

    def send(self, event: wire.Message, to: str) -> None:
        """Sends an event, after what was posted before."""
        self.post(lambda: self._client.send(event, to))

    def listen(self, source: str, listener: OnEvent | None) -> None:
        """Who gets the events of `source`, in the loop's thread; an error when the supervisor is
        lost. None ends it."""
        self.post(lambda: self._client.listen(source, listener))

    def close(self) -> None:
        """Ends what was started through it, and waits until nothing of it is left."""
        if self.owner != os.getpid() or not self._thread.is_alive():
            return
        if self._embedded is not None:
            self._embedded.on_end = lambda: None
            self._embedded.stop()
        self.post(self.loop.stop)
        self._thread.join()
        self._client.close()
        self.loop.close()
        if self._zmq is not None:
            self._zmq.destroy(200)

    def _embed(self) -> Client:
        import zmq

        from crumble.sdk.embedded import Embedded

        self._zmq = zmq.Context()
        self._embedded = Embedded(self._zmq)
        self._embedded.on_end = lambda: self.post(self._supervisor_ended)
        client = Client(self.loop, ZmqWire(self._zmq, self._embedded.address))
        self._embedded.start()
        return client

    def _supervisor_ended(self) -> None:
        self._client.lose(InternalError("Crumble's supervisor ended.", code="supervisor.gone"))


def session() -> Session:
    """This process's session."""
    global _session
    with _lock:
        if _session is None or not _session.open:
            _session = Session()
            atexit.register(_session.close)
        return _session
