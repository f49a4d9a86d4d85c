"""Policy by DNS name, and rates: what a guest may begin, and how much of it."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as some

from crumble_common.arena import Arena
from crumble_common.errors import UsageError
from crumble_common.eventloop import EventLoop
from crumble_common.messages.net import ARENA, ARENA_SIZE, ARENA_VERSION, Refusal
from crumble_common.parking import Lot
from crumble_common.service import Context
from crumble_netd import events
from crumble_netd.addresses import packed
from crumble_netd.commands import HostConnect, HostSend
from crumble_netd.header import dns, tcp
from crumble_netd.policy import Policy, parse_rule
from crumble_netd.rate import Rate
from crumble_netd.resolved import GRACE, MOST, Resolved
from crumble_netd.survival import Survival
from framework.netd_guest import GATEWAY, INTERNET, FakeNetwork

GOOD, OTHER = packed("198.51.100.7"), packed("198.51.100.8")


class Link:
    """To a supervisor that is not there."""

    def send(self, *_: object) -> None: ...


def question(name: str) -> bytes:
    head = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0)
    return head + dns.build_name(tuple(name.encode().split(b"."))) + b"\0\1\0\1"


def resolve(net: FakeNetwork, name: str, address: bytes, ttl: int = 60) -> None:
    """The guest asks; the host's resolver answers."""
    net.guest.udp((GATEWAY, 53), question(name))
    asked = net.asked()
    flow = next(c.flow for c in asked if isinstance(c, HostConnect))
    query = bytes(next(c.data for c in asked if isinstance(c, HostSend)))
    record = dns.build_record(dns.A, ttl, address)
    net.event(events.Received(flow, dns.answer(query, dns.parse(query), 0, [record])))
    net.asked()
    assert len(net.packets()) == 1


def reaches(net: FakeNetwork, address: bytes, port: int = 443) -> bool:
    net.guest.tcp((address, port), tcp.SYN, 1, port=40_000 + port)
    asked = net.asked()
    connected = [c for c in asked if isinstance(c, HostConnect)]
    for command in connected:
        net.event(events.Failed(command.flow, 111))
    net.packets()
    return bool(connected)


def network(allow: list[str], deny: list[str], *, internet: bool) -> FakeNetwork:
    return FakeNetwork(policy=Policy.of(deny, allow, internet=internet))


def test_a_name_allows_what_it_resolved_to_as_long_as_that_holds() -> None:
    net = network(["Example.org:443/tcp", "*.good.test"], [], internet=False)
    assert not reaches(net, GOOD)
    resolve(net, "example.org", GOOD, ttl=100)
    assert reaches(net, GOOD)
    assert not reaches(net, GOOD, 80)
    assert not reaches(net, OTHER)
    resolve(net, "a.b.good.test", OTHER)
    assert reaches(net, OTHER, 80)
    net.wait(99 + GRACE)
    assert reaches(net, GOOD)
    net.wait(2)
    assert not reaches(net, GOOD)


def test_other_names_allow_nothing() -> None:
    net = network(["example.org", "*.good.test"], [], internet=False)
    for name in ("good.test", "badgood.test", "example.org.evil.test", "xexample.org"):
        resolve(net, name, GOOD)
        assert not reaches(net, GOOD)


def test_a_denied_name_stays_denied_and_other_dns_is_out_of_reach() -> None:
    net = network([], ["bad.test"], internet=True)
    assert reaches(net, GOOD)
    resolve(net, "bad.test", GOOD, ttl=1)
    net.wait(10_000)
    assert not reaches(net, GOOD)
    assert reaches(net, OTHER)
    assert not reaches(net, INTERNET, 53)
    assert not reaches(net, INTERNET, 853)
    net.guest.udp((INTERNET, 53), question("bad.test"))
    assert not any(isinstance(c, HostConnect) for c in net.asked())
    assert reaches(network([], [], internet=True), INTERNET, 53)


