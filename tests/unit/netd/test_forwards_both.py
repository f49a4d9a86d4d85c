"""Forwards to guests of which nobody says by which of their addresses they listen: IPv4, IPv6, or both."""

from __future__ import annotations

import pytest

from crumble_netd import events
from crumble_netd.addresses import LINK_LOCAL6, packed
from crumble_netd.commands import Adopt, HostClose, HostRead, HostSend, Kind
from crumble_netd.forward_rules import ForwardRule
from crumble_netd.header import arp, icmp, ipv6, tcp
from crumble_netd.layers.udp import ASKED
from framework.netd_guest import GATEWAY, GATEWAY6, GUEST, GUEST6, MAC, NETWORK6, FakeNetwork, one

PEER4, PEER6 = (packed("127.0.0.1"), 33333), (packed("::1"), 33333)
SYN_ACK, REFUSED = tcp.SYN | tcp.ACK, tcp.RST | tcp.ACK


@pytest.fixture
def net() -> FakeNetwork:
    return FakeNetwork()


def probe(net: FakeNetwork, address: bytes = GUEST6) -> None:
    """The guest is about to have an IPv6 address (RFC 4862 §5.4); it sends nothing from it."""
    net.guest.icmp6(
        ipv6.solicited_node(address), icmp.NEIGHBOR_SOLICITATION, 0, address, source=ipv6.ANY
    )
    assert net.packets() == []


def arrive(net: FakeNetwork, peer: tuple[bytes, int], kind: Kind = "tcp") -> int:
    """Somebody comes by a forward; the flow."""
    rule = ForwardRule(1, kind, packed("127.0.0.1"), 8080, 1, 80)
    net.stack.forwards.add(rule)
    if kind == "tcp":
        net.event(events.Accepted(5, 1, peer))
    else:
        net.event(events.Incoming(5, 1, peer, b"question"))
    (adopt,) = net.asked()
    assert isinstance(adopt, Adopt)
    return adopt.flow


def syn(net: FakeNetwork) -> tuple[bytes, int]:
    """The one SYN that the guest got: where it was for, and what acknowledges it."""
    packet = one(net.packets())
    assert packet.message.flags == tcp.SYN
    assert (packet.source, packet.message.source) == (
        (GATEWAY, 33333) if len(packet.source) == 4 else (GATEWAY6, 33333)
    )
    return packet.destination, packet.message.seq + 1


def answer(net: FakeNetwork, guest: bytes, flags: int, ack: int) -> None:
    gateway = GATEWAY if len(guest) == 4 else GATEWAY6
    net.guest.tcp((gateway, 33333), flags, 500, ack, port=80, source=guest)


@pytest.mark.parametrize(
    ("peer", "first", "second"), [(PEER4, GUEST, GUEST6), (PEER6, GUEST6, GUEST)]
)
def test_the_peer_s_family_is_first_and_the_other_next(
    net: FakeNetwork, peer: tuple[bytes, int], first: bytes, second: bytes
) -> None:
    probe(net)
    arrive(net, peer)
    to, ack = syn(net)
    assert to == first
    answer(net, first, REFUSED, ack)
    to, ack = syn(net)
    assert to == second
    answer(net, second, SYN_ACK, ack)
    assert isinstance(one(net.asked()), HostRead)


@pytest.mark.parametrize("peer", [PEER4, PEER6])
def test_a_guest_that_refuses_at_both_has_refused(
    net: FakeNetwork, peer: tuple[bytes, int]
) -> None:
    probe(net)
    flow = arrive(net, peer)
    for _ in range(2):
        to, ack = syn(net)
        assert net.asked() == []
        answer(net, to, REFUSED, ack)
    assert net.asked() == [HostClose(flow, reset=True)]
    assert net.packets() == []


def test_a_guest_with_ipv6_alone_is_found_and_remembered(net: FakeNetwork) -> None:
    probe(net)
    arrive(net, PEER4)
    assert syn(net)[0] == GUEST
    net.wait(1.0)
    to, ack = syn(net)
    assert to == GUEST6
    answer(net, GUEST6, SYN_ACK, ack)
    assert isinstance(one(net.asked()), HostRead)
    net.packets()
    net.event(events.Accepted(6, 1, (PEER4[0], 33334)))
    assert one(net.packets()).destination == GUEST6
    net.guest.arp(GATEWAY)  # it has IPv4 now
    net.event(events.Accepted(7, 1, (PEER4[0], 33335)))
    assert [packet.destination for packet in net.packets() if packet.kind == "tcp"] == [GUEST]


