"""The stack by frames and events: connections, policy and forwards."""

from __future__ import annotations

import errno

import pytest

from crumble_netd import events
from crumble_netd.addresses import packed
from crumble_netd.commands import (
    Adopt,
    HostClose,
    HostConnect,
    HostRead,
    HostSend,
    HostShutdown,
    Refuse,
)
from crumble_netd.flow_table import Limits
from crumble_netd.forward_rules import ForwardRule
from crumble_netd.header import icmp, ipv4, tcp, virtio_net
from crumble_netd.header.virtio_net import Offload
from crumble_netd.policy import Policy
from framework.netd_guest import (
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    HOST,
    INTERNET,
    MAC,
    WEB,
    FakeNetwork,
    connect,
    one,
)

ALL_OFFLOADS = (
    virtio_net.F_CSUM | virtio_net.F_GUEST_CSUM | virtio_net.F_GUEST_TSO4 | virtio_net.F_HOST_TSO4
)


@pytest.fixture
def net() -> FakeNetwork:
    return FakeNetwork()


# -- TCP ------------------------------------------------------------------------------------------


def test_a_connection_through_to_the_host_side(net: FakeNetwork) -> None:
    flow, seq = connect(net)
    net.guest.tcp(WEB, tcp.ACK | tcp.PSH, 1001, seq, b"GET /")
    assert net.asked() == [HostSend(flow, b"GET /")]
    assert one(net.packets()).message.ack == 1006
    net.event(events.Took(flow, 5))
    net.event(events.Received(flow, b"200 OK"))
    answer = one(net.packets()).message
    assert bytes(answer.payload) == b"200 OK"
    net.guest.tcp(WEB, tcp.ACK, 1006, seq + 6)
    assert net.asked() == [HostRead(flow, 6)]
    net.event(events.Closed(flow))
    assert one(net.packets()).message.flags & tcp.FIN
    net.guest.tcp(WEB, tcp.ACK | tcp.FIN, 1006, seq + 7)
    assert net.asked() == [HostShutdown(flow)]
    net.wait(61)
    assert net.asked() == [HostClose(flow)]


def test_refused_is_a_reset_and_unreachable_an_icmp_error(net: FakeNetwork) -> None:
    net.guest.tcp(WEB, tcp.SYN, 7)
    asked = net.asked()[0]
    net.event(events.Failed(asked.flow, errno.ECONNREFUSED))  # type: ignore[union-attr]
    segment = one(net.packets()).message
    assert (segment.flags, segment.ack) == (tcp.RST | tcp.ACK, 8)
    net.asked()
    net.guest.tcp(WEB, tcp.SYN, 7)
    net.event(events.Failed(net.asked()[0].flow, errno.EHOSTUNREACH))  # type: ignore[union-attr]
    packet = one(net.packets())
    assert (packet.message.type, packet.message.code) == (icmp.UNREACHABLE, icmp.HOST)


def test_a_host_side_that_breaks_resets_the_guest(net: FakeNetwork) -> None:
    flow, seq = connect(net)
    net.event(events.Failed(flow, errno.ECONNRESET))
    segment = one(net.packets()).message
    assert (segment.flags & tcp.RST, segment.seq) == (tcp.RST, seq)
    assert net.asked() == [HostClose(flow, reset=True)]


def test_a_guest_that_resets_resets_the_host_side(net: FakeNetwork) -> None:
    flow, seq = connect(net)
    net.guest.tcp(WEB, tcp.RST, 1001, seq)
    assert net.asked() == [HostClose(flow, reset=True)]


def test_segments_of_no_connection_are_reset(net: FakeNetwork) -> None:
    net.guest.tcp(WEB, tcp.ACK, 5, 77)
    segment = one(net.packets()).message
    assert (segment.flags, segment.seq) == (tcp.RST, 77)
    net.guest.tcp(WEB, tcp.RST, 5)
    assert net.packets() == []


def test_a_host_that_takes_nothing_closes_the_window(net: FakeNetwork) -> None:
    flow, seq = connect(net)
    at, window = 1001, 60000
    for _ in range(200):
        if window < 1000:
            break
        net.guest.tcp(WEB, tcp.ACK, at, seq, bytes(1000))
        at += 1000
        window = net.packets()[-1].message.window  # type: ignore[attr-defined]
    assert window < 1000
    sent = sum(len(c.data) for c in net.asked() if isinstance(c, HostSend))
    assert sent == at - 1001 <= 1 << 16
    net.event(events.Took(flow, sent))
    assert one(net.packets()).message.window >= 1 << 15


