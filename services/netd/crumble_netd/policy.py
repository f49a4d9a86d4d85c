"""What a guest may talk to: deny rules, then allow rules, then the default.

A rule is text: ADDRESS[/BITS], NAME or *.NAME, `host` or `any`, then optionally `:PORT` or `:PORT-PORT`, then optionally
`/tcp` or `/udp`; IPv6 addresses with a port are written [ADDRESS/BITS]:PORT. By default the internet may be
talked to; the host's own loopback, link-local addresses (where clouds keep their metadata), multicast and
what no packet should name may not. A rule by name speaks of what the guest was told that the name is (`resolved.py`);
where there is one, other DNS servers than the network's are out of reach. No name leads to a special address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crumble_common.errors import UsageError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_RULE = re.compile(
    r"(?:\[(?P<bracketed>[0-9a-fA-F:./]+)\]|(?P<name>host|any)|(?P<plain>[0-9a-fA-F.]+(?:/\d+)?)"
    r"|(?P<dns>(?:\*\.)?(?=[a-zA-Z0-9_.-]*[a-zA-Z])(?:[a-zA-Z0-9_](?:[a-zA-Z0-9_-]{0,62})\.)+[a-zA-Z0-9-]{2,63})"
    r"|(?P<six>[0-9a-fA-F:.]*::?[0-9a-fA-F:.]*(?:/\d+)?))"
    r"(?::(?P<low>\d{1,5})(?:-(?P<high>\d{1,5}))?)?(?:/(?P<protocol>tcp|udp))?"
)
# DNS, and over TLS (RFC 7858).
_DNS = (53, 853)
LOOPBACK4, LOOPBACK6 = bytes((127, 0, 0, 1)), (1).to_bytes(16, "big")
_NEVER_BY_DEFAULT: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
        "::/96", "fe80::/10", "fec0::/10", "ff00::/8",
    )
)  # fmt: skip
# An IPv6 socket sends these over IPv4: rules for IPv4 would not be asked. No rule lifts this.
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


@dataclass(frozen=True, slots=True)
class Rule:
    """network: None for any. host: the host's loopback, by the address that stands for it. name: of DNS."""

    network: Network | None
    host: bool = False
    name: str = ""
    low: int = 0
    high: int = 65_535
    protocol: str = ""

    def matches(
        self, address: bytes, port: int, protocol: str, names: Sequence[str] = (), *, host: bool
    ) -> bool:
        """Whether it speaks of this destination. names: what it is called."""
        if self.protocol not in ("", protocol) or not self.low <= port <= self.high:
            return False
        if self.host or host:
            return self.host and host
        if self.name:
            return any(map(self.speaks_of, names))
        if self.network is None:
            return True
        return (
            self.network.max_prefixlen == 8 * len(address)
            and ipaddress.ip_address(address) in self.network
        )

    def speaks_of(self, name: str) -> bool:
        """Whether a name (lower case) is the rule's."""
        if self.name.startswith("*."):
            return name.endswith(self.name[1:])
        return name == self.name


def parse_rule(text: str) -> Rule:
    """Raises UsageError."""
    match = _RULE.fullmatch(text.strip())
    problem = UsageError(
        f"{text!r:.80} is no network rule.",
        code="net.rule",
        hint="Write ADDRESS[/BITS][:PORT[-PORT]][/tcp|/udp], with a name, `host` or `any` for an address.",
    )
    if not match:
        raise problem
    low = int(match["low"] or 0)
    high = int(match["high"] or match["low"] or 65_535)
    where = match["bracketed"] or match["plain"] or match["six"]
    try:
        network = ipaddress.ip_network(where, strict=False) if where else None
    except ValueError:
        raise problem from None
    if not low <= high <= 65_535:
        raise problem
    name = (match["dns"] or "").lower()
    return Rule(network, match["name"] == "host", name, low, high, match["protocol"] or "")


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one guest. internet: what is said by no rule is allowed, if it is public."""

    deny: tuple[Rule, ...] = ()
    allow: tuple[Rule, ...] = ()
    internet: bool = True

    @classmethod
    def of(cls, deny: Iterable[str], allow: Iterable[str], *, internet: bool) -> Policy:
        """From rules as text; raises UsageError."""
        return cls(tuple(map(parse_rule, deny)), tuple(map(parse_rule, allow)), internet)

    @property
    def by_name(self) -> bool:
        """There is a rule with a name."""
        return any(rule.name for rule in (*self.deny, *self.allow))

    def allows(
        self, address: bytes, port: int, protocol: str,
        fresh: Sequence[str] = (), ever: Sequence[str] = (),
    ) -> bool:  # fmt: skip
        """Whether a guest may reach an address of the host's network (4 or 16 bytes).

        fresh: the names that are this address now; ever: those that were.
        """
        if port in _DNS and protocol != "icmp" and self.by_name:
            return False
        found = ipaddress.ip_address(address)
        if found in _MAPPED:
            return False
        if any(rule.matches(address, port, protocol, ever, host=False) for rule in self.deny):
            return False
        special = any(found in network for network in _NEVER_BY_DEFAULT)
        if any(
            rule.matches(address, port, protocol, fresh, host=False)
            and not (special and rule.network is None)
            for rule in self.allow
        ):
            return True
        return self.internet and not special

    def allows_host(self, port: int, protocol: str) -> bool:
        """Whether a guest may reach a service on the host's loopback, through `host.internal`."""
        rules = (self.deny, self.allow)
        denied, allowed = (
            any(rule.matches(b"", port, protocol, host=True) for rule in group) for group in rules
        )
        return allowed and not denied
