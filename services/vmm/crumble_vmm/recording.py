"""The recording of a deterministic guest: what reached it from outside, and at which instruction.

    file = MAGIC record*        record = u32 size, u32 CRC-32 of the payload, payload        (little endian)

A payload is a frame of crumble_common.wire. `Head` comes first; then an `Input` for each message that the guest
was to hear of, and a `Said` for each piece that its agent sent: what a replay must come by at the same
instructions. A record that is cut off is where the recording ended. docs/decisions/0013.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from typing import Any, Literal

from crumble_common import wire
from crumble_common.errors import GuestError, HostError, UsageError
from crumble_common.record import dataclass
from crumble_common.wire import message
from crumble_vmm.config import MachineConfig

MAGIC = b"CRUMBREC"
VERSION = 1
_HEADER = struct.Struct("<II")
# Of a payload: a frame with the largest message in it.
_MAX_RECORD = wire.MAX_FRAME

Where = Literal["any", "still", "slice", "wait"]


@message("recording.head")
@dataclass(frozen=True)
class Head:
    """made_of: what the guest depends on, by names for people."""

    version: int
    made_of: dict[str, str]


@message("recording.input")
@dataclass(frozen=True)
class Input:
    """A message, as a frame. where: the guest stood still, was at the end of a time slice, or waited in WFI; "any":
    a process's input, which is given when the guest is known to want it, however early it is here.
    """

    instructions: int
    where: Where
    frame: bytes

    def message(self) -> Any:
        """What was asked; UsageError when it is no message."""
        try:
            return wire.decode(self.frame).body
        except wire.WireError as error:
            raise _corrupt(str(error)) from None


@message("recording.said")
@dataclass(frozen=True)
class Said:
    """What the agent sent: the size and CRC-32 of it."""

    instructions: int
    size: int
    checksum: int


Item = Input | Said


def said(instructions: int, data: bytes) -> Said:
    """Of `data` at an instruction."""
    return Said(instructions, len(data), zlib.crc32(data))


def made_of(config: MachineConfig) -> dict[str, str]:
    """What must be the same in a replay."""
    return {
        "kernel": str(config.kernel),
        "modules": " ".join(map(str, config.modules)),
        "memory": str(config.memory),
        "command line": config.cmdline,
        "host name": config.hostname,
        "seed": hashlib.sha256(config.seed).hexdigest(),
        **config.made_of,
    }


class Recorder:
    """Writes a recording to `fd`, from its beginning; each record is there when `write` returns."""

    def __init__(self, fd: int, about: dict[str, str]) -> None:
        self._fd = fd
        self._put(MAGIC)
        self.write(Head(VERSION, about))

    def write(self, item: Head | Item) -> None:
        """Appends one record; HostError when there is no room for it."""
        payload = wire.encode(wire.Envelope(item))
        self._put(_HEADER.pack(len(payload), zlib.crc32(payload)) + payload)

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise HostError(
                f"The recording cannot be written: {error.strerror}.",
                code="recording.write",
                hint="Free some room, or record to another place.",
            ) from None


class Player:
    """Reads a recording from `fd`; UsageError when it is none, or of a guest made of other things than `about`."""

    def __init__(self, fd: int, about: dict[str, str]) -> None:
        self._fd, self._at = fd, len(MAGIC)
        self._next: Item | None = None
        if os.pread(fd, len(MAGIC), 0) != MAGIC:
            raise _corrupt("it does not begin as one")
        head = self._read()
        if not isinstance(head, Head) or head.version != VERSION:
            raise _corrupt(f"this Crumble replays version {VERSION}")
        names = [
            name for name in {**about, **head.made_of} if about.get(name) != head.made_of.get(name)
        ]
        if names:
            raise UsageError(
                f"The recording is of a guest with another {' and another '.join(names)}.",
                code="recording.other",
                hint="Replay it with the options, the image and the kernel that it was recorded with.",
            )

    def peek(self) -> Item | None:
        """What comes next; None at the end."""
        if self._next is None:
            item = self._read()
            if isinstance(item, Head):
                raise _corrupt("it begins twice")
            self._next = item
        return self._next

    def take(self) -> None:
        """Goes on behind what `peek` gave."""
        self._next = None

    def _read(self) -> Head | Item | None:
        header = os.pread(self._fd, _HEADER.size, self._at)
        if len(header) < _HEADER.size:
            return None
        size, checksum = _HEADER.unpack(header)
        if size > _MAX_RECORD:
            raise _corrupt(f"a record of {size} bytes")
        payload = os.pread(self._fd, size, self._at + _HEADER.size)
        if len(payload) < size:
            return None
        if zlib.crc32(payload) != checksum:
            raise _corrupt(f"the record at byte {self._at} has changed")
        self._at += _HEADER.size + size
        return _decoded(payload)


def _decoded(payload: bytes) -> Head | Item:
    try:
        body = wire.decode(payload).body
    except wire.WireError as error:
        raise _corrupt(str(error)) from None
    if isinstance(body, Input | Said) and body.instructions < 0:
        raise _corrupt("an instruction below 0")
    if not isinstance(body, Head | Input | Said):
        raise _corrupt("a record of another kind")
    return body


def opened(fd: int, config: MachineConfig) -> Recorder | Player:
    """The recording that `config` asks for; raises CrumbleError."""
    kind = Recorder if config.recording == "record" else Player
    return kind(fd, made_of(config))


def diverged(instructions: int, why: str) -> GuestError:
    """The guest does not do what it did."""
    return GuestError(
        f"The replay diverges at instruction {instructions}: {why}.",
        code="recording.diverged",
        hint="It must have the Crumble, the host's RAM and all else that it was recorded with.",
    )


def _corrupt(why: str) -> UsageError:
    return UsageError(
        f"The file is no recording that can be replayed: {why}.",
        code="recording.corrupt",
        hint="Name a file that `crumble run --deterministic --record FILE` wrote.",
    )
