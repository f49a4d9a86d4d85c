"""No input from a guest crashes `netd`'s stack, makes it send to a host address that policy forbids, or
grows what it holds beyond its limits; and no input from the host side or a DNS server crashes it.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_netd import events
from crumble_netd.addresses import packed
from crumble_netd.commands import HostConnect, HostSend
from crumble_netd.flow_table import Limits
from crumble_netd.forward_rules import ForwardRule
from crumble_netd.header import Malformed, dns, ethernet, icmp, ipv4, tcp, udp, virtio_net
from crumble_netd.header.virtio_net import Offload
from crumble_netd.layers.reassembly import MAX_BYTES
from framework.netd_guest import (
    GATEWAY,
    GATEWAY6,
    GATEWAY_MAC,
    GUEST,
    HOST,
    INTERNET,
    INTERNET6,
    MAC,
    FakeNetwork,
)

LIMITS = Limits(tcp=8, udp=8, icmp=2, buffers=1 << 20)
RESOLVER = packed("192.0.2.53")
FEATURES = (
    virtio_net.F_CSUM | virtio_net.F_GUEST_CSUM | virtio_net.F_HOST_TSO4 | virtio_net.F_GUEST_TSO4
)
FORBIDDEN = [
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.2.0/24", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
        "::/96", "::ffff:0:0/96", "fe80::/10", "ff00::/8", "fd63:7275:6d62:6c65::/64",
    )
]  # fmt: skip

destinations = st.sampled_from(
    [GATEWAY, HOST, INTERNET, INTERNET6, GATEWAY6, GUEST, packed("127.0.0.1"), packed("::1"),
     packed("169.254.169.254"), packed("::ffff:127.0.0.1"), packed("255.255.255.255"),
     packed("224.0.0.251"), packed("ff02::2"), packed("0.0.0.0")]
)  # fmt: skip
small = st.binary(max_size=80)
numbers = st.integers(0, 0xFFFFFFFF)
ports = st.sampled_from([53, 67, 80, 443, 40000])
near = st.integers(-3000, 70_000)


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, Any]:
    """Something a guest does, or the host side."""
    kind = draw(st.sampled_from(
        ["raw", "mutated", "ip", "udp", "tcp", "tcp", "tcp", "ping", "icmp6", "dns", "fragment",
         "event", "event", "event", "wait", "forward", "open", "open"]
    ))  # fmt: skip
    values: dict[str, st.SearchStrategy[Any]] = {
        "raw": st.tuples(st.binary(max_size=200), offloads),
        "mutated": st.tuples(destinations, st.integers(0, 90), st.integers(0, 255), small, offloads),
        "ip": st.tuples(destinations, st.integers(0, 255), small),
        "udp": st.tuples(destinations, ports, small),
        "tcp": st.tuples(destinations, ports, st.integers(0, 63), near, near, small,
                         st.integers(0, 3), st.integers(0, 65535), options),
        "ping": st.tuples(destinations, numbers, small),
        "icmp6": st.tuples(destinations, st.sampled_from([1, 2, 3, 128, 133, 135, 136]), numbers, small),
        "dns": st.tuples(small),
        "fragment": st.tuples(st.integers(0, 65528), small, st.booleans(), st.integers(0, 3)),
        "event": st.tuples(st.integers(0, 7), st.integers(0, 20), small),
        "wait": st.tuples(st.sampled_from([0.01, 0.3, 2.0, 40.0, 200.0])),
        "open": st.tuples(st.integers(0, 3), options),
        "forward": st.tuples(st.integers(1, 3), st.booleans(), small),
    }  # fmt: skip
    return kind, draw(values[kind])


offloads = st.builds(
    Offload, st.integers(0, 3), st.sampled_from([0, 0, 0, 1, 3, 4, 5, 0x81]), st.integers(0, 100),
    st.integers(0, 2000), st.integers(0, 200), st.integers(0, 40),
)  # fmt: skip
options = st.one_of(
    st.just(tcp.NO_OPTIONS),
    st.builds(
        tcp.Options, st.integers(0, 65535), st.integers(0, 14), st.booleans(),
        st.lists(st.tuples(numbers, numbers), max_size=2).map(tuple),
        st.none() | st.tuples(numbers, numbers),
    ),
)  # fmt: skip


class Fuzz:
    """Plays steps and checks the invariant after each."""

    def __init__(self) -> None:
        self.net = FakeNetwork(features=FEATURES, limits=LIMITS)
        for number, kind in ((1, "tcp"), (2, "udp")):
            self.net.stack.forwards.add(
                ForwardRule(number, kind, packed("127.0.0.1"), 8000, 1, 80)  # type: ignore[arg-type]
            )
        self.flows: list[int] = [0]
        self.next = {0: (1000, 5000)}
        self.token = 0

    def play(self, kind: str, values: Any) -> None:
        getattr(self, kind)(*values)
        self.check()

    def check(self) -> None:
        net = self.net
        for packet in net.packets():
            if packet.kind == "tcp" and isinstance(packet.message, tcp.Segment):
                segment = packet.message
                self.next[segment.destination & 3] = (segment.ack, segment.seq + segment.length)
        for command in net.asked():
            if isinstance(command, HostConnect):
                self.flows.append(command.flow)
                if command.address != RESOLVER:
                    found = ipaddress.ip_address(command.address)
                    assert not any(found in network for network in FORBIDDEN), found
            elif isinstance(command, HostSend):
                assert len(command.data) <= 65_535 + 60
        counts = net.stack.flows.counts
        assert counts[1, "tcp"] <= LIMITS.tcp
        assert counts[1, "udp"] <= LIMITS.udp
        assert counts[1, "icmp"] <= LIMITS.icmp
        assert counts[-1, "udp"] <= 256
        assert 0 <= net.stack.budget.used <= LIMITS.buffers
        stores = net.stack.ip._fragments.values()
        assert sum(store.size for store in stores) <= MAX_BYTES
        assert len(net.stack.dns._streams) <= LIMITS.tcp

    # The guest.

    def raw(self, data: bytes, offload: Offload) -> None:
        self.net.frame(data, offload)

    def mutated(self, to: bytes, at: int, value: int, data: bytes, offload: Offload) -> None:
        """A good frame of which one byte is not."""
        head = tcp.build(50000, 80, 1, 1, tcp.ACK, 1000)
        ip = ipv4.build(GUEST, to[-4:], tcp.PROTOCOL, len(head) + len(data))
        frame = bytearray(ethernet.build(GATEWAY_MAC, MAC, ethernet.IPV4) + ip + head + data)
        frame[at % len(frame)] = value
        self.net.frame(bytes(frame), offload)

    def ip(self, to: bytes, protocol: int, data: bytes) -> None:
        if len(to) == 4:
            self.net.guest.ip(GUEST, to, protocol, data)

    def udp(self, to: bytes, port: int, data: bytes) -> None:
        self.net.guest.udp((to, port), data)

    def tcp(
        self, to: bytes, port: int, flags: int, seq: int, ack: int, data: bytes, slot: int,
        window: int, extra: tcp.Options,
    ) -> None:  # fmt: skip
        base_seq, base_ack = self.next.get(slot, (1000, 5000))
        words = extra._replace(sack=()) if extra.timestamps and len(extra.sack) > 1 else extra
        self.net.guest.tcp(
            (to, port), flags, (base_seq + seq * (seq % 3 == 0)) & 0xFFFFFFFF,
            (base_ack + ack * (ack % 3 == 0)) & 0xFFFFFFFF, data, port=50000 + slot,
            window=window, options=words,
        )  # fmt: skip

    def open(self, slot: int, extra: tcp.Options) -> None:
        """A handshake as it should be."""
        words = extra._replace(sack=())
        self.net.guest.tcp(
            (INTERNET, 80), tcp.SYN, 900, port=50000 + slot, options=words, window=60000
        )
        self.check()
        self.net.event(events.Connected(self.flows[-1]))
        self.check()
        self.tcp(INTERNET, 80, tcp.ACK, 0, 0, b"", slot, 60000, words)

    def ping(self, to: bytes, rest: int, data: bytes) -> None:
        self.net.guest.ping(to, rest, data)

    def icmp6(self, to: bytes, kind: int, rest: int, body: bytes) -> None:
        if len(to) == 16:
            self.net.guest.icmp6(to, kind, rest, body)
        else:
            data = icmp.build(icmp.UNREACHABLE, 4, rest, body)
            self.net.guest.ip(GUEST, to, icmp.PROTOCOL, data)

    def dns(self, data: bytes) -> None:
        head = b"\0\7\1\0\0\1\0\0\0\0\0\0"
        self.net.guest.udp((GATEWAY, 53), head + data)
        self.net.guest.udp((GATEWAY, 53), head + b"\3www\7example\3org\0\0\1\0\1" + data)

    def fragment(self, offset: int, data: bytes, more: bool, identification: int) -> None:
        self.net.guest.ip(
            GUEST, INTERNET, udp.PROTOCOL, data[: len(data) & ~7] if more else data,
            offset=offset & ~7, more=more, identification=identification,
        )  # fmt: skip

    # The host side.

    def event(self, kind: int, which: int, data: bytes) -> None:
        flow = self.flows[-1 - which % len(self.flows)]
        made: list[events.Event] = [
            events.Connected(flow), events.Failed(flow, 111), events.Failed(flow, 113),
            events.Received(flow, data), events.Received(flow, b"\0\7\x81\x80\0\1\0\1" + data),
            events.Closed(flow), events.Took(flow, 0), events.Received(flow, bytes(5000)),
        ]  # fmt: skip
        self.net.event(made[kind])

    def wait(self, seconds: float) -> None:
        self.net.wait(seconds)

    def forward(self, rule: int, datagram: bool, data: bytes) -> None:
        self.token += 1
        peer = (packed("127.0.0.1"), 40_000 + self.token % 5)
        event: events.Event = events.Accepted(self.token, rule, peer)
        if datagram:
            event = events.Incoming(self.token, rule, peer, data)
        self.net.event(event)
        self.net.settle()
        self.flows += [
            c.flow for c in self.net.commands if hasattr(c, "token") and hasattr(c, "flow")
        ]


@settings(max_examples=150, deadline=None)
@given(st.lists(steps(), max_size=40))
def test_the_stack_bears_everything(script: list[tuple[str, Any]]) -> None:
    fuzz = Fuzz()
    for kind, values in script:
        fuzz.play(kind, values)
    fuzz.net.wait(4000)
    fuzz.check()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120))
def test_dns_messages_are_understood_or_malformed(data: bytes) -> None:
    for message in (data, b"\0\7\x81\x80\0\1\0\2\0\1\0\1\3www\0\0\1\0\1" + data):
        try:
            found = dns.parse(message)
        except Malformed:
            continue
        assert len(dns.aged(message, found.records, 10)) == len(message)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_tcp_options_are_understood_or_malformed(data: bytes) -> None:
    try:
        found = tcp.parse_options(data)
    except Malformed:
        return
    assert tcp.parse_options(tcp.build_options(found))[:3] == found[:3]
