"""Waiting for lent UDP flows beside TCP's, on the same rings: what is served meanwhile, and what is the caller's."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_native.doorbell import Spinner
from crumble_native.flow_wait import READ, Waiter
from crumble_netd.header import tcp
from framework.flow_world import SEQ, FlowWorld
from framework.udp_world import UdpWorld

MTU = 1500


class Both:
    """A TCP flow and a UDP flow of one guest, in one epoll set."""

    def __init__(self, buffers: int = 64) -> None:
        self.tcp = FlowWorld(buffers=buffers)
        self.udp = UdpWorld(buffers=0, mtu=MTU, rings=self.tcp.rings)
        self.epoll = select.epoll()
        self.rx_kick, self.tx_kick, self.rx_call, self.tx_call = (
            os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(4)
        )
        self.socket = self.udp.ours.fileno()
        for fd in (self.rx_kick, self.tx_kick, self.tcp.ours.fileno(), self.socket):
            self.epoll.register(fd, select.EPOLLIN)
        self.waiter = Waiter(self.epoll.fileno(), lambda: 50.0)
        side = self.waiter.add(
            self.tcp.flows, self.tcp.rx_queue, self.tcp.tx_queue, Spinner(max_us=0),
            (self.rx_kick, self.tx_kick), (self.rx_call, self.tx_call), self.udp.flows,
        )  # fmt: skip
        assert side >= 0
        self.tcp.tx_queue.enable_kicks()
        self.told = [(self.tx_kick, READ)]

    def send(self, *chains: bytes) -> list[tuple[int, int]]:
        """The guest sends; what is then the caller's."""
        for chain in chains:
            self.tcp.tx.submit([chain], [])
        if self.tcp.tx.kick_wanted():
            os.eventfd_write(self.tx_kick, 1)
        return self.waiter.wait(0)

    def answer(self, *datagrams: bytes) -> list[tuple[int, int]]:
        """The host sends datagrams; what is then the caller's."""
        for data in datagrams:
            self.udp.theirs.send(data)
        return self.waiter.wait(0)

    def close(self) -> None:
        self.epoll.close()
        for fd in (self.rx_kick, self.tx_kick, self.rx_call, self.tx_call):
            os.close(fd)
        self.udp.close()
        self.tcp.close()


@pytest.fixture
def both() -> Iterator[Both]:
    made = Both()
    yield made
    made.close()


def rung(fd: int) -> bool:
    try:
        return bool(os.eventfd_read(fd))
    except BlockingIOError:
        return False


@pytest.mark.parametrize("alone", [False, True])
def test_both_ways_without_the_caller(both: Both, alone: bool) -> None:
    if alone:
        both.tcp.flows.recall(7)
    for number in range(3):
        both.tcp.rx.interrupts(wanted=True)
        assert both.send(both.udp.frame(b"one"), both.udp.frame(b"two")) == []
        assert both.udp.received() == [b"one", b"two"]
        assert not rung(both.rx_call)
        assert both.answer(b"answer", b"", b"x" * 1000) == []
        assert both.udp.datagrams() == [b"answer", b"", b"x" * 1000]
        assert rung(both.rx_call)
        assert both.waiter.chains == 2 * (number + 1)


def test_segments_and_datagrams_in_any_order(both: Both) -> None:
    u, segment = both.udp.frame, both.tcp.frame
    chains = [
        u(b"1"),
        segment(b"a"),
        segment(b"b", SEQ + 1),
        u(b"2"),
        u(b"3"),
        segment(b"c", SEQ + 2),
    ]
    assert both.send(*chains) == []
    assert both.udp.received() == [b"1", b"2", b"3"]
    assert both.tcp.received() == b"abc"
    assert both.waiter.chains == 6


@pytest.mark.parametrize("alone", [False, True])
def test_what_is_neither_s_is_the_caller_s_and_what_is_before_it_is_not(
    both: Both, alone: bool
) -> None:
    if alone:
        both.tcp.flows.recall(7)
    odd = both.tcp.frame(b"odd", flags=tcp.ACK | tcp.FIN)
    assert both.send(both.udp.frame(b"1"), odd, both.udp.frame(b"2")) == both.told
    assert both.udp.received() == [b"1"]
    assert both.tcp.tx_queue.pop() is not None
    assert both.udp.send() == (1, False)
    assert both.udp.received() == [b"2"]


def test_with_a_full_ring_the_caller_waits_for_room() -> None:
    both = Both(buffers=2)
    sent = [b"%d" % number for number in range(40)]
    assert both.answer(*sent) == both.told
    assert both.udp.datagrams() == sent[:2]
    assert both.udp.flows.waiting == 3
    assert both.waiter.wait(0) == [(both.socket, READ)], "what is left is left in the socket"
    both.udp.give(60)
    both.udp.flows.resume(both.udp.rx_queue)
    assert both.udp.flows.waiting is None
    assert both.waiter.wait(0) == []
    assert both.udp.datagrams() == sent[2:]
    both.close()


def test_one_that_fits_no_packet_is_the_caller_s(both: Both) -> None:
    large = b"x" * MTU
    assert both.answer(b"1", large, b"2") == both.told
    assert both.udp.flows.odd() == large
    both.udp.flows.resume(both.udp.rx_queue)
    assert both.udp.datagrams() == [b"1", b"2"]


def test_an_error_of_the_socket_is_told(both: Both) -> None:
    both.udp.theirs.close()
    both.send(both.udp.frame(b"1"))
    found = both.waiter.wait(0)
    assert found == both.told or both.udp.flows.events()
    both.udp.theirs = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def test_one_that_is_taken_back_takes_its_socket_with_it(both: Both) -> None:
    both.udp.flows.recall(3)
    assert both.answer(b"1") == [(both.socket, READ)]
    assert both.udp.flows.lend(5, both.udp.key, both.socket, 40.0)
    assert both.waiter.wait(0) == []
    assert both.udp.datagrams() == [b"1"]
    both.waiter.remove(0)
    assert both.answer(b"2") == [(both.socket, READ)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["datagram", "segment", "answer", "room"]), max_size=60))
def test_any_order_gives_the_same_bytes(steps: list[str]) -> None:
    both = Both(buffers=8)
    sent: dict[str, list[bytes]] = {"datagram": [], "segment": [], "answer": []}
    got: list[bytes] = []
    at = SEQ
    for number, step in enumerate(steps):
        data = b"%d," % number
        if step == "room":
            got += [data for _, _, data in both.tcp.rx.collect()]
            both.udp.give(8)
            both.udp.flows.resume(both.udp.rx_queue)
            both.tcp.flows.unblock(both.tcp.rx_queue, 50.0)
            both.waiter.wait(0)
            continue
        sent[step].append(data)
        if step == "answer":
            both.answer(data)
        elif step == "datagram":
            both.send(both.udp.frame(data))
        else:
            both.send(both.tcp.frame(data, at))
            at += len(data)
        both.tcp.flows.events()
    both.udp.give(120)
    both.udp.flows.resume(both.udp.rx_queue)
    both.waiter.wait(0)
    got += [data for _, _, data in both.tcp.rx.collect()]
    assert both.udp.received() == sent["datagram"]
    assert both.tcp.received() == b"".join(sent["segment"])
    whole = b"".join(got)
    places = [whole.find(data) for data in sent["answer"]]
    assert -1 not in places
    assert places == sorted(places)
    both.close()
