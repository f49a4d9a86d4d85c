"""Waiting for lent flows: what is served meanwhile, what is the caller's, and that it gets its turn."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_native import flow as native
from crumble_native.doorbell import Spinner
from crumble_native.flow_wait import READ, WRITE, Waiter
from crumble_netd.header import tcp
from framework.flow_world import ISS, ROOM, SEQ, FlowWorld


class Waiting:
    """A world's rings and sockets, all in one epoll set."""

    def __init__(self, world: FlowWorld) -> None:
        self.world = world
        self.epoll = select.epoll()
        self.rx_kick, self.tx_kick, self.rx_call, self.tx_call = (
            os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(4)
        )
        self.socket = world.ours.fileno()
        for fd in (self.rx_kick, self.tx_kick, self.socket):
            self.epoll.register(fd, select.EPOLLIN)
        self.waiter = Waiter(self.epoll.fileno(), lambda: 50.0)
        self.side = self.waiter.add(
            world.flows, world.rx_queue, world.tx_queue, Spinner(max_us=0),
            (self.rx_kick, self.tx_kick), (self.rx_call, self.tx_call),
        )  # fmt: skip
        assert self.side >= 0
        # As whoever served the ring last leaves it.
        world.tx_queue.enable_kicks()

    def send(self, *chains: bytes) -> None:
        """The guest sends, and kicks if it is to."""
        for chain in chains:
            self.world.tx.submit([chain], [])
        if self.world.tx.kick_wanted():
            os.eventfd_write(self.tx_kick, 1)

    def wait(self) -> list[tuple[int, int]]:
        """What is there now."""
        return self.waiter.wait(0)

    def look(self) -> list[tuple[int, int, int]]:
        """The flow's events, and what is to be done for them."""
        found = self.world.flows.events()
        for index, why, _ in found:
            if why & native.TIMER:
                self.world.flows.deadline(index)
            if why & native.WATCH:
                watched = self.world.flows.watch(index)
                self.epoll.modify(self.socket, select.EPOLLIN if watched else 0)
        return found

    def close(self) -> None:
        self.epoll.close()
        for fd in (self.rx_kick, self.tx_kick, self.rx_call, self.tx_call):
            os.close(fd)
        self.world.close()


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    made = Waiting(FlowWorld())
    yield made
    made.close()


def rung(fd: int) -> bool:
    try:
        return bool(os.eventfd_read(fd))
    except BlockingIOError:
        return False


def test_both_ways_without_the_caller(waiting: Waiting) -> None:
    world = waiting.world
    world.rx.interrupts(wanted=True)
    for i in range(3):
        waiting.send(world.frame(b"question", SEQ + 8 * i, ack=ISS + 6 * i))
        assert waiting.wait() == []
        assert world.received() == b"question"
        assert world.noted()["rcv_nxt"] == SEQ + 8 * (i + 1)
        assert [s.ack for s in world.segments()] == [SEQ + 8 * (i + 1)]
        assert rung(waiting.rx_call)
        assert not rung(waiting.tx_kick)
        world.rx.interrupts(wanted=True)
        world.theirs.send(b"answer")
        found = waiting.wait()
        assert found == ([(waiting.tx_kick, READ)] if i == 0 else []), "its timer, once"
        if found:
            assert waiting.look() == [(7, native.TIMER, 0)]
        assert [bytes(s.payload) for s in world.segments()] == [b"answer"]
        assert rung(waiting.rx_call)
        world.rx.interrupts(wanted=True)
    assert waiting.waiter.chains == 3


def test_a_frame_that_is_not_plain_is_the_caller_s_and_those_before_it_are_not(
    waiting: Waiting,
) -> None:
    world = waiting.world
    waiting.send(world.frame(b"one"), world.frame(b"two", SEQ + 3, flags=tcp.ACK | tcp.FIN))
    assert waiting.wait() == [(waiting.tx_kick, READ)]
    assert world.received() == b"one"
    assert world.tx_queue.pop() is not None
    assert world.tx_queue.pop() is None


def test_what_is_not_lent_is_the_caller_s(waiting: Waiting) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        waiting.epoll.register(ours, select.EPOLLIN | select.EPOLLOUT)
        assert waiting.wait() == [(ours.fileno(), WRITE)]
        theirs.send(b"x")
        assert waiting.wait() == [(ours.fileno(), READ | WRITE)]
        waiting.epoll.modify(ours, 0)
        assert waiting.wait() == []
        theirs.close()
        assert waiting.wait() == [(ours.fileno(), READ | WRITE)], "it is hung up"


def test_a_flow_that_is_taken_back_takes_its_socket_with_it(waiting: Waiting) -> None:
    world = waiting.world
    world.theirs.send(b"x")
    world.flows.recall(7)
    os.eventfd_write(waiting.tx_kick, 1)
    os.eventfd_write(waiting.rx_kick, 1)
    fds = (waiting.rx_kick, waiting.tx_kick, waiting.socket)
    assert sorted(waiting.wait()) == sorted((fd, READ) for fd in fds)
    assert world.lend(9, snd_wnd=1000)
    assert rung(waiting.tx_kick), "nothing was drained for a side with no flows"
    assert (waiting.socket, READ) not in waiting.wait()
    assert [bytes(s.payload) for s in world.segments()] == [b"x"]


def test_a_side_that_is_removed_is_the_caller_s(waiting: Waiting) -> None:
    waiting.waiter.remove(waiting.side)
    waiting.waiter.remove(waiting.side)
    waiting.send(waiting.world.frame(b"x"))
    waiting.world.theirs.send(b"x")
    assert sorted(waiting.wait()) == sorted([(waiting.tx_kick, READ), (waiting.socket, READ)])
    assert waiting.world.received() == b""


