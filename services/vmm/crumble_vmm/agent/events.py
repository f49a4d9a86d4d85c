"""What an agent session tells its owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crumble_common.errors import CrumbleError


@dataclass(frozen=True, slots=True)
class AgentReady:
    """The agent serves. phases: init's, (name, start in ns of the guest's monotonic clock)."""

    phases: list[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class AgentAlive:
    """The agent answered `ping`."""


@dataclass(frozen=True, slots=True)
class Moved:
    """`move` is done: the guest has its addresses on another network."""

    token: Any


@dataclass(frozen=True, slots=True)
class Started:
    """`start` succeeded."""

    token: Any
    process: int
    pid: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The request with this token failed."""

    token: Any
    error: CrumbleError


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes of stdout (1) or stderr (2)."""

    process: int
    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class InputTaken:
    """The process took `size` bytes of its stdin."""

    process: int
    size: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended; its output has all come."""

    process: int
    status: int
    signal: int


@dataclass(frozen=True, slots=True)
class FileRead:
    """Bytes of a file; eof: nothing follows."""

    token: Any
    data: bytes
    eof: bool


@dataclass(frozen=True, slots=True)
class FileWritten:
    """The bytes are in the file."""

    token: Any


@dataclass(frozen=True, slots=True)
class Synced:
    """What was written is in the file systems."""

    token: Any


@dataclass(frozen=True, slots=True)
class AgentLog:
    """A line the agent wrote for a person."""

    text: str


Event = (
    AgentReady
    | AgentAlive
    | Moved
    | Started
    | Refused
    | Output
    | InputTaken
    | Exited
    | FileRead
    | FileWritten
    | Synced
    | AgentLog
)
