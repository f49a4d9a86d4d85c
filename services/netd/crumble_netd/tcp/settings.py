"""What connections of a stack have in common."""

from __future__ import annotations

from dataclasses import dataclass

# The most payload of one packet, whatever its headers.
LARGEST = 65_535 - 60 - 60


@dataclass(frozen=True, slots=True)
class Settings:
    """What connections of a stack have in common. Sizes in bytes, times in seconds.

    mss: what we can receive in a segment. max_segment: payload we may hand over at once, to be cut by the
    receiver's device (TSO); 0: no more than the peer's MSS. rcv_start, rcv_max: the receive window, at
    first and at most.
    """

    mss: int = 1460
    max_segment: int = 0
    rcv_start: int = 1 << 16
    rcv_max: int = 1 << 20
    rcv_scale: int = 7
    msl: float = 30.0
    syn_tries: int = 6
    data_tries: int = 12
    keepalive_idle: float = 7200.0
    keepalive_interval: float = 75.0
    keepalive_probes: int = 9


DEFAULTS = Settings()
