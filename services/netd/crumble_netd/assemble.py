"""A stack as a configuration wants it; everything wrong with the configuration is said here."""

from __future__ import annotations

import ipaddress
import time

from crumble_common.errors import UsageError
from crumble_common.messages.net import Forward, NetConfig, PortAdd
from crumble_netd.addresses import Addresses, packed
from crumble_netd.forward_rules import ForwardRule
from crumble_netd.layers.dns import Resolver
from crumble_netd.ledger import Ledger
from crumble_netd.policy import Policy
from crumble_netd.port import Port
from crumble_netd.rate import Rate
from crumble_netd.stack import Stack

# Locally administered; the gateway's is the same in every network.
GATEWAY_MAC = bytes.fromhex("0263 7275 6d62")
# RFC 8200 §5, and the largest IPv4 packet.
_MIN_MTU, _MAX_MTU = 1280, 65_535
_DNS_PORT = 53
# Least bursts of rates: a large segment or two, a page's connections.
_BYTES, _FLOWS = 1 << 17, 8
_MAX_RESOLVERS = 3


def new_stack(config: NetConfig, resolvers: list[Resolver], ledger: Ledger | None = None) -> Stack:
    """A stack without guests; raises UsageError."""
    try:
        network = ipaddress.IPv4Network(config.network)
        network6 = ipaddress.IPv6Network(config.network6)
        members = [ipaddress.IPv4Address(text) for text in (config.gateway, config.host)]
        also = frozenset(packed(text) for text in config.also)
    except ValueError as error:
        raise _wrong(f"{error}") from None
    if network6.prefixlen != 64:
        raise _wrong(f"{config.network6} is no /64, which addresses are made in by themselves.")
    if len({*members}) != 2:
        raise _wrong("gateway and host are not two addresses.")
    if any(member not in network for member in members):
        raise _wrong(f"gateway or host are not in {network}.")
    addresses = Addresses(
        mac=GATEWAY_MAC,
        network4=network.network_address.packed,
        prefix4=network.prefixlen,
        gateway4=members[0].packed,
        host4=members[1].packed,
        network6=network6.network_address.packed[:8],
        also=also,
    )
    return Stack(addresses, time.monotonic, resolvers=resolvers, ledger=ledger)


def new_port(config: NetConfig | PortAdd, number: int, stack: Stack) -> Port:
    """The guest that a configuration describes; raises UsageError."""
    rules = config.policy
    try:
        mac = bytes.fromhex(config.mac.replace(":", ""))
        guest = packed(config.guest)
    except ValueError as error:
        raise _wrong(f"{error}") from None
    if len(mac) not in (0, 6) or (mac and mac[0] & 1):
        raise _wrong(f"{config.mac!r} is no MAC address of a host.")
    if len(guest) != 4 or not stack.addresses.inside(guest):
        raise _wrong(f"the guest's address {config.guest} is not in the network.")
    if guest in stack.addresses.owned():
        raise _wrong("gateway, host and guest are not three addresses.")
    if any(guest == port.ipv4 or (mac and mac == port.mac) for port in stack.ports.values()):
        raise _wrong(f"{config.guest} or {config.mac} is another guest's.")
    if any(config.name == port.name for port in stack.ports.values()):
        raise _wrong(f"{config.name} is on this network already.")
    if mac == GATEWAY_MAC:
        raise _wrong(f"{config.mac} is the gateway's.")
    if not _MIN_MTU <= config.mtu <= _MAX_MTU:
        raise _wrong(f"an MTU of {config.mtu} is not from {_MIN_MTU} to {_MAX_MTU}.")
    policy = Policy.of(rules.deny, rules.allow, internet=rules.internet)
    aliases = tuple(config.aliases)
    return Port(
        number, mac, guest, config.mtu, policy, config.name, aliases=aliases,
        rate_out=Rate(max(0, rules.rate_out), _BYTES),
        rate_in=Rate(max(0, rules.rate_in), _BYTES),
        rate_flows=Rate(max(0, rules.rate_flows), _FLOWS),
    )  # fmt: skip


def new_rule(forward: Forward, number: int, port: Port) -> ForwardRule:
    """A forward to a guest; raises UsageError."""
    try:
        host = packed(forward.host)
    except ValueError as error:
        raise _wrong(f"{error}") from None
    if not 0 < forward.host_port < 65_536 or not 0 < forward.guest_port < 65_536:
        raise _wrong(f"ports are numbers from 1 to 65535, not {forward.host_port}.")
    return ForwardRule(
        number,
        forward.protocol,
        host,
        forward.host_port,
        port.number,
        forward.guest_port,
    )


def resolvers_of(config: NetConfig) -> list[Resolver]:
    """The DNS servers to ask: those of the configuration, or of the host; raises UsageError."""
    if config.resolvers:
        return [parse_resolver(text) for text in config.resolvers]
    found = []
    for text in _host_resolvers():
        try:
            found.append(parse_resolver(text))
        except UsageError:
            continue  # one that is of no use to us (a scoped address) may be to others
    return found[:_MAX_RESOLVERS]


def parse_resolver(text: str) -> Resolver:
    """ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT; raises UsageError."""
    host, port = text, str(_DNS_PORT)
    if text.startswith("[") or text.count(":") == 1:
        host, _, port = text.rpartition(":")
    try:
        return packed(host.strip("[]")), int(port)
    except ValueError:
        raise _wrong(f"{text!r} is no address of a DNS server.") from None


def _host_resolvers() -> list[str]:
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file.read(64 << 10).splitlines()]
    except OSError:
        return []
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]


def _wrong(what: str) -> UsageError:
    return UsageError(
        f"The network cannot be set up: {what}", code="net.config", hint="Correct its settings."
    )
