"""The vCPU and the loop's thread take turns."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from crumble_common.eventloop import EventLoop
from crumble_common.lockstep import EPOCH_NS, kick_count, kick_time
from crumble_vmm.lockstep import Lockstep


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    yield made
    made.close()


def test_a_turn_does_all_that_comes_of_it_in_the_loops_thread(loop: EventLoop) -> None:
    lockstep, order = Lockstep(loop, b"seed"), []

    def first() -> None:
        order.append(("first", threading.current_thread()))
        lockstep.call_soon_threadsafe(lambda: order.append(("second", threading.current_thread())))

    def vcpu() -> None:
        lockstep.call_soon_threadsafe(first)
        lockstep.give_turn()
        order.append(("vcpu", threading.current_thread()))

    lockstep.settled = lambda: order.append(("settled", threading.current_thread()))
    thread = threading.Thread(target=vcpu)
    thread.start()
    while thread.is_alive():
        loop.step(0.05)
    here = threading.current_thread()
    assert order == [("first", here), ("second", here), ("settled", here), ("vcpu", thread)]


def test_a_turn_with_nothing_to_do_is_not_given(loop: EventLoop) -> None:
    Lockstep(loop, b"seed").give_turn()  # would wait for ever: nobody runs the loop


def test_nobody_waits_when_the_machine_is_over(loop: EventLoop) -> None:
    lockstep = Lockstep(loop, b"seed")
    lockstep.over = lambda: True
    lockstep.call_soon_threadsafe(lambda: None)
    lockstep.give_turn()


def test_entropy_is_the_seeds(loop: EventLoop) -> None:
    one, same, other = Lockstep(loop, b"a"), Lockstep(loop, b"a"), Lockstep(loop, b"b")
    drawn = [one.entropy(16), one.entropy(16)]
    assert drawn == [same.entropy(16), same.entropy(16)]
    assert drawn[0] != drawn[1]
    assert other.entropy(16) not in drawn


def test_a_kick_tells_the_time(loop: EventLoop) -> None:
    lockstep = Lockstep(loop, b"seed")
    assert kick_count(lockstep.time_ns()) == 1  # an eventfd's count is not 0
    lockstep.uptime = lambda: 5_000_900
    assert kick_time(kick_count(lockstep.time_ns())) == EPOCH_NS + 5_000_000
