"""Port forwards as people write them."""

from __future__ import annotations

import ipaddress
import re

from crumble_common.errors import UsageError
from crumble_common.messages.net import Forward

_FORWARD = re.compile(
    r"(?:(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<four>[0-9.]+)):)?"
    r"(?P<host>\d{1,5}):(?P<guest>\d{1,5})(?:/(?P<protocol>tcp|udp))?"
)


def parse_forward(text: str) -> Forward:
    """[IP:]HOST:GUEST[/udp]; without an address the host's loopback listens. Raises UsageError."""
    match = _FORWARD.fullmatch(text.strip())
    problem = UsageError(
        f"{text!r:.80} is no port forward.",
        code="usage.publish",
        hint="Write HOST_PORT:GUEST_PORT, or IP:HOST_PORT:GUEST_PORT, and /udp behind it for UDP.",
    )
    if not match:
        raise problem
    host = match["six"] or match["four"] or "127.0.0.1"
    ports = int(match["host"]), int(match["guest"])
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise problem from None
    if not all(0 < port < 65_536 for port in ports):
        raise problem
    return Forward(*ports, host, "udp" if match["protocol"] == "udp" else "tcp")
