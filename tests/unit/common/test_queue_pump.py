"""The queue pump on a real event loop and real rings."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest

from crumble_common.doorbell import Doorbell, QueuePump, Served
from crumble_common.eventloop import EventLoop
from crumble_common.virtqueue import Chain, RingError, Virtqueue
from crumble_native.memory import Memory
from framework.virtqueue_driver import VirtqueueDriver


class Rig:
    """A loop, a pump and one queue whose chains come back as they went."""

    def __init__(self, loop: EventLoop, pump: QueuePump, *, polled: bool = False) -> None:
        memory = Memory()
        memory.add(0, mmap.mmap(-1, 1 << 20))
        self.loop, self.pump = loop, pump
        self.driver = VirtqueueDriver(memory, size=256, at=0, arena=(1 << 16, 1 << 19))
        d = self.driver
        self.queue = Virtqueue(memory, 256, d.desc, d.avail, d.used, event_idx=True)
        self.kick = Doorbell()
        self.notified = 0
        self.kept: list[Chain] = []
        self.keep = False
        self.errors: list[RingError] = []
        self.served = Served(
            self.queue,
            -1 if polled else self.kick.fd,
            self.serve,
            self.notify,
            self.errors.append,
        )

    def serve(self, chain: Chain) -> int | None:
        if self.keep:
            self.kept.append(chain)
            return None
        return chain.write(chain.read())

    def notify(self) -> None:
        self.notified += 1

    def submit(self, count: int = 1) -> None:
        for _ in range(count):
            self.driver.submit([b"echo"], [8])
        if self.driver.kick_wanted():
            self.kick.ring()


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    yield made
    made.close()


@pytest.fixture
def rig(loop: EventLoop) -> Iterator[Rig]:
    made = Rig(loop, QueuePump(loop, spin_us=20))
    made.pump.add(made.served)
    loop.step(0)
    yield made
    made.pump.remove(made.queue)
    made.kick.close()


def test_a_kick_is_served_and_the_driver_notified(rig: Rig) -> None:
    rig.submit()
    rig.loop.step(5)
    assert [data for _, _, data in rig.driver.collect()] == [b"echo"]
    assert rig.notified == 1


def test_a_batch_costs_one_kick_and_one_interrupt(rig: Rig) -> None:
    rig.submit(100)
    rig.loop.step(5)
    assert len(rig.driver.collect()) == 100
    assert rig.notified == 1
    assert rig.pump.stats()["chains"] == 100


def test_what_was_there_before_is_served_without_a_kick(loop: EventLoop) -> None:
    rig = Rig(loop, QueuePump(loop))
    rig.driver.submit([b"early"], [8])
    rig.pump.add(rig.served)
    loop.step(5)
    assert [data for _, _, data in rig.driver.collect()] == [b"early"]
    rig.pump.remove(rig.queue)
    rig.kick.close()


def test_kept_chains_are_finished_later(rig: Rig) -> None:
    rig.keep = True
    rig.submit(2)
    rig.loop.step(5)
    assert rig.driver.collect() == []
    first, second = rig.kept
    rig.pump.finish(rig.queue, second, second.write(b"2"))
    assert [data for _, _, data in rig.driver.collect()] == [b"2"]
    rig.pump.remove(rig.queue)
    rig.pump.finish(rig.queue, first, 0)  # too late: forgotten
    assert rig.driver.collect() == []


def test_a_broken_queue_is_dropped_and_others_go_on(rig: Rig) -> None:
    other = Rig(rig.loop, rig.pump)
    rig.pump.add(other.served)
    rig.driver.set_avail_idx(0x8000)
    rig.kick.ring()
    other.submit(3)
    rig.loop.step(5)
    rig.loop.step(0)
    assert [error.code for error in rig.errors] == ["ring.avail_jump"]
    assert len(other.driver.collect()) == 3
    other.kick.close()


def test_a_flood_leaves_others_their_turn(rig: Rig) -> None:
    """A handler that makes the guest submit more, for ever, does not keep a timer waiting."""
    due: list[int] = []

    def serve(chain: Chain) -> int:
        rig.driver.collect()
        rig.driver.submit([b"more"], [8])
        return 0

    rig.served.serve = serve
    rig.loop.call_later(0.001, lambda: due.append(1))
    rig.submit()
    for _ in range(50):
        rig.loop.step(0)
    assert due
    assert rig.pump.chains > 256


def test_a_queue_without_a_kick_is_polled(loop: EventLoop) -> None:
    rig = Rig(loop, QueuePump(loop), polled=True)
    rig.pump.add(rig.served)
    loop.step(0)
    rig.driver.submit([b"silent"], [8])
    while not rig.driver.used_idx():
        loop.step(5)
    assert [data for _, _, data in rig.driver.collect()] == [b"silent"]
    rig.pump.remove(rig.queue)
    rig.kick.close()


def test_in_lockstep_a_kick_is_answered_by_one_call(loop: EventLoop) -> None:
    pump, counts = QueuePump(loop), []
    pump.lockstep = counts.append
    rig = Rig(loop, pump)
    pump.add(rig.served)
    rig.driver.submit([b"echo"], [8])
    loop.step(0)
    assert (rig.notified, counts) == (0, [])  # what is not kicked is not served
    for kicks in (1, 2):
        os.eventfd_write(rig.kick.fd, 700 * kicks)
        loop.step(0.5)
        loop.step(0)
        assert (rig.notified, counts[-1]) == (kicks, 700 * kicks)  # also when there was nothing
    assert len(rig.driver.collect()) == 1
    pump.remove(rig.queue)
    rig.kick.close()
