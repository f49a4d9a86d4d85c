"""The stack by frames and events: what a guest sends, what it gets, what the host side is asked."""

from __future__ import annotations

import errno
import struct

import pytest

from crumble_netd import events
from crumble_netd.addresses import packed
from crumble_netd.commands import (
    HostClose,
    HostConnect,
    HostSend,
)
from crumble_netd.flow_table import Limits
from crumble_netd.header import arp, dhcp, icmp, ipv4, ipv6, tcp, udp
from framework.netd_guest import (
    GATEWAY,
    GATEWAY6,
    GATEWAY_MAC,
    GUEST,
    GUEST6,
    HOST,
    INTERNET,
    INTERNET6,
    LINK6,
    MAC,
    ROUTER6,
    WEB,
    FakeNetwork,
    one,
)


@pytest.fixture
def net() -> FakeNetwork:
    return FakeNetwork()


# -- Link -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [GATEWAY, HOST])
def test_arp_is_answered_for_gateway_and_host(net: FakeNetwork, target: bytes) -> None:
    net.guest.arp(target)
    answer = one(net.packets()).message
    assert answer == arp.Arp(arp.REPLY, GATEWAY_MAC, target, MAC, GUEST)


def test_arp_for_others_and_probes_of_its_own_address_are_not_answered(net: FakeNetwork) -> None:
    net.guest.arp(packed("10.0.2.99"))
    net.guest.arp(GUEST, sender=bytes(4))
    assert net.packets() == []


def test_spoofed_senders_are_dropped(net: FakeNetwork) -> None:
    net.guest.arp(GATEWAY, sender=packed("10.0.2.16"))
    net.guest.arp(GATEWAY, mac=b"\x02\0\0\0\0\x07")
    net.guest.udp(WEB, b"x", source=packed("10.0.2.16"))
    net.guest.udp((INTERNET6, 80), b"x", source=packed("2001:db8::1"))
    net.guest.udp((INTERNET6, 80), b"x", source=GATEWAY6)
    frame = bytearray(64)
    frame[6:12] = b"\x02\0\0\0\0\x07"
    net.frame(bytes(frame))
    assert net.packets() == []
    assert net.asked() == []
    assert net.drops == {"spoofed": 6}


def test_land_is_dropped(net: FakeNetwork) -> None:
    net.guest.tcp((GUEST, 80), tcp.SYN, 1)
    assert net.drops == {"land": 1}


def test_a_guest_without_a_mac_is_known_by_its_first_frame() -> None:
    net = FakeNetwork()
    net.port.mac = b""
    net.guest.arp(GATEWAY)
    kinds = [packet.kind for packet in net.packets()]
    assert kinds == ["icmp", "arp"]  # a router advertisement, at once, and the answer
    assert net.port.mac == MAC


# -- Echo -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [GATEWAY, HOST, GATEWAY6])
def test_the_gateway_answers_pings(net: FakeNetwork, target: bytes) -> None:
    net.guest.ping(target)
    packet = one(net.packets())
    assert packet.source == target
    assert packet.message.type in (icmp.ECHO_REPLY, icmp.ECHO_REPLY6)
    assert bytes(packet.message.body) == b"ping"


def test_pings_of_others_go_through_the_hosts_ping_sockets(net: FakeNetwork) -> None:
    net.guest.ping(INTERNET)
    connect, send = net.asked()
    assert (connect.kind, connect.address) == ("icmp", INTERNET)
    assert send.data[0] == icmp.ECHO
    reply = icmp.build(icmp.ECHO_REPLY, 0, 0x99990001, b"ping")  # the kernel's own identifier
    net.event(events.Received(connect.flow, reply))
    packet = one(net.packets())
    assert packet.source == INTERNET
    assert packet.message.rest == 0x12340001
    net.wait(31)
    assert net.asked() == [HostClose(connect.flow)]


# -- IPv6 -----------------------------------------------------------------------------------------


def test_router_solicitation_is_answered(net: FakeNetwork) -> None:
    net.guest.icmp6(packed("ff02::2"), icmp.ROUTER_SOLICITATION, 0, b"", source=LINK6)
    packet = one(net.packets())
    assert packet.source == ROUTER6
    assert packet.destination == ipv6.ALL_NODES
    assert packet.mac == bytes.fromhex("333300000001")
    body = bytes(packet.message.body)
    assert GATEWAY_MAC in body
    assert GATEWAY6 in body
    assert struct.pack("!I", 1500) in body
    net.wait(1801)
    assert one(net.packets()).message.type == icmp.ROUTER_ADVERTISEMENT


def test_neighbours_are_found(net: FakeNetwork) -> None:
    asked = ipv6.solicited_node(GATEWAY6)
    net.guest.icmp6(asked, icmp.NEIGHBOR_SOLICITATION, 0, GATEWAY6 + b"\x01\x01" + MAC)
    packet = one(net.packets())
    assert packet.destination == GUEST6
    assert bytes(packet.message.body) == GATEWAY6 + b"\x02\x01" + GATEWAY_MAC
    assert packet.message.rest >> 29 == 0b111


def test_discovery_from_afar_is_dropped(net: FakeNetwork) -> None:
    net.guest.icmp6(packed("ff02::2"), icmp.ROUTER_SOLICITATION, 0, b"", source=LINK6, hops=64)
    assert net.packets() == []
    assert net.drops == {"nd.hops": 1}