def test_the_socket_s_end_is_told_as_a_kick(waiting: Waiting) -> None:
    waiting.world.theirs.close()
    assert waiting.wait() == [(waiting.tx_kick, READ)]
    assert waiting.world.flows.events() == [(7, native.RECALL, 0)]


def test_a_broken_ring_is_told_as_a_kick(waiting: Waiting) -> None:
    waiting.world.tx.set_available(0, 300)
    waiting.world.tx.set_avail_idx(1)
    os.eventfd_write(waiting.tx_kick, 1)
    assert waiting.wait() == [(waiting.tx_kick, READ)]
    with pytest.raises(Exception, match="head index"):
        waiting.world.send()


def test_new_buffers_are_used_without_the_caller() -> None:
    world = FlowWorld(buffers=2)
    waiting = Waiting(world)
    world.theirs.send(bytes(range(250)) * 20)
    waiting.wait()
    assert world.flows.blocked
    assert sum(len(s.payload) for s in world.segments()) == 2000
    assert waiting.look() == [(7, native.TIMER, 0)]
    world.give(10)
    assert world.rx.kick_wanted()
    os.eventfd_write(waiting.rx_kick, 1)
    assert waiting.wait() == []
    assert not world.flows.blocked
    assert sum(len(s.payload) for s in world.segments()) == 3000
    assert not rung(waiting.rx_kick)
    waiting.close()


def test_there_is_a_bound_to_sides_and_descriptors(waiting: Waiting) -> None:
    world = waiting.world
    high = (waiting.rx_kick, 1 << 16)
    rings = (world.flows, world.rx_queue, world.tx_queue, Spinner(max_us=0))
    assert waiting.waiter.add(*rings, high, (waiting.rx_call, waiting.tx_call)) == -1
    assert waiting.waiter.add(*rings, (-1, waiting.tx_kick), (0, 0)) == -1


def test_a_guest_that_never_stops_leaves_the_caller_its_turn(waiting: Waiting) -> None:
    """Without a bound this would not return."""
    world, done = waiting.world, threading.Event()

    def kick() -> None:
        while not done.is_set():
            os.eventfd_write(waiting.tx_kick, 1)

    guest = threading.Thread(target=kick)
    guest.start()
    assert waiting.waiter.wait(None) == []
    done.set()
    guest.join()
    assert world.received() == b""


def test_a_signal_ends_it(waiting: Waiting) -> None:
    """Also one that comes while something is served: it is let in by the next sleep."""
    done, seen = threading.Event(), []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    main = threading.main_thread().ident
    assert main is not None

    def send() -> None:
        while not done.is_set():
            signal.pthread_kill(main, signal.SIGUSR1)

    sender = threading.Thread(target=send)
    sender.start()
    assert waiting.waiter.wait(None) == []
    done.set()
    sender.join()
    signal.signal(signal.SIGUSR1, before)
    assert seen
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_no_wake_up_is_lost() -> None:
    """A guest on another thread that kicks only when it is asked to: each frame gets there while we wait."""
    waiting = Waiting(FlowWorld())
    world, count, end, got = waiting.world, 4000, os.eventfd(0), bytearray()
    waiting.epoll.register(end, select.EPOLLIN)

    def guest() -> None:
        sent = 0
        while sent < count:
            size = sent % 5 + 1
            waiting.send(*(world.frame(b"x", SEQ + sent + i, ack=ISS) for i in range(size)))
            sent += size
            while len(got) < sent:
                if not select.select([world.theirs], [], [], 20)[0]:
                    sent = count  # they wait, and nobody knows
                    break
                got.extend(world.received())
            world.tx.collect()
        os.eventfd_write(end, 1)

    thread = threading.Thread(target=guest)
    thread.start()
    while (end, READ) not in (events := waiting.waiter.wait(None)):
        assert set(events) <= {(waiting.tx_kick, READ)}
        world.segments()
        world.give(64 - world.rx.waiting)
        waiting.look()
        assert not world.flows.burst(world.tx_queue, world.rx_queue, 50.0).left
        world.tx_queue.enable_kicks()
    thread.join()
    os.close(end)
    waiting.close()
    assert len(got) >= count


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("gkhrb"), st.integers(0, 400)), max_size=20))
def test_any_order_gives_the_same_bytes(steps: list[tuple[str, int]]) -> None:
    """Whatever comes in which order: both ends get the other's next bytes."""
    waiting = Waiting(FlowWorld(buffers=8))
    world, sent, host, got, heard = waiting.world, 0, 0, b"", 0
    stream = bytes(range(256)) * 64
    for what, size in steps:
        if what == "g":
            waiting.send(world.frame(stream[sent : sent + size], SEQ + sent, ack=ISS + heard))
            sent += size
        elif what == "h" and host + size < ROOM:
            world.theirs.send(stream[host : host + size])
            host += size
        elif what == "k":
            os.eventfd_write(waiting.tx_kick, 1)
        elif what == "b":
            world.give(size % 8)
            os.eventfd_write(waiting.rx_kick, 1)
        for fd, mask in waiting.wait():
            assert (fd, mask) == (waiting.tx_kick, READ)
            waiting.look()
            _, left = world.flows.burst(world.tx_queue, world.rx_queue, 50.0)
            if left:  # an acknowledgement of nothing
                chain = world.tx_queue.pop()
                assert chain is not None
                world.tx_queue.push(chain, 0)
            world.tx_queue.enable_kicks()
        for segment in world.segments():
            payload = bytes(segment.payload)
            at = (segment.seq - ISS) & 0xFFFFFFFF
            assert payload == stream[at : at + len(payload)]
            heard = max(heard, at + len(payload))
        got += world.received()
    assert got == stream[: len(got)]
    assert heard <= host
    waiting.close()