def test_a_guest_that_does_not_read_stops_the_host_side(net: FakeNetwork) -> None:
    flow, _ = connect(net)
    net.event(events.Received(flow, bytes(1 << 16)))
    net.wait(5)
    assert not any(isinstance(command, HostRead) for command in net.asked())


def test_time_wait_is_left_by_a_new_connection(net: FakeNetwork) -> None:
    flow, seq = connect(net)
    net.event(events.Closed(flow))
    net.guest.tcp(WEB, tcp.ACK | tcp.FIN, 1001, seq + 1)
    net.packets()
    net.asked()
    net.guest.tcp(WEB, tcp.SYN, 900_000)
    assert isinstance(net.asked()[-1], HostConnect)


def test_connections_are_limited_and_time_wait_makes_room() -> None:
    net = FakeNetwork(limits=Limits(tcp=2))
    flow, seq = connect(net, port=50001)
    connect(net, port=50002)
    net.guest.tcp(WEB, tcp.SYN, 1, port=50003)
    assert one(net.packets()).message.flags & tcp.RST
    assert net.port.counts["limit.tcp"] == 1
    net.event(events.Closed(flow))
    net.guest.tcp(WEB, tcp.ACK | tcp.FIN, 1001, seq + 1, port=50001)
    net.packets()
    net.asked()
    net.guest.tcp(WEB, tcp.SYN, 1, port=50003)
    assert any(isinstance(command, HostConnect) for command in net.asked())


def test_offloads_make_one_packet_of_64_kib() -> None:
    net = FakeNetwork(features=ALL_OFFLOADS)
    flow, _ = connect(net)
    net.event(events.Received(flow, bytes(14_000)))
    packet = one(net.packets())
    assert packet.offload.gso_type == virtio_net.GSO_TCPV4
    assert packet.offload.gso_size == 1460
    assert len(packet.message.payload) == 14_000


def test_a_guests_large_segments_are_taken_whole() -> None:
    net = FakeNetwork(features=ALL_OFFLOADS)
    flow, seq = connect(net)
    head = tcp.build(50000, 80, 1001, seq, tcp.ACK, 60000)
    data = bytes(30_000)
    frame = ipv4.build(GUEST, INTERNET, 6, len(head) + len(data)) + head + data
    link = GATEWAY_MAC + MAC + b"\x08\x00"
    net.frame(link + frame, Offload(virtio_net.NEEDS_CSUM, virtio_net.GSO_TCPV4, 54, 1460, 34, 16))
    assert net.asked() == [HostSend(flow, data)]


def test_offloads_that_were_not_negotiated_are_dropped(net: FakeNetwork) -> None:
    net.frame(bytes(64), Offload(virtio_net.NEEDS_CSUM, 0, 0, 0, 34, 16))
    net.frame(bytes(64), Offload(0, virtio_net.GSO_TCPV4, 54, 1460, 34, 16))
    net.frame(bytes(64), Offload(0, virtio_net.GSO_UDP, 54, 1460, 34, 16))
    assert sum(net.drops.values()) == 3


# -- Policy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "0.0.0.0", "169.254.169.254", "255.255.255.255", "::1", "::", "fe80::5", "10.0.2.77",
     "::ffff:127.0.0.1", "::127.0.0.1", "10.0.2.2"],
)  # fmt: skip
def test_what_no_guest_may_reach_by_default(net: FakeNetwork, address: str) -> None:
    net.guest.tcp((packed(address), 80), tcp.SYN, 1)
    net.guest.udp((packed(address), 80), b"x")
    if address != "10.0.2.2":
        net.guest.ping(packed(address))
    assert net.asked() == []


def test_rules_decide() -> None:
    policy = Policy.of(["93.184.0.0/16:443/tcp"], ["host:8080/tcp", "169.254.1.1"], internet=True)
    net = FakeNetwork(policy=policy)
    for address, port, reached in (
        (INTERNET, 80, INTERNET), (INTERNET, 443, None), (HOST, 8080, packed("127.0.0.1")),
        (HOST, 8081, None), (packed("169.254.1.1"), 80, packed("169.254.1.1")),
    ):  # fmt: skip
        net.guest.tcp((address, port), tcp.SYN, 1, port=port + 20000)
        asked = [c.address for c in net.asked() if isinstance(c, HostConnect)]
        assert asked == ([reached] if reached else [])
    assert net.port.counts["refused"] == 2


