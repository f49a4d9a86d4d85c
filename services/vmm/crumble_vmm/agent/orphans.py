"""Channels of a session that went on from a snapshot: what their guests' ends say has no listener."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from crumble_common.errors import CrumbleError
from crumble_vmm.agent.channels import Channel, Session, violation
from crumble_vmm.agent.events import Event
from crumble_vmm.guest import protocol
from crumble_vmm.guest.protocol import Frame, ToHost

# What a process may write at once besides what its old client had allowed.
_CREDIT = 1 << 20


class OrphanProcess(Channel):
    """A process that runs on: its output is taken and dropped, so that it never waits for a reader."""

    def __init__(self, session: Session, number: int, pid: int, streams: Sequence[int]) -> None:
        self.session, self.number = session, number
        self.pid = pid
        self.streams = [stream for stream in streams if stream in (1, 2)]
        for stream in self.streams:
            session.send(protocol.encode_credit(number, stream, _CREDIT))

    def receive(self, frame: Frame) -> Iterator[Event]:
        """OUTPUT, and its end."""
        if frame.type == ToHost.OUTPUT and frame.flags in (1, 2):
            size = len(frame.payload)
            self.session.send(protocol.encode_credit(self.number, frame.flags, size))
        elif frame.type in (ToHost.EXITED, ToHost.FAILED):
            self.done()
        elif frame.type not in (ToHost.STARTED, ToHost.CREDIT):
            raise self.unexpected(frame)
        yield from ()

    def abandon(self, error: CrumbleError) -> Event | None:  # noqa: ARG002  it is nobody's
        """Nobody waits."""
        return None


class OrphanRequest(Channel):
    """A file request that was under way: its answer is dropped."""

    def __init__(self, session: Session, number: int) -> None:
        self.session, self.number = session, number

    def receive(self, frame: Frame) -> Iterator[Event]:
        """One answer comes to one request."""
        if frame.type not in (ToHost.FILE_DATA, ToHost.FILE_DONE):
            raise violation(f"frame {frame.type} for a file request")
        self.done()
        yield from ()

    def abandon(self, error: CrumbleError) -> Event | None:  # noqa: ARG002  it is nobody's
        """Nobody waits."""
        return None
