"""A clone's connections of before are reset, and nothing else is, whatever a snapshot says."""

from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_common.errors import UsageError
from crumble_netd import events
from crumble_netd.header import tcp
from crumble_netd.severed import connections_of, sever
from framework.netd_guest import GUEST, INTERNET, WEB, FakeNetwork


def connected(net: FakeNetwork) -> int:
    """Of the guest's port 40000 with WEB; the sequence number that the guest expects next."""
    net.guest.tcp(WEB, tcp.SYN, 1)
    (asked,) = net.asked()
    net.event(events.Connected(asked.flow))
    (answer,) = net.packets()
    net.guest.tcp(WEB, tcp.ACK, 2, answer.message.seq + 1)
    return int(answer.message.seq + 1)


def test_a_clone_is_told_that_nobody_is_there() -> None:
    parent, clone = FakeNetwork(), FakeNetwork()
    assert connections_of(parent.stack, parent.port) == b""
    expected = connected(parent)
    told = connections_of(parent.stack, parent.port)
    sever(clone.stack, clone.port, told)
    (packet,) = clone.packets()
    segment = packet.message
    assert (packet.source, packet.destination) == (INTERNET, GUEST)
    assert (segment.source, segment.destination) == (
        WEB[1],
        parent.stack.flows.all()[0].key.guest_port,
    )
    assert (segment.flags & tcp.RST, segment.seq) == (tcp.RST, expected)


def test_what_is_there_again_is_left_alone() -> None:
    net = FakeNetwork()
    connected(net)
    net.packets()
    sever(net.stack, net.port, connections_of(net.stack, net.port))
    assert net.packets() == []


END = st.binary(max_size=17)
NUMBER = st.integers(-1, 1 << 33)
ROW = st.tuples(END, NUMBER, END, NUMBER, NUMBER).map(list)


@given(st.one_of(st.binary(max_size=40), st.lists(ROW, max_size=3).map(msgpack.packb)))
def test_any_bytes_are_refused_or_reset_connections_of_this_guest(data: bytes) -> None:
    net = FakeNetwork()
    with contextlib.suppress(UsageError):
        sever(net.stack, net.port, data)
    assert all(
        packet.destination == GUEST or len(packet.destination) == 16 for packet in net.packets()
    )


@pytest.mark.parametrize(
    "row", [[GUEST, 0, INTERNET, 80, 1], [GUEST, 80, INTERNET, 80, 1 << 32], [b"", 1]]
)
def test_nonsense_is_refused(row: list[object]) -> None:
    net = FakeNetwork()
    with pytest.raises(UsageError):
        sever(net.stack, net.port, msgpack.packb([row]))
