"""A guest's connection to the network: who it is, what its device can do, what was counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from crumble_netd.addresses import LINK_LOCAL6
from crumble_netd.header import ipv6, virtio_net
from crumble_netd.policy import Policy
from crumble_netd.rate import Rate
from crumble_netd.resolved import Resolved
from crumble_netd.tcp.settings import LARGEST

# Several packets in one go: TCP's work is for each segment, not for each byte.
_CUT = 4 * LARGEST


@dataclass(slots=True)
class Port:
    """mac: empty until the guest's first frame tells it. ipv4: the one address it may use; has_ipv4: whether it was heard
    to have it, last (None: nobody knows). ipv6: the last address that it was heard to have.

    services: ports of host.internal that are others of the host's loopback, by protocol and number. mtu: of its
    interface. features: virtio-net's, as the driver took them. cuts: its device cuts segments and fills checksums in
    where the driver does not. leaving: no connection begins any more.
    """

    number: int
    mac: bytes
    ipv4: bytes
    mtu: int
    policy: Policy
    name: str = ""
    features: int = 0
    cuts: bool = False
    leaving: bool = False
    ipv6: bytes = b""
    has_ipv4: bool | None = None
    counts: Counter[str] = field(default_factory=Counter)
    aliases: tuple[str, ...] = ()
    resolved: Resolved = field(default_factory=Resolved)
    services: dict[tuple[str, int], int] = field(default_factory=dict)
    rate_out: Rate = field(default_factory=Rate)
    rate_in: Rate = field(default_factory=Rate)
    rate_flows: Rate = field(default_factory=Rate)

    @property
    def checksums(self) -> bool:
        """TCP's may be left out: the driver does without, or the device fills them in."""
        return self.cuts or bool(self.features & virtio_net.F_GUEST_CSUM)

    def segments(self, *, ipv6: bool) -> bool:
        """TCP segments may be larger than its MTU: the driver takes them, or the device cuts them."""
        wanted = virtio_net.F_GUEST_TSO6 if ipv6 else virtio_net.F_GUEST_TSO4
        return self.cuts or bool(self.features & wanted)

    def largest(self, *, ipv6: bool) -> int:
        """Payload of the largest such segment; 0: there are none. A rate is kept to a packet."""
        if self.cuts and not self.rate_in.limited:
            return _CUT
        return LARGEST if self.segments(ipv6=ipv6) else 0

    def allows(self, address: bytes, number: int, kind: str, now: float) -> bool:
        """Whether policy lets the guest reach an address outside of its network."""
        fresh, ever = self.resolved.names(address, now), self.resolved.ever(address)
        return self.policy.allows(address, number, kind, fresh, ever)

    def rates_full(self, now: float) -> bool:
        """Whether a successor, which does not know what was spent, would allow the same."""
        return all(rate.full(now) for rate in (self.rate_out, self.rate_in, self.rate_flows))

    def link_local(self) -> bytes:
        """The address its MAC makes."""
        return ipv6.eui64(LINK_LOCAL6, self.mac)

    def may_use(self, address: bytes, network6: bytes) -> bool:
        """Anti-spoofing: whether the guest may send from `address`."""
        if len(address) == 4:
            return address == self.ipv4
        if address[:8] == network6:
            return address[8:] not in _RESERVED
        return ipv6.is_link_local(address) and address[8:] not in _RESERVED


# The interface identifiers of gateway and host.
_RESERVED = tuple(number.to_bytes(8, "big") for number in range(3))
