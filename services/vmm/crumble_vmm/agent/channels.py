"""The channels of an agent session: a process, a file being read, a file being written.

Each is a small state machine fed with the frames of its number; what doesn't belong there raises
GuestError, which ends the session.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from crumble_common.errors import CrumbleError, GuestError, HostError, UsageError
from crumble_vmm.agent.events import Event, Exited, InputTaken, Output, Refused, Started
from crumble_vmm.guest import protocol
from crumble_vmm.guest.protocol import Frame, Spawn, Stage, ToHost

# Input a client may send ahead of what the process takes.
MAX_INPUT = 4 << 20
_SHOWN = 80  # characters of a name in a message


class Session(Protocol):
    """What a channel needs of its session."""

    hostname: str
    whole_input: bool

    def send(self, data: bytes) -> None:
        """Frames for the guest."""

    def open(self, channel: Channel) -> int:
        """A number for a channel."""

    def forget(self, number: int) -> None:
        """The number is free."""


def violation(what: str) -> GuestError:
    """The agent, or whoever writes to its port, broke the protocol."""
    return GuestError(
        f"The guest's agent broke its protocol: {what}.",
        code="guest.agent",
        hint="Something in the guest writes to its port, or its memory is corrupted.",
    )


class Channel(ABC):
    """Something that waits for frames."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.number = session.open(self)

    @abstractmethod
    def receive(self, frame: Frame) -> Iterator[Event]:
        """A frame of this channel."""

    @abstractmethod
    def abandon(self, error: CrumbleError) -> Event | None:
        """No frame will come any more."""

    def done(self) -> None:
        """That was the last frame."""
        self.session.forget(self.number)

    @staticmethod
    def unexpected(frame: Frame) -> GuestError:
        """The frame does not belong here."""
        return violation(f"frame {frame.type} in the wrong place")


class Process(Channel):
    """A process, from SPAWN to EXITED or FAILED."""

    def __init__(self, session: Session, spawn: Spawn, token: Any) -> None:
        super().__init__(session)
        self.started = False
        self._spawn = spawn
        self._token = token
        self.pid = 0
        self.streams = (1,) if spawn.tty else (1, 2)
        self.credits = dict.fromkeys(self.streams, spawn.credit)
        self._window = protocol.STDIN_WINDOW
        self._input = bytearray()
        self._input_ended = not (spawn.stdin or spawn.tty)
        self._eof_sent = False
        try:
            session.send(protocol.encode_spawn(self.number, spawn))
        except CrumbleError:
            self.done()
            raise

    def receive(self, frame: Frame) -> Iterator[Event]:
        """STARTED, then OUTPUT and CREDIT, then EXITED; or FAILED."""
        if not self.started:
            yield self._begin(frame)
        elif frame.type == ToHost.OUTPUT:
            yield self._output(frame)
        elif frame.type == ToHost.CREDIT:
            yield self._taken(frame)
        elif frame.type == ToHost.EXITED:
            self.done()
            code, signal = protocol.decode_exit(frame.argument)
            yield Exited(self.number, 128 + signal if signal else code, signal)
        else:
            raise self.unexpected(frame)

    def _begin(self, frame: Frame) -> Event:
        if frame.type == ToHost.STARTED:
            self.started, self.pid = True, frame.argument
            return Started(self._token, self.number, frame.argument)
        if frame.type != ToHost.FAILED:
            raise self.unexpected(frame)
        self.done()
        return Refused(self._token, spawn_error(self._spawn, frame.flags, frame.argument))

    def _output(self, frame: Frame) -> Event:
        stream, size = frame.flags, len(frame.payload)
        if size > self.credits.get(stream, 0):
            raise violation(f"{size} bytes of stream {stream} are more than it has credit for")
        self.credits[stream] -= size
        return Output(self.number, stream, frame.payload)

    def _taken(self, frame: Frame) -> Event:
        stream, size = protocol.decode_credit(frame.argument)
        if stream != protocol.STDIN or size > protocol.STDIN_WINDOW - self._window:
            raise violation(f"credit of {size} bytes for stream {stream}")
        self._window += size
        self._pump()
        return InputTaken(self.number, size)

    def input(self, data: bytes, eof: bool) -> None:
        """Sends what the window lets through and keeps the rest; UsageError when that is too much."""
        if self._input_ended:
            return
        if len(self._input) + len(data) > MAX_INPUT:
            raise UsageError(
                f"Process {self.number} does not take its input.",
                code="exec.input",
                hint="Send no more than it gives credit for.",
            )
        self._input += data
        self._input_ended = eof
        self._pump()

    @property
    def hungry(self) -> bool:
        """It waits until its input is whole (`Session.whole_input`)."""
        short = not self._input_ended and len(self._input) < self._window
        return self.session.whole_input and self.started and short

    def _pump(self) -> None:
        if self.hungry or (self.session.whole_input and self._window == 0):
            return  # nor is the end told before there is room: when it comes must not matter
        data = bytes(self._input[: self._window])
        del self._input[: len(data)]
        self._window -= len(data)
        eof = self._input_ended and not self._input and not self._eof_sent
        if data or eof:
            self._eof_sent = eof
            self.session.send(protocol.encode_stdin(self.number, data, eof=eof))

    def credit(self, stream: int, size: int) -> None:
        """The client took `size` bytes."""
        self.credits[stream] += size
        self.session.send(protocol.encode_credit(self.number, stream, size))

    def power_off(self) -> Iterator[Event]:
        """The guest is off, in order: that is how PID 1 ends."""
        if self.started and self._spawn.init:
            yield Exited(self.number, 0, 0)

    def abandon(self, error: CrumbleError) -> Event | None:
        """A process that had started gets no event: its VM's end says it all."""
        return None if self.started else Refused(self._token, error)


