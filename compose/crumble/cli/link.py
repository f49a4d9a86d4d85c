"""The command's connection to a supervisor: the daemon's, or one of its own in a thread."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from crumble.cli.held import Held
from crumble.sdk.client import Client
from crumble.sdk.wires import StreamWire, ZmqWire
from crumble.supervisor.locate import find_daemon
from crumble_common import wire
from crumble_common.errors import InternalError, UsageError
from crumble_common.eventloop import EventLoop

if TYPE_CHECKING:
    import zmq

    from crumble.sdk.embedded import Embedded
    from crumble.supervisor.ground import Ground


class Link:
    """A client and its loop, in the main thread.

    Without `own` there must be a daemon: UsageError "up.none". What is not detached ends with us.
    ground: for a supervisor of our own, whether there is a daemon or not.
    """

    def __init__(self, *, own: bool = True, ground: Ground | None = None) -> None:
        daemon = "" if ground else find_daemon()
        if not daemon and not own:
            raise no_daemon()
        self._embedded: Embedded | None = None
        try:
            with Held():
                self._open(daemon, ground)
        except BaseException:
            self._stop_embedded()
            raise

    def _open(self, daemon: str, ground: Ground | None) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        if daemon:
            self.loop = EventLoop()
            self.client = Client(self.loop, StreamWire(daemon))
        else:
            self.client = self._embed(ground)

    @property
    def shared(self) -> bool:
        """The supervisor is a daemon, which others use too."""
        return self._embedded is None

    def call(self, body: wire.Message, *, to: str = "", deadline: float = 0.0) -> Any:
        """Asks and waits for the answer; raises the error."""
        return self.client.call(body, to=to, deadline=deadline)

    def close(self) -> None:
        """Ends the connection; with a supervisor of our own, everything."""
        self._stop_embedded()
        self.client.close()
        self.loop.close()
        if self._context is not None:
            self._context.destroy(200)

    def _stop_embedded(self) -> None:
        embedded, self._embedded = self._embedded, None
        if embedded is not None:
            embedded.on_end = lambda: None
            embedded.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def _embed(self, ground: Ground | None) -> Client:
        if ground is None:
            from crumble.supervisor.ground import Ground

            ground = Ground(fork=True)
        import zmq

        from crumble.sdk.embedded import Embedded

        self.loop = EventLoop()
        self._context = zmq.Context()
        self._embedded = Embedded(self._context, ground)
        client = Client(self.loop, ZmqWire(self._context, self._embedded.address))
        ended = InternalError("Crumble's supervisor ended.", code="supervisor.gone")
        self._embedded.on_end = lambda: self.loop.call_soon_threadsafe(lambda: client.lose(ended))
        self._embedded.start()
        return client


def no_daemon() -> UsageError:
    """What a verb says that needs a supervisor."""
    return UsageError(
        "No supervisor is running.", code="up.none", hint="`crumble up --detach` starts one."
    )
