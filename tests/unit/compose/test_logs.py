"""`crumble logs`: what it prints, and in which order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from crumble.cli.logs import Follower
from crumble.sdk.client import Client
from crumble_common import wire
from crumble_common.errors import CrumbleError, UsageError
from crumble_common.eventloop import EventLoop
from crumble_common.messages.client import LogData, VmLogs


class Answering:
    """A supervisor's end that answers a request with several frames, which come in one round."""

    def __init__(self, error: CrumbleError | None = None) -> None:
        self.error = error

    def attach(
        self, loop: EventLoop, on_frame: Callable[[bytes], None], _on_gone: Callable[[], None]
    ) -> None:
        """Keeps where frames go."""
        self._loop, self._on_frame = loop, on_frame

    def send(self, frame: bytes) -> None:
        """Answers."""
        request = wire.decode(frame)
        answer = None if self.error else LogData("web", b"before\n")
        envelopes = [
            wire.Envelope(answer, reply_to=request.request, error=self.error),
            wire.Envelope(LogData("web", b"after\n"), to="vm:web"),
            wire.Envelope(LogData("web", b"", eof=True), to="vm:web"),
        ]
        frames = [wire.encode(envelope) for envelope in envelopes]
        self._loop.call_soon(lambda: [self._on_frame(frame) for frame in frames] and None)

    def close(self) -> None:
        """There is nothing to end."""


def follow(answering: Answering) -> None:
    loop = EventLoop()
    follower = Follower(Client(loop, answering))
    follower.start(VmLogs("web", follow=True))
    try:
        while not follower.ended:
            loop.step()
    finally:
        loop.close()


def test_what_was_printed_comes_before_what_is_new(capfd: pytest.CaptureFixture[str]) -> None:
    follow(Answering())
    assert capfd.readouterr().out == "before\nafter\n"


def test_an_error_is_raised() -> None:
    with pytest.raises(UsageError, match="no VM"):
        follow(Answering(UsageError("There is no VM web.", code="vm.none")))