def shorten(text: str) -> str:
    """For a message."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def spawn_error(spawn: Spawn, stage: int, number: int) -> CrumbleError:
    """What FAILED says, as the error a client knows."""
    program = shorten(os.fsdecode(spawn.argv[0]))
    reason = os.strerror(number)
    if stage == Stage.EXEC and number in (errno.ENOENT, errno.ENOTDIR):
        return UsageError(
            f"Command {program!r} was not found in the guest.",
            code="exec.not_found",
            hint="Check its name, or the interpreter its first line names.",
        )
    if stage == Stage.EXEC:
        return UsageError(
            f"Command {program!r} cannot be executed in the guest: {reason}.",
            code="exec.not_executable",
            hint="Check its permissions, and that it is for the guest's architecture.",
        )
    if spawn.init and number == errno.EBUSY:
        return UsageError(
            f"{program!r} cannot become PID 1: the guest has an init, or other processes, already.",
            code="exec.init",
            hint="Start it first in a VM, or with --systemd=never.",
        )
    if stage == Stage.CHDIR:
        return UsageError(
            f"Directory {shorten(os.fsdecode(spawn.cwd))!r} cannot be entered in the guest: {reason}.",
            code="exec.failed",
            hint="Give a working directory that exists there.",
        )
    return GuestError(
        f"The guest could not start {program!r}: {reason}.",
        code="exec.failed",
        hint="Give the guest more --memory, or run less in it.",
    )


class FileReader(Channel):
    """Reads [offset, offset + size) of a file, a frame at a time.

    `finish(data, eof, errno)` gives the events; errno 0 is success.
    """

    def __init__(
        self,
        session: Session,
        path: bytes,
        offset: int,
        size: int,
        finish: Callable[[bytes, bool, int], list[Event]],
        refuse: Callable[[CrumbleError], Event | None],
    ) -> None:
        super().__init__(session)
        self._path, self._offset, self._left = path, offset, size
        self._data = bytearray()
        self._finish, self._refuse = finish, refuse
        try:
            self._ask()
        except CrumbleError:
            self.done()
            raise

    def _ask(self) -> None:
        self._asked = min(self._left, protocol.MAX_PAYLOAD)
        self.session.send(
            protocol.encode_file_read(self.number, self._path, self._offset, self._asked)
        )

    def receive(self, frame: Frame) -> Iterator[Event]:
        """FILE_DATA or FILE_DONE."""
        if frame.type == ToHost.FILE_DONE and frame.argument:
            self.done()
            yield from self._finish(b"", True, frame.argument)
            return
        if frame.type != ToHost.FILE_DATA or len(frame.payload) > self._asked:
            raise self.unexpected(frame)
        size, eof = len(frame.payload), frame.argument == protocol.FILE_EOF
        self._data += frame.payload
        self._offset += size
        self._left -= size
        if eof or self._left == 0 or size == 0:
            self.done()
            yield from self._finish(bytes(self._data), eof or size == 0 < self._asked, 0)
        else:
            self._ask()

    def abandon(self, error: CrumbleError) -> Event | None:
        """The read fails."""
        return self._refuse(error)


class Syncer(Channel):
    """Waits until the guest's file systems have what its processes have written."""

    def __init__(
        self, session: Session, finish: Event, refuse: Callable[[CrumbleError], Event]
    ) -> None:
        super().__init__(session)
        self._finish, self._refuse = finish, refuse
        session.send(protocol.encode_sync(self.number))

    def receive(self, frame: Frame) -> Iterator[Event]:
        """FILE_DONE."""
        if frame.type != ToHost.FILE_DONE:
            raise self.unexpected(frame)
        self.done()
        yield self._finish

    def abandon(self, error: CrumbleError) -> Event | None:
        """Nobody knows."""
        return self._refuse(error)


class FileWriter(Channel):
    """Writes bytes to a file, a frame at a time, each when the one before is done."""

    def __init__(
        self,
        session: Session,
        path: bytes,
        data: bytes,
        offset: int,
        mode: int,
        finish: Callable[[int], Event],
        refuse: Callable[[CrumbleError], Event],
    ) -> None:
        super().__init__(session)
        self._path, self._data, self._offset, self._mode = path, data, offset, mode
        self._done = 0
        self._finish, self._refuse = finish, refuse
        try:
            self._write()
        except CrumbleError:
            self.done()
            raise

    def _write(self) -> None:
        piece = self._data[self._done : self._done + protocol.max_file_write(self._path)]
        offset = self._offset + self._done
        self._done += len(piece)
        self.session.send(
            protocol.encode_file_write(self.number, self._path, offset, piece, self._mode)
        )

    def receive(self, frame: Frame) -> Iterator[Event]:
        """FILE_DONE."""
        if frame.type != ToHost.FILE_DONE:
            raise self.unexpected(frame)
        if frame.argument == 0 and self._done < len(self._data):
            self._write()
            return
        self.done()
        yield self._finish(frame.argument)

    def abandon(self, error: CrumbleError) -> Event | None:
        """The write fails."""
        return self._refuse(error)


def file_error(path: str, number: int) -> CrumbleError:
    """What FILE_DONE says, as the error a client knows."""
    code = f"file.{errno.errorcode.get(number, str(number))}"
    message = f"{path}: {os.strerror(number)} (in the guest)."
    kind = HostError if number in (errno.ENOSPC, errno.EDQUOT) else UsageError
    return kind(message, code=code, hint="Check the path, and what the guest has there.")
