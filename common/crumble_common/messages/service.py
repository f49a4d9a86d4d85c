"""The life of every service: (config in an inherited fd) → Ready → requests, Heartbeat → Stop."""

from __future__ import annotations

from crumble_common.record import dataclass, field
from crumble_common.wire import message


@message("ok")
@dataclass(frozen=True)
class Ok:
    """The reply that says no more than that it was done."""


@message("service.ready")
@dataclass(frozen=True)
class Ready:
    """Event, service → supervisor: sandboxed and serving."""

    name: str
    sandbox: dict[str, str] = field(default_factory=dict)
    """Layer name → "on", or why it is not."""


@message("service.failed")
@dataclass(frozen=True)
class Failed:
    """Event, service → supervisor: cannot start or go on; the process exits after it."""

    name: str
    fault: str
    code: str
    message: str
    hint: str = ""


@message("service.heartbeat")
@dataclass(frozen=True)
class Heartbeat:
    """Event on PUB, every second."""

    name: str
    monotonic: float
    stats: dict[str, int] = field(default_factory=dict)


@message("service.stop")
@dataclass(frozen=True)
class Stop:
    """Supervisor → service: end in an orderly way within `grace` seconds. Reply: Ok."""

    grace: float = 5.0


@message("service.ping")
@dataclass(frozen=True)
class Ping:
    """Anyone → service. Reply: Ok."""