def test_a_guest_that_is_silent_for_a_while_is_asked_by_both_in_turn(net: FakeNetwork) -> None:
    """RFC 6298's times; a guest that stood still answers what it was asked first last, and is not led astray."""
    probe(net)
    flow = arrive(net, PEER4)
    asked = [syn(net)]
    for seconds in (1.0, 2.0, 4.0):
        net.wait(seconds)
        asked.append(syn(net))
    assert [to for to, _ in asked] == [GUEST, GUEST6, GUEST, GUEST6]
    answer(net, GUEST, SYN_ACK, asked[0][1])  # nobody is there any more
    assert one(net.packets()).message.flags == tcp.RST
    answer(net, GUEST6, REFUSED, asked[3][1])
    to, ack = syn(net)
    assert to == GUEST
    answer(net, GUEST, SYN_ACK, ack)
    assert net.asked() == [HostRead(flow, 65_536)]


def test_one_refusal_and_silence_are_a_refusal(net: FakeNetwork) -> None:
    probe(net)
    flow = arrive(net, PEER6)
    to, ack = syn(net)
    answer(net, to, REFUSED, ack)
    assert syn(net)[0] == GUEST
    net.wait(1.0)
    assert syn(net)[0] == GUEST
    assert net.asked() == []
    net.wait(2.0)
    assert net.asked() == [HostClose(flow, reset=True)]


def test_silence_ends_when_it_would_with_one_address() -> None:
    ends = []
    for both in (False, True):
        net = FakeNetwork()
        if both:
            probe(net)
        flow = arrive(net, PEER4)
        while not (asked := net.asked()):
            net.wait(net.stack.deadline() - net.time)
        assert asked == [HostClose(flow, reset=True)]
        ends.append((net.time, len(net.packets())))
    assert ends[0] == ends[1]


def test_a_guest_without_ipv6_is_asked_by_ipv4(net: FakeNetwork) -> None:
    flow = arrive(net, PEER6)
    to, ack = syn(net)
    assert to == GUEST
    answer(net, GUEST, REFUSED, ack)
    assert net.asked() == [HostClose(flow, reset=True)]


@pytest.mark.parametrize("address", [NETWORK6 + bytes(7) + b"\x01", packed("2001:db8::1")])
def test_addresses_that_are_not_a_guest_s_are_not_learnt(net: FakeNetwork, address: bytes) -> None:
    net.guest.icmp6(
        ipv6.solicited_node(address), icmp.NEIGHBOR_SOLICITATION, 0, address, source=ipv6.ANY
    )
    assert net.port.ipv6 == b""


def test_who_asks_for_a_router_has_the_address_that_its_mac_makes(net: FakeNetwork) -> None:
    """Crumble's guests probe for no address."""
    link = ipv6.eui64(LINK_LOCAL6, MAC)
    net.guest.icmp6(packed("ff02::2"), icmp.ROUTER_SOLICITATION, 0, b"", source=link)
    net.packets()
    assert net.port.ipv6 == GUEST6
    probe(net, NETWORK6 + b"temporar")
    net.guest.icmp6(packed("ff02::2"), icmp.ROUTER_SOLICITATION, 0, b"", source=link)
    assert net.port.ipv6 == NETWORK6 + b"temporar"


def test_datagrams_go_by_ipv6_where_ipv4_is_not_answered_for(net: FakeNetwork) -> None:
    probe(net)
    flow = arrive(net, PEER4, "udp")
    asked, datagram = net.packets()
    assert isinstance(asked.message, arp.Arp)
    assert (asked.message.operation, asked.message.target) == (arp.REQUEST, GUEST)
    assert datagram.destination == GUEST
    net.event(events.Received(flow, b"at once"))
    assert one(net.packets()).destination == GUEST
    net.wait(ASKED)
    net.event(events.Received(flow, b"again"))
    packet = one(net.packets())
    assert (packet.source, packet.destination) == (GATEWAY6, GUEST6)
    net.guest.udp((GATEWAY6, 33333), b"answer", 80)
    assert net.asked() == [HostSend(flow, b"answer")]
    net.event(events.Incoming(6, 1, (PEER4[0], 33334), b"another"))
    assert one(net.packets()).destination == GUEST6


def test_datagrams_go_on_by_ipv4_where_the_guest_has_it(net: FakeNetwork) -> None:
    probe(net)
    flow = arrive(net, PEER4, "udp")
    net.packets()
    net.guest.arp(GATEWAY)
    net.wait(ASKED)
    net.event(events.Received(flow, b"again"))
    assert [p.destination for p in net.packets() if p.kind == "udp"] == [GUEST]
