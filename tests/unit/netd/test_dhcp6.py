"""DHCPv6: what a client that wants to know the DNS server is told, and what is dropped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from crumble_netd.addresses import packed
from crumble_netd.header import Malformed, dhcp6
from framework.netd_guest import GATEWAY6, GATEWAY_MAC, LINK6, ROUTER6, FakeNetwork, one

SERVERS = packed("ff02::1:2")
CLIENT = b"\0\3\0\1\2\0\0\0\0\1"


def ask(options: dict[int, bytes], kind: int = dhcp6.INFORMATION_REQUEST) -> FakeNetwork:
    net = FakeNetwork()
    data = dhcp6.build(kind, b"abc", options)
    net.guest.udp((SERVERS, 547), data, port=546, source=LINK6)
    return net


def test_who_asks_is_told_the_dns_server() -> None:
    net = ask({dhcp6.CLIENT_ID: CLIENT, 6: b"\0\x17\0\x18"})
    packet = one(net.packets())
    assert (packet.source, packet.destination) == (ROUTER6, LINK6)
    assert (packet.message.source, packet.message.destination) == (547, 546)
    answer = dhcp6.parse(packet.message.payload)
    assert (answer.kind, answer.xid) == (dhcp6.REPLY, b"abc")
    assert answer.options[dhcp6.CLIENT_ID] == CLIENT
    assert answer.options[dhcp6.SERVER_ID] == dhcp6.duid(GATEWAY_MAC)
    assert answer.options[dhcp6.DNS_SERVERS] == GATEWAY6
    assert answer.options[dhcp6.DOMAIN_LIST] == b"\x08internal\0"


@pytest.mark.parametrize(
    ("options", "kind", "counted"),
    [
        ({dhcp6.SERVER_ID: b"another"}, dhcp6.INFORMATION_REQUEST, ""),
        ({dhcp6.IA_NA: bytes(12)}, dhcp6.INFORMATION_REQUEST, "drop.dhcp6.address"),
        ({dhcp6.CLIENT_ID: bytes(131)}, dhcp6.INFORMATION_REQUEST, "drop.dhcp6.duid"),
        ({dhcp6.IA_NA: bytes(12)}, 1, "dhcp6.other"),
        ({}, dhcp6.REPLY, "dhcp6.other"),
    ],
)
def test_what_is_not_answered(options: dict[int, bytes], kind: int, counted: str) -> None:
    net = ask(options, kind)
    assert net.packets() == []
    assert not counted or net.port.counts[counted] == 1


@given(some.binary(max_size=200))
def test_any_bytes_are_understood_or_malformed(data: bytes) -> None:
    """Whatever comes to port 547, it is a message or Malformed."""
    try:
        message = dhcp6.parse(memoryview(data))
    except Malformed:
        return
    assert len(message.xid) == 3