def test_the_hosts_loopback_is_tried_in_both_families() -> None:
    net = FakeNetwork(policy=Policy.of([], ["host"], internet=True))
    net.guest.tcp((HOST, 80), tcp.SYN, 1)
    first = one(net.asked())
    assert first.address == packed("127.0.0.1")
    net.event(events.Failed(first.flow, errno.ECONNREFUSED))
    second = one(net.asked())
    assert (second.flow, second.address) == (first.flow, packed("::1"))
    net.event(events.Failed(first.flow, errno.ECONNREFUSED))
    assert one(net.packets()).message.flags & tcp.RST


def test_a_guest_that_leaves_is_told_of_its_connections(net: FakeNetwork) -> None:
    flow, seq = connect(net)
    net.guest.udp(WEB, b"question")
    datagrams = one(net.asked()[:1]).flow
    net.stack.end_flows(net.port)
    reset = one(net.packets())
    assert (reset.message.flags, reset.message.seq) == (tcp.RST | tcp.ACK, seq)
    assert net.asked() == [HostClose(flow, reset=True), HostClose(datagrams)]
    assert net.stack.flows.all() == []


def test_a_guest_that_leaves_is_refused_connections(net: FakeNetwork) -> None:
    net.port.leaving = True
    net.guest.tcp(WEB, tcp.SYN, 1000)
    assert one(net.packets()).message.flags == tcp.RST | tcp.ACK
    net.stack.forwards.add(ForwardRule(1, "tcp", packed("127.0.0.1"), 8080, 1, 80))
    net.event(events.Accepted(5, 1, (packed("127.0.0.1"), 33333)))
    assert net.asked() == [Refuse(5)]


# -- Forwards -------------------------------------------------------------------------------------


def test_forwarded_connections_reach_the_guest(net: FakeNetwork) -> None:
    net.stack.forwards.add(ForwardRule(1, "tcp", packed("127.0.0.1"), 8080, 1, 80))
    net.event(events.Accepted(5, 1, (packed("127.0.0.1"), 33333)))
    (adopt,) = net.asked()
    assert adopt == Adopt(5, adopt.flow)  # type: ignore[union-attr]
    packet = one(net.packets())
    syn = packet.message
    assert (packet.source, syn.source, syn.destination, syn.flags) == (GATEWAY, 33333, 80, tcp.SYN)
    net.guest.tcp((GATEWAY, 33333), tcp.SYN | tcp.ACK, 500, syn.seq + 1, port=80)
    assert isinstance(one(net.asked()), HostRead)
    net.event(events.Accepted(6, 9, (packed("127.0.0.1"), 33334)))
    assert net.asked() == [Refuse(6)]


def test_a_guest_that_refuses_resets_the_peer(net: FakeNetwork) -> None:
    net.stack.forwards.add(ForwardRule(1, "tcp", packed("127.0.0.1"), 8080, 1, 80))
    net.event(events.Accepted(5, 1, (packed("198.51.100.7"), 33333)))
    flow = net.asked()[0].flow  # type: ignore[union-attr]
    packet = one(net.packets())
    assert packet.source == packed("198.51.100.7")  # seen as who it is
    net.guest.tcp((packet.source, 33333), tcp.RST | tcp.ACK, 0, packet.message.seq + 1, port=80)
    assert net.asked() == [HostClose(flow, reset=True)]


def test_forwarded_datagrams_reach_the_guest_and_are_answered(net: FakeNetwork) -> None:
    net.stack.forwards.add(ForwardRule(1, "udp", packed("127.0.0.1"), 8053, 1, 53))
    net.event(events.Incoming(5, 1, (packed("127.0.0.1"), 33333), b"question"))
    (adopt,) = net.asked()
    packet = one(net.packets())
    assert (packet.source, packet.message.source) == (GATEWAY, 33333)
    net.guest.udp((GATEWAY, 33333), b"answer", 53)
    assert net.asked() == [HostSend(adopt.flow, b"answer")]  # type: ignore[union-attr]
