"""What there is of a predecessor that died, and what is kept for a successor: arena, parked sockets, state.

Without an arena (alone, in tests) nothing is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import msgpack

from crumble_common import log
from crumble_common.arena import Arena
from crumble_common.messages import net
from crumble_common.messages.net import Forward, Refusal
from crumble_common.parking import Parking
from crumble_common.service import Context
from crumble_netd import revival
from crumble_netd.forward_rules import ForwardRule
from crumble_netd.ledger import Ledger
from crumble_netd.loop import HostSide
from crumble_netd.port import Port
from crumble_netd.stack import Stack


class Survival:
    """Of one network. ledger, parking: None when nothing is kept. revived: flows. Raises InternalError."""

    def __init__(self, context: Context) -> None:
        self.ledger: Ledger | None = None
        self.parking: Parking | None = None
        self.revived = 0
        self._parked: dict[str, int] = {}
        self._known: dict[str, Any] = {}  # guests, as last written down
        if "arena" in context.fds and "parking" in context.fds:
            arena = Arena.attach(context.fd("arena"), net.ARENA, net.ARENA_VERSION)
            self.ledger = Ledger(arena)
            self.parking = Parking(context.fd("parking"))
            self._parked = self.parking.recover()
            if state := self.ledger.state():
                self._known = msgpack.unpackb(state)
        # Guests of the predecessor that are not here yet.
        self._expected = dict(self._known)
        self._last = max((guest["port"] for guest in self._known.values()), default=0)

    def port(self, guest: str) -> int:
        """The number of its port: the one it had, or the next."""
        if guest in self._expected:
            number: int = self._expected[guest]["port"]
            return number
        self._last += 1
        return self._last

    def forwards(self, guest: str, configured: list[Forward]) -> list[Forward]:
        """Those that a guest had when the predecessor died; `configured` when it had no predecessor."""
        if guest not in self._expected:
            return configured
        return [Forward(**forward) for forward in self._expected[guest]["forwards"]]

    def refused(self, guest: str) -> list[Refusal]:
        """What the predecessor had refused a guest."""
        kept = self._expected.get(guest, {}).get("refused", ())
        return [Refusal(**refusal) for refusal in kept]

    def socket_of(self, rule: ForwardRule) -> int:
        """The predecessor's socket for a forward, the caller's; -1 when there is none."""
        return self._parked.pop(rule.name, -1)

    def recall(self, port: Port) -> None:
        """What the predecessor had learnt of a guest."""
        for guest in self._expected.values():
            if guest["port"] == port.number:
                port.mac, port.ipv6 = guest["mac"] or port.mac, guest["ipv6"]
                port.has_ipv4 = guest["has_ipv4"]
                port.resolved.restore(guest["resolved"])
                port.services = {(kind, at): to for kind, at, to in guest["services"]}
                port.counts.update(guest["counts"])

    def remember(self, guests: Iterable[tuple[str, Port, list[Forward], list[Refusal]]]) -> None:
        """Writes down what has changed of the guests there are: name, port, forwards, what they were refused."""
        if self.ledger is None:
            return
        now = dict(self._expected)
        for name, port, forwards, refused in guests:
            now[name] = {
                "port": port.number, "mac": port.mac, "ipv6": port.ipv6,
                "has_ipv4": port.has_ipv4,
                "resolved": port.resolved.pack(),
                "services": [[kind, at, to] for (kind, at), to in port.services.items()],
                "forwards": [dataclasses.asdict(forward) for forward in forwards],
                "counts": dict(port.counts),
                "refused": [dataclasses.asdict(refusal) for refusal in refused],
            }  # fmt: skip
        if now != self._known:
            self._known = now
            self.ledger.write_state(msgpack.packb(now))

    def go_on(self, stack: Stack, host: HostSide, port: int) -> bool:
        """A guest's rings are there: its flows go on. Once; False for one that had no predecessor."""
        found = [name for name, guest in self._expected.items() if guest["port"] == port]
        if not found or self.ledger is None:
            return False
        for name in found:
            del self._expected[name]
        revived = revival.revive(stack, host, self.ledger, self._parked, port)
        self.revived += revived
        log.info("took over", guest=found[0], flows=revived)
        if not self._expected:
            revival.close_all(self._parked, host)
        host.settle()
        return True

    def forget(self, guest: str, host: HostSide) -> bool:
        """A guest of the predecessor does not come back; False when none of this name is waited for."""
        found = self._expected.pop(guest, None)
        if found is None or self.ledger is None:
            return False
        revival.drop(host, self.ledger, self._parked, found["port"])
        if not self._expected:
            revival.close_all(self._parked, host)
        return True
