"""Flows: every exchange between a guest and the host side, by number and by the addresses in it.

Bounds what a guest can make this process hold: flows of each kind, and bytes in TCP's buffers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from crumble_netd.commands import Kind
from crumble_netd.ledger import Slot
from crumble_netd.port import Port


class Key(NamedTuple):
    """Who talks to whom: the guest's end, and the far end as the guest sees it."""

    kind: Kind
    port: int
    guest: bytes
    guest_port: int
    remote: bytes
    remote_port: int


@dataclass(eq=False, slots=True)
class Flow:
    """One exchange. number: names it to the host side. target: the far end as the host sees it. slot: where it
    outlives this process.
    """

    key: Key
    port: Port
    number: int = 0
    target: tuple[bytes, int] = (b"", 0)
    begun: float = 0.0
    last: float = 0.0
    sent: int = 0
    received: int = 0
    slot: Slot | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one guest. tcp, udp, icmp: flows. buffers: bytes by which TCP windows may grow, in all."""

    tcp: int = 2048
    udp: int = 1024
    icmp: int = 64
    buffers: int = 128 << 20


@dataclass
class Budget:
    """Bytes that buffers may grow by; what a flow took it gives back when it ends."""

    total: int
    used: int = 0

    def take(self, size: int) -> bool:
        """Whether there were so many left; they are taken then."""
        if self.used + size > self.total:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Takes bytes back."""
        self.used -= size


@dataclass
class FlowTable:
    """The flows of all guests."""

    limits: Limits = field(default_factory=Limits)
    counts: Counter[tuple[int, Kind]] = field(default_factory=Counter)
    _by_key: dict[Key, Flow] = field(default_factory=dict)
    _by_number: dict[int, Flow] = field(default_factory=dict)
    _next: int = 0

    def find(self, key: Key) -> Flow | None:
        """The flow between these ends."""
        return self._by_key.get(key)

    def get(self, number: int) -> Flow | None:
        """The flow with this number; None when it has ended."""
        return self._by_number.get(number)

    def full(self, port: Port, kind: Kind) -> bool:
        """Whether a guest has all the flows of this kind that it may have."""
        limits = {"tcp": self.limits.tcp, "udp": self.limits.udp, "icmp": self.limits.icmp}
        return self.counts[port.number, kind] >= limits[kind]

    def add(self, flow: Flow) -> None:
        """Gives the flow its number, unless it has one from a predecessor."""
        flow.number = flow.number or self._next + 1
        self._next = max(self._next, flow.number)
        self._by_key[flow.key] = flow
        self._by_number[flow.number] = flow
        self.counts[flow.key.port, flow.key.kind] += 1

    def change(self, flow: Flow, key: Key) -> None:
        """It is between other ends of the same guest from now on."""
        if self._by_key.get(flow.key) is flow:
            del self._by_key[flow.key]
        flow.key = key
        self._by_key[key] = flow

    def reserve(self, number: int) -> None:
        """New flows get numbers after this one."""
        self._next = max(self._next, number)

    def remove(self, flow: Flow) -> None:
        """Forgets it; unknown flows are fine."""
        if self._by_number.pop(flow.number, None) is not None:
            self.counts[flow.key.port, flow.key.kind] -= 1
            if self._by_key.get(flow.key) is flow:
                del self._by_key[flow.key]

    def oldest(self, port: Port, kind: Kind) -> Flow | None:
        """The flow of a guest that was silent for longest."""
        flows = (f for f in self._by_number.values() if f.port is port and f.key.kind == kind)
        return min(flows, key=lambda flow: flow.last, default=None)

    def all(self) -> list[Flow]:
        """Every flow, oldest first."""
        return list(self._by_number.values())
