"""Errors, each saying whose fault it is and what to do.

`CrumbleError` is never raised itself. The message is one sentence for a person, the hint (when there
is one) says what to do next. `code` is stable, for programs and for crossing process borders.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Fault = Literal["caller", "guest", "remote", "host", "crumble"]


class CrumbleError(Exception):
    """Base of every error shown to a user. Never raised itself."""

    fault: ClassVar[Fault] = "crumble"

    def __init__(self, message: str, *, code: str = "", hint: str = "", **detail: object) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code()
        self.hint = hint
        self.detail = detail

    @classmethod
    def default_code(cls) -> str:
        """The code used when none is given: the fault's own name."""
        return cls.fault

    def __str__(self) -> str:
        """One sentence, then the hint when there is one."""
        return f"{self.message} {self.hint}".strip()


class UsageError(CrumbleError):
    """The caller asked for something that cannot be (bad argument, missing file, unknown name)."""

    fault: ClassVar[Fault] = "caller"


class GuestError(CrumbleError):
    """The guest did something wrong (panic, malformed ring, agent that never answered)."""

    fault: ClassVar[Fault] = "guest"


class RemoteError(CrumbleError):
    """A registry, mirror or peer misbehaved or cannot be reached."""

    fault: ClassVar[Fault] = "remote"


class HostError(CrumbleError):
    """This machine refuses or lacks something (memory, disk, permission, a device)."""

    fault: ClassVar[Fault] = "host"


class InternalError(CrumbleError):
    """A bug in Crumble, or one of its processes died."""

    fault: ClassVar[Fault] = "crumble"


BY_FAULT: dict[str, type[CrumbleError]] = {
    kind.fault: kind for kind in (UsageError, GuestError, RemoteError, HostError, InternalError)
}
