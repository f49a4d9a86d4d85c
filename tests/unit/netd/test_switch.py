"""Several guests on one network: what goes between them, and what does not."""

from __future__ import annotations

import random

import pytest

from crumble_netd.addresses import packed
from crumble_netd.claims import Claims
from crumble_netd.commands import Frame, Transmit
from crumble_netd.header import Malformed, arp, checksum, dns, ethernet, icmp, ipv4, ipv6, tcp, udp
from crumble_netd.header import virtio_net as v
from crumble_netd.header.virtio_net import NOTHING, Offload
from crumble_netd.policy import Policy
from crumble_netd.port import Port
from crumble_netd.segment import fit
from framework.netd_guest import (
    GATEWAY,
    GUEST,
    GUEST6,
    LINK6,
    MAC,
    NETWORK6,
    FakeNetwork,
    one,
    parse,
)

MAC2, GUEST2 = bytes.fromhex("020000000002"), packed("10.0.2.16")
GUEST2_6 = ipv6.eui64(NETWORK6, MAC2)
ALL = v.F_CSUM | v.F_GUEST_CSUM | v.F_HOST_TSO4 | v.F_HOST_TSO6 | v.F_GUEST_TSO4 | v.F_GUEST_TSO6


class Pair(FakeNetwork):
    """A second guest beside the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.second = Port(2, MAC2, GUEST2, self.mtu, Policy(), "other")
        self.stack.add_port(self.second)
        self.frames: dict[int, list[Frame]] = {1: [], 2: []}

    def got(self, number: int) -> list[Frame]:
        self.stack.flush()
        for command in self.stack.take():
            if isinstance(command, Transmit):
                self.frames[command.port].append(command.frame)
        found, self.frames[number] = self.frames[number], []
        return found

    def to_second(self, kind: int, data: bytes, offload: Offload = NOTHING) -> None:
        self.stack.frame(1, ethernet.build(MAC2, MAC, kind) + data, offload)

    def datagram(self, source: bytes, to: bytes, data: bytes = b"hello", port: int = 7) -> bytes:
        pseudo = checksum.pseudo(source, to, udp.PROTOCOL, udp.SIZE + len(data))
        payload = udp.build(port, port, data, pseudo) + data
        build = ipv4.build if len(source) == 4 else ipv6.build
        return build(source, to, udp.PROTOCOL, len(payload)) + payload


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_guests_find_and_reach_each_other(pair: Pair) -> None:
    pair.guest.arp(GUEST2)
    asked = one(pair.got(2))
    assert parse(asked).message == arp.Arp(arp.REQUEST, MAC, GUEST, bytes(6), GUEST2)
    assert pair.got(1) == []
    answer = arp.build(arp.Arp(arp.REPLY, MAC2, GUEST2, MAC, GUEST))
    pair.stack.frame(2, ethernet.build(MAC, MAC2, ethernet.ARP) + answer)
    assert parse(one(pair.got(1))).message == arp.Arp(arp.REPLY, MAC2, GUEST2, MAC, GUEST)
    for kind, source, to in (
        (ethernet.IPV4, GUEST, GUEST2),
        (ethernet.IPV6, GUEST6, GUEST2_6),
    ):
        pair.to_second(kind, pair.datagram(source, to))
        found = parse(one(pair.got(2)))
        assert (found.kind, found.source, found.destination) == ("udp", source, to)
    assert pair.drops == {}


def test_nobody_hears_what_is_not_for_him(pair: Pair) -> None:
    pair.stack.frame(1, ethernet.build(b"\x02\0\0\0\0\x09", MAC, ethernet.ARP) + bytes(28))
    pair.guest.ping(GATEWAY)
    assert pair.got(2) == []
    assert pair.drops == {"other_mac": 1}


def neighbour(kind: int, target: bytes, source: bytes = GUEST6) -> bytes:
    to = ipv6.ALL_NODES
    pseudo = checksum.pseudo(source, to, icmp.PROTOCOL6, icmp.SIZE + 16)
    data = icmp.build(kind, 0, 0, target, pseudo)
    return ipv6.build(source, to, icmp.PROTOCOL6, len(data), hop_limit=255) + data


def test_a_guest_speaks_for_itself_only(pair: Pair) -> None:
    second = packed("10.0.2.16")
    forged = arp.build(arp.Arp(arp.REPLY, MAC, second, MAC2, GUEST2))
    pair.to_second(ethernet.ARP, forged)
    pair.to_second(ethernet.IPV4, pair.datagram(packed("10.0.2.77"), GUEST2))
    pair.to_second(ethernet.IPV6, pair.datagram(GUEST2_6, ipv6.eui64(NETWORK6, MAC2)))
    all_nodes = ethernet.multicast6(ipv6.ALL_NODES)
    for kind, target in (
        (icmp.NEIGHBOR_ADVERTISEMENT, GUEST2_6),
        (icmp.NEIGHBOR_ADVERTISEMENT, NETWORK6 + bytes(7) + b"\x01"),
        (icmp.ROUTER_ADVERTISEMENT, bytes(16)),
    ):
        frame = ethernet.build(all_nodes, MAC, ethernet.IPV6) + neighbour(kind, target)
        pair.stack.frame(1, frame)
    pair.to_second(ethernet.IPV4, pair.datagram(GUEST, GUEST2, port=67))
    assert pair.got(2) == []
    assert pair.drops == {"spoofed": 5, "nd.router": 1, "dhcp.server": 1}
    good = neighbour(icmp.NEIGHBOR_ADVERTISEMENT, GUEST6)
    pair.stack.frame(1, ethernet.build(all_nodes, MAC, ethernet.IPV6) + good)
    assert parse(one(pair.got(2))).source == GUEST6


def test_who_used_an_address_first_has_it_until_it_leaves(pair: Pair) -> None:
    private = NETWORK6 + b"\x11" * 8
    pair.to_second(ethernet.IPV6, pair.datagram(private, GUEST2_6))
    assert len(pair.got(2)) == 1
    frame = ethernet.build(MAC, MAC2, ethernet.IPV6) + pair.datagram(private, GUEST6)
    pair.stack.frame(2, frame)
    assert pair.second.counts["drop.spoofed"] == 1
    pair.stack.remove_port(1)
    pair.stack.frame(2, ethernet.build(MAC, MAC2, ethernet.IPV6) + pair.datagram(private, GUEST6))
    assert pair.second.counts["drop.spoofed"] == 1


def test_a_guest_that_claims_all_addresses_loses_its_own_oldest() -> None:
    claims = Claims()
    assert claims.claim(1, b"mine", fixed=True)
    for number in range(100):
        assert claims.claim(2, bytes((number,)))
    assert claims.claim(1, b"\0")
    assert not claims.claim(2, b"\0")
    assert not claims.claim(1, bytes((99,)))
    assert not claims.claim(2, b"mine")


def test_names_are_known_both_ways(pair: Pair) -> None:
    for kind, address in ((dns.A, GUEST2), (dns.AAAA, GUEST2_6)):
        question = b"\x05other\x08internal\0" + kind.to_bytes(2, "big") + b"\0\1"
        query = b"\0\1\1\0\0\1\0\0\0\0\0\0" + question
        pair.guest.udp((GATEWAY, 53), query)
        answer = bytes(parse(one(pair.got(1))).message.payload)  # type: ignore[attr-defined]
        assert answer.endswith(address)
    question = b"\x0216\x012\x010\x0210\x07in-addr\x04arpa\0\0\x0c\0\1"
    pair.guest.udp((GATEWAY, 53), b"\0\1\1\0\0\1\0\0\0\0\0\0" + question)
    answer = bytes(parse(one(pair.got(1))).message.payload)  # type: ignore[attr-defined]
    assert answer.endswith(b"\x05other\x08internal\0")
    pair.stack.remove_port(2)
    pair.guest.udp((GATEWAY, 53), b"\0\1\1\0\0\1\0\0\0\0\0\0" + question)
    gone = bytes(parse(one(pair.got(1))).message.payload)  # type: ignore[attr-defined]
    assert gone[3] & 0xF == dns.NAME_ERROR


def segment(six: bool, size: int, mss: int) -> tuple[bytes, Offload, bytes]:
    """A large segment whose checksum was left to the device."""
    source, to = (GUEST6, GUEST2_6) if six else (GUEST, GUEST2)
    data = random.Random(size).randbytes(size)
    head = tcp.build(1000, 2000, 0xFFFFFF00, 5, tcp.ACK | tcp.FIN | 0x88, 100)
    pseudo = checksum.pseudo(source, to, tcp.PROTOCOL, len(head) + len(data))
    head = head[:16] + pseudo.to_bytes(2, "big") + head[18:]
    ip = (ipv6.build if six else ipv4.build)(source, to, tcp.PROTOCOL, len(head) + size)
    frame = ethernet.build(MAC2, MAC, ethernet.IPV6 if six else ethernet.IPV4) + ip + head + data
    kind = v.GSO_TCPV6 if six else v.GSO_TCPV4
    return frame, Offload(v.NEEDS_CSUM, kind, 99, mss, 14 + len(ip), 16), data


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("features", [0, ALL])
def test_large_segments_are_cut_for_who_does_not_take_them(six: bool, features: int) -> None:
    pair = Pair(features=ALL)
    pair.second.features = features
    frame, offload, data = segment(six, 3333, 1000)
    pair.stack.frame(1, frame, offload)
    found = pair.got(2)
    if features:
        assert one(found).offload == offload._replace(hdr_len=offload.csum_start + 20)
        return
    segments = [parse(part).message for part in found]  # verifies the checksums
    assert [s.seq for s in segments] == [  # type: ignore[attr-defined]
        (0xFFFFFF00 + at) & 0xFFFFFFFF for at in range(0, 3333, 1000)
    ]
    assert b"".join(bytes(s.payload) for s in segments) == data  # type: ignore[attr-defined]
    assert [bool(s.flags & tcp.FIN) for s in segments] == [False, False, False, True]  # type: ignore[attr-defined]


def test_a_checksum_is_filled_in_for_who_wants_one() -> None:
    pair = Pair(features=ALL)
    frame, offload, _ = segment(six=False, size=100, mss=1000)
    pair.stack.frame(1, frame, offload._replace(gso_type=0))
    parse(one(pair.got(2)))


def test_no_frame_breaks_the_cutting_of_frames() -> None:
    """Whatever headers and offloads a guest writes, `fit` gives frames or says Malformed."""
    dice = random.Random(5)
    port = Port(2, MAC2, GUEST2, 1500, Policy())
    cut = 0
    for _ in range(3000):
        six = dice.random() < 0.5
        frame, offload, _ = segment(six, dice.randrange(3000), dice.randrange(1, 2000))
        broken = bytearray(frame[: dice.randrange(50, len(frame) + 1)])
        for _ in range(dice.randrange(3)):
            broken[dice.randrange(12, min(len(broken), 74))] = dice.randrange(256)
        if dice.random() < 0.3:
            offload = offload._replace(csum_start=dice.randrange(40), gso_size=dice.randrange(80))
        try:
            found = fit(memoryview(bytes(broken)), offload, port)
        except Malformed:
            continue
        cut += len(found) > 1
        assert sum(part.size for part in found) < 66_000 * 70
    assert cut > 100


def test_the_link_local_address_is_guarded(pair: Pair) -> None:
    frame = ethernet.build(MAC, MAC2, ethernet.IPV6) + pair.datagram(LINK6, GUEST6)
    pair.stack.frame(2, frame)
    assert pair.second.counts["drop.spoofed"] == 1


def test_no_frame_reaches_another_guest_under_another_name() -> None:
    """Whatever a guest sends, what another one gets of it is from the sender's own MAC and IP addresses."""
    dice = random.Random(11)
    pair = Pair(features=ALL)
    frames = [
        ethernet.build(to, MAC, kind) + data
        for to in (MAC2, ethernet.BROADCAST, ethernet.multicast6(ipv6.ALL_NODES))
        for kind, data in (
            (ethernet.IPV4, pair.datagram(GUEST, GUEST2)),
            (ethernet.IPV6, pair.datagram(GUEST6, GUEST2_6)),
            (ethernet.IPV6, neighbour(icmp.NEIGHBOR_ADVERTISEMENT, GUEST6)),
            (ethernet.ARP, arp.build(arp.Arp(arp.REPLY, MAC, GUEST, MAC2, GUEST2))),
        )
    ]
    delivered = 0
    for _ in range(4000):
        frame = bytearray(dice.choice(frames))
        for _ in range(dice.randrange(3)):
            frame[dice.randrange(len(frame))] = dice.randrange(256)
        pair.stack.frame(1, bytes(frame[: dice.randrange(20, len(frame) + 1) * 9]))
        for found in pair.got(2):
            raw = found.head + b"".join(found.payload)
            assert raw[6:12] in (MAC, pair.stack.addresses.mac)
            if raw[6:12] != MAC:
                continue
            delivered += 1
            kind = int.from_bytes(raw[12:14], "big")
            if kind == ethernet.IPV4:
                assert raw[26:30] in (GUEST, ipv4.ANY)
            elif kind == ethernet.ARP:
                assert raw[22:28] == MAC
                assert raw[28:32] in (GUEST, ipv4.ANY)
            else:
                assert raw[22:38] not in (GUEST2_6, ipv6.eui64(LINK6[:8], MAC2))
        pair.got(1)
    assert delivered > 1000