def test_no_name_leads_to_a_special_address() -> None:
    net = network(["*.evil.test"], [], internet=True)
    for number, address in enumerate(("169.254.169.254", "127.0.0.1")):
        resolve(net, f"r{number}.evil.test", packed(address))
        assert not reaches(net, packed(address), 80)


def test_what_is_remembered_has_a_limit() -> None:
    resolved = Resolved()
    for number in range(MOST + 10):
        resolved.add(number.to_bytes(4, "big"), f"n{number}", 10.0)
    assert resolved.ever(bytes(4)) == []
    for number in range(1000):
        resolved.add(b"same", f"n{number}", 10.0)
    assert len(resolved.ever(b"same")) == 32
    assert resolved.names(b"same", 11.0) == []


def test_what_a_guest_was_told_refused_and_sent_outlives_a_netd() -> None:
    arena, lot = Arena.create(ARENA, ARENA_VERSION, ARENA_SIZE), Lot(1)

    def survival() -> Survival:
        fds = {"arena": os.dup(arena.fd), "parking": lot.open().detach()}
        return Survival(Context("netd", fds, EventLoop(), Link()))

    dead, alive = (network([], ["bad.test"], internet=True) for _ in range(2))
    first = survival()
    first.port("box")
    refused = [Refusal(1.5, "tcp", "10.0.0.1", 80, ["bad.test"])]
    dead.stack.on_learnt = lambda: first.remember([("box", dead.port, [], refused)])
    resolve(dead, "bad.test", GOOD, ttl=1)
    second = survival()
    assert second.refused("box") == refused
    assert second.refused("other") == []
    assert second.port("box") == alive.port.number
    second.recall(alive.port)
    assert not reaches(alive, GOOD)
    assert reaches(alive, OTHER)
    assert alive.port.counts["rx.frames"] > dead.port.counts["rx.frames"] > 0
    lot.close()
    arena.close()


def test_what_is_kept_of_names_has_a_limit() -> None:
    resolved, again = Resolved(), Resolved()
    for number in range(MOST):
        resolved.add(number.to_bytes(4, "big"), "x" * 250, 10.0)
    packed = resolved.pack()
    assert 900 < len(packed) < 1000
    again.restore(packed)
    assert again.ever((MOST - 1).to_bytes(4, "big")) == ["x" * 250]
    assert again.pack() == packed


@given(some.text(max_size=40))
def test_a_rule_is_understood_or_refused(text: str) -> None:
    """Whatever is written as a rule, it is a Rule or a UsageError, and asking it never fails."""
    try:
        rule = parse_rule(text)
    except UsageError:
        return
    rule.matches(GOOD, 80, "tcp", ["example.org"], host=False)


@pytest.mark.parametrize(
    "text",
    ["example.org", "*.example.org:80-90/udp", "a_b.example.co.uk/tcp", "xn--bcher-kva.test"],
)
def test_names_as_people_write_them(text: str) -> None:
    assert parse_rule(text).name == text.partition(":")[0].partition("/")[0]


@pytest.mark.parametrize(
    "text", ["example", "*.", "*", "a..b", "-a-.b c", "exa mple.org", "1.2.3.4.5"]
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(UsageError):
        parse_rule(text)


def test_new_flows_have_a_rate() -> None:
    net = FakeNetwork()
    net.port.rate_flows = Rate(2.0, 3.0)
    assert [reaches(net, GOOD, port) for port in range(1, 6)] == [True, True, True, False, False]
    assert net.port.counts["limit.rate"] == 2
    net.wait(1.01)
    assert [reaches(net, GOOD, port) for port in range(6, 10)] == [True, True, False, False]


def test_a_rate_is_kept_in_the_long_run() -> None:
    rate, now, sent = Rate(1_000_000.0, 131_072), 5.0, 0
    while now < 15.0:
        now += rate.wait(now) + 1e-9
        rate.spend(65_000, now)
        sent += 65_000
    assert 9_900_000 < sent < 10_400_000
    assert Rate().wait(1.0) == 0.0