# -- DHCP -----------------------------------------------------------------------------------------


def dhcp_message(kind: int, **options: bytes) -> bytes:
    head = struct.pack("!BBBBIHH4s4s4s4s16s192x4s", 1, 1, 6, 0, 7, 0, 0, bytes(4), bytes(4),
                       bytes(4), bytes(4), MAC.ljust(16, b"\0"), b"\x63\x82\x53\x63")  # fmt: skip
    numbers = {"requested": dhcp.REQUESTED, "server": dhcp.SERVER}
    body = bytes((dhcp.KIND, 1, kind))
    for name, value in options.items():
        body += bytes((numbers[name], len(value))) + value
    return head + body + b"\xff"


def dhcp_answer(net: FakeNetwork, message: bytes) -> tuple[bytes, bytes]:
    net.guest.udp((ipv4.BROADCAST, 67), message, 68, source=ipv4.ANY)
    packet = one(net.packets())
    assert packet.destination == ipv4.BROADCAST
    data = bytes(packet.message.payload)
    return data[16:20], data[240:]


def test_dhcp_gives_the_one_address(net: FakeNetwork) -> None:
    yours, options = dhcp_answer(net, dhcp_message(dhcp.DISCOVER))
    assert yours == GUEST
    assert options.startswith(bytes((dhcp.KIND, 1, dhcp.OFFER)))
    assert bytes((dhcp.ROUTER, 4)) + GATEWAY in options
    assert bytes((dhcp.DNS, 4)) + GATEWAY in options
    yours, options = dhcp_answer(net, dhcp_message(dhcp.WANT, requested=GUEST, server=GATEWAY))
    assert yours == GUEST
    assert options.startswith(bytes((dhcp.KIND, 1, dhcp.ACK)))
    _, options = dhcp_answer(net, dhcp_message(dhcp.WANT, requested=packed("10.0.2.99")))
    assert options.startswith(bytes((dhcp.KIND, 1, dhcp.NAK)))


# -- UDP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [INTERNET, INTERNET6])
def test_udp_flows(net: FakeNetwork, address: bytes) -> None:
    net.guest.udp((address, 5000), b"question")
    connect, send = net.asked()
    assert connect == HostConnect(connect.flow, "udp", address, 5000)
    assert send == HostSend(connect.flow, b"question")
    net.guest.udp((address, 5000), b"again")
    assert net.asked() == [HostSend(connect.flow, b"again")]
    net.event(events.Received(connect.flow, b"answer"))
    packet = one(net.packets())
    assert (packet.source, packet.message.source, packet.message.destination) == (
        address,
        5000,
        40000,
    )
    assert bytes(packet.message.payload) == b"answer"
    net.wait(179)
    assert net.asked() == []
    net.wait(2)
    assert net.asked() == [HostClose(connect.flow)]


def test_a_refused_datagram_is_an_icmp_error(net: FakeNetwork) -> None:
    net.guest.udp((INTERNET, 5000), b"question")
    flow = net.asked()[0].flow  # type: ignore[union-attr]
    net.event(events.Failed(flow, errno.ECONNREFUSED))
    packet = one(net.packets())
    assert packet.source == INTERNET
    assert (packet.message.type, packet.message.code) == (icmp.UNREACHABLE, icmp.PORT)
    quoted = ipv4.parse(memoryview(bytes(packet.message.body)))
    assert (quoted.source, quoted.destination) == (GUEST, INTERNET)
    assert bytes(packet.message.body)[20:24] == struct.pack("!HH", 40000, 5000)


def test_large_datagrams_go_in_fragments_both_ways(net: FakeNetwork) -> None:
    data = bytes(range(256)) * 16
    pseudo_free = (
        udp.build(40000, 5000, data, 0)[:6] + b"\0\0" + data
    )  # no checksum: IPv4 allows it
    for at in range(0, len(pseudo_free), 1480):
        piece = pseudo_free[at : at + 1480]
        net.guest.ip(GUEST, INTERNET, 17, piece, offset=at, more=at + 1480 < len(pseudo_free),
                     identification=9)  # fmt: skip
    _, send = net.asked()
    assert send.data == data  # type: ignore[union-attr]
    net.event(events.Received(send.flow, data))  # type: ignore[union-attr]
    pieces = net.packets()
    assert [piece.fragment for piece in pieces] == [(0, True), (1480, True), (2960, False)]
    whole = b"".join(bytes(piece.message) for piece in pieces)  # type: ignore[call-overload]
    assert whole[8:] == data


def test_overlapping_fragments_are_refused(net: FakeNetwork) -> None:
    net.guest.ip(GUEST, INTERNET, 17, bytes(24), offset=0, more=True, identification=9)
    net.guest.ip(GUEST, INTERNET, 17, bytes(24), offset=16, more=True, identification=9)
    net.guest.ip(GUEST, INTERNET, 17, bytes(24), offset=40, more=False, identification=9)
    assert net.asked() == []
    assert net.drops == {"fragment.overlap": 2}


def test_the_oldest_flow_makes_room() -> None:
    net = FakeNetwork(limits=Limits(udp=4))
    for port in range(6):
        net.guest.udp((INTERNET, 5000), b"x", 41000 + port)
        net.wait(0.1)
    assert sum(isinstance(command, HostClose) for command in net.asked()) == 2
    assert net.port.counts["limit.udp"] == 2
