"""Port forwards: what comes to a host address and port goes to a guest's."""

from __future__ import annotations

from dataclasses import dataclass

from crumble_netd.commands import Kind
from crumble_netd.port import Port


@dataclass(frozen=True, slots=True)
class ForwardRule:
    """kind: tcp or udp. host: the address listened at. port: of the stack, whose guest it is for."""

    number: int
    kind: Kind
    host: bytes
    host_port: int
    port: int
    guest_port: int

    @property
    def name(self) -> str:
        """What it is known by also to a successor of this process."""
        return f"forward:{self.kind}:{self.host.hex()}:{self.host_port}"


class ForwardRules:
    """The rules in force, by number."""

    def __init__(self, ports: dict[int, Port]) -> None:
        self._ports = ports
        self._rules: dict[int, ForwardRule] = {}
        self._last = 0

    def next(self) -> int:
        """A number for a new one."""
        self._last += 1
        return self._last

    def add(self, rule: ForwardRule) -> None:
        """From now on."""
        self._rules[rule.number] = rule

    def remove(self, number: int) -> ForwardRule | None:
        """No longer; the rule, if there was one."""
        return self._rules.pop(number, None)

    def target(self, number: int) -> tuple[ForwardRule, Port] | None:
        """Rule and guest; None when either is gone or going, or the guest has not been heard of."""
        rule = self._rules.get(number)
        port = self._ports.get(rule.port) if rule else None
        return (rule, port) if rule and port and port.mac and not port.leaving else None

    def name(self, number: int) -> str:
        """A rule's name; "" when there is none."""
        return self._rules[number].name if number in self._rules else ""

    def all(self) -> list[ForwardRule]:
        """Every rule."""
        return list(self._rules.values())


def guest_addresses(rule: ForwardRule, port: Port, peer: bytes) -> list[bytes]:
    """Where a guest may be reached, the best first: for TCP by the peer's own family, then by the other, where it
    was heard of. UDP has no handshake that would tell, and goes by IPv4 where the guest has it.
    """
    ways = [port.ipv4, port.ipv6] if port.ipv6 else [port.ipv4]
    if port.has_ipv4 is False or (rule.kind == "tcp" and len(peer) == 16):
        ways.reverse()
    return ways
