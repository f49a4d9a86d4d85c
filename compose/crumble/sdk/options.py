"""What people write and what it means: sizes, volumes, environment variables, failures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from crumble_common import paths
from crumble_common.errors import CrumbleError, GuestError, UsageError
from crumble_common.messages.fs import Share
from crumble_common.messages.net import NetPolicy
from crumble_common.messages.vm import VmEvent
from crumble_common.vm_faults import fault_of

Volumes = Mapping[str, str] | Iterable[str]

_SIZE = re.compile(r"(\d{1,15}(?:\.\d+)?)\s*([kmgt]?)(i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
# What a message can say; what is possible is far below, and the supervisor's to judge.
_MOST = (1 << 63) - 1


def memory_size(text: int | str) -> int:
    """Bytes: 268435456, "256m", "1.5g"."""
    if isinstance(text, int):
        return min(text, _MOST)
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(
            f"{text!r} is no size.", code="usage.size", hint="Write it like 512m or 2g."
        )
    return min(int(float(match[1]) * _UNITS[match[2].lower()]), _MOST)


def shares(volumes: Volumes) -> list[Share]:
    """Shares from {"host": "guest[:ro]"} or ["host:guest[:ro]"]; host paths become absolute."""
    if isinstance(volumes, Mapping):
        volumes = [f"{host}:{guest}" for host, guest in volumes.items()]
    return [_share(text) for text in volumes]


def _share(text: str) -> Share:
    source, separator, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not separator or not source or not target or mode not in ("", "ro", "rw"):
        raise UsageError(
            f"{text!r} is no volume.",
            code="usage.volume",
            hint="Write HOST_PATH:GUEST_PATH, or HOST_PATH:GUEST_PATH:ro.",
        )
    return Share(paths.absolute(source), target, mode == "ro")


def policy(
    allow: Iterable[str],
    deny: Iterable[str],
    *,
    internet: bool,
    rates: tuple[int | str, int | str, int],
) -> NetPolicy:
    """rates: bytes a second out and in, as sizes; new flows a second. UsageError "usage.size"."""
    out, back = memory_size(rates[0]), memory_size(rates[1])
    return NetPolicy(list(allow), list(deny), internet, out, back, max(0, rates[2]))


def image_reference(text: str) -> str:
    """A reference, with the path in oci: and docker-archive: ones made absolute."""
    for scheme in ("oci:", "docker-archive:"):
        if text.startswith(scheme):
            return scheme + paths.absolute(text[len(scheme) :])
    return text


def failure_of(event: Any) -> CrumbleError | None:
    """The error that an event of a VM means for whoever uses it, if it does."""
    if isinstance(event, CrumbleError):
        return event
    if not isinstance(event, VmEvent):
        return None
    if event.kind in ("panic", "crash", "failed"):
        fault = fault_of(event)
        fault.hint = ""  # the supervisor's sentence has it already
        return fault
    if event.kind == "stopped":
        return GuestError(event.detail, code="vm.stopped", hint="Start it again to use it.")
    if event.kind in ("poweroff", "reset"):
        how = "powered off" if event.kind == "poweroff" else "was reset"
        text = f"The guest {how} from inside."
        hint = "Its command had not ended; start it again."
        return GuestError(text, code=f"guest.{event.kind}", hint=hint)
    return None
