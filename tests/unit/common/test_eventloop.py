"""The event loop: who is called, when, in which thread; with a fake clock where time matters."""

import gc
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from crumble_common import eventloop
from crumble_common.eventloop import EventLoop


class FakeClock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["epoll", "selectors"])
def loop(
    clock: FakeClock, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EventLoop]:
    if request.param == "selectors":
        monkeypatch.setattr(eventloop, "_Epoll", eventloop._Selector)
    made = EventLoop(clock)
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    left.setblocking(False)
    yield left, right
    left.close()
    right.close()


def test_timers_fire_in_order_of_time_and_once(loop: EventLoop, clock: FakeClock) -> None:
    fired: list[str] = []
    loop.call_later(2, lambda: fired.append("b"))
    loop.call_later(1, lambda: fired.append("a"))
    loop.call_later(2, lambda: fired.append("c"))
    loop.step(0)
    assert fired == []
    clock.time += 2
    loop.step(0)
    loop.step(0)
    assert fired == ["a", "b", "c"]


def test_a_cancelled_timer_does_not_fire(loop: EventLoop, clock: FakeClock) -> None:
    fired: list[str] = []
    timer = loop.call_later(1, lambda: fired.append("x"))
    timer.cancel()
    clock.time += 5
    loop.step(0)
    assert fired == []


def test_readable_fd_is_served_each_round_until_removed(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    left, right = pair
    rounds: list[int] = []
    loop.add_fd(left.fileno(), "peer", lambda: rounds.append(1))
    loop.step(0)
    assert rounds == []
    right.send(b"x")
    loop.step(0)
    loop.step(0)
    assert len(rounds) == 2
    assert loop.counts["peer"] == 2
    loop.remove_fd(left.fileno())
    loop.remove_fd(left.fileno())
    loop.step(0)
    assert len(rounds) == 2


def test_writable_is_asked_for_and_given_up(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    left, _ = pair
    rounds: list[str] = []
    loop.add_fd(left.fileno(), "peer", lambda: rounds.append("r"))
    loop.set_writable(left.fileno(), "peer", lambda: rounds.append("w"))
    loop.step(0)
    loop.set_writable(left.fileno(), "peer", None)
    loop.step(0)
    assert rounds == ["w"]


def test_a_callback_may_remove_its_own_fd(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    left, right = pair
    right.send(b"x")
    loop.add_fd(left.fileno(), "peer", lambda: loop.remove_fd(left.fileno()))
    loop.set_writable(left.fileno(), "peer", lambda: pytest.fail("removed already"))
    loop.step(0)
    assert loop.counts["peer"] == 1


def test_another_thread_wakes_the_loop() -> None:
    loop = EventLoop()
    ran: list[int] = []

    def call() -> None:
        ran.append(threading.get_ident())
        loop.stop()

    thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(call))
    thread.start()
    loop.run()
    thread.join()
    loop.close()
    assert ran == [threading.get_ident()]


def test_every_message_of_a_zmq_socket_is_served_though_its_fd_is_edge_triggered(
    loop: EventLoop,
) -> None:
    context = zmq.Context()
    left, right = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    left.bind("inproc://pair")
    right.connect("inproc://pair")
    got: list[bytes] = []

    def serve() -> None:
        got.append(left.recv(zmq.NOBLOCK))
        left.send(b"reply")  # processes commands, and so eats the edge

    loop.add_socket(left, "control", serve)
    for number in range(200):
        right.send(b"%d" % number)
    while len(got) < 200:
        loop.step(5)
    assert got == [b"%d" % number for number in range(200)]
    loop.remove_socket(left)
    context.destroy(0)


def test_an_exception_ends_run_unless_somebody_takes_it(loop: EventLoop) -> None:
    def fail() -> None:
        raise KeyError("x")

    loop.call_soon(fail)
    with pytest.raises(KeyError):
        loop.step(0)
    taken: list[tuple[str, Exception]] = []
    loop.on_error = lambda kind, error: taken.append((kind, error))
    loop.call_soon(fail)
    loop.step(0)
    assert [kind for kind, _ in taken] == ["call"]


def test_close_frees_every_fd() -> None:
    gc.collect()  # what other tests left must not be freed in between
    before = open_fds()
    loop = EventLoop()
    loop.call_later(5, lambda: None)
    loop.close()
    assert open_fds() == before


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_comes_after_the_end_is_lost() -> None:
    """A signal handler may post while everything is being freed."""
    loop = EventLoop()
    loop.close()
    loop.close()
    loop.call_soon_threadsafe(lambda: None)


def test_a_loop_is_not_closed_while_a_thread_wakes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fd would be another's by the time that it is written to."""
    loop = EventLoop()
    closer = threading.Thread(target=loop.close)
    write = os.write

    def late(fd: int, data: bytes) -> int:
        closer.start()
        closer.join(0.05)
        os.fstat(fd)  # raises when it is closed
        return write(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", late)
        loop.call_soon_threadsafe(lambda: None)
    closer.join()
    loop.call_soon_threadsafe(lambda: None)
