"""Doorbells and adaptive waiting."""

from __future__ import annotations

import mmap
import os
import threading
import time

import pytest

from crumble_native import doorbell
from crumble_native.doorbell import Doorbell, Spinner
from crumble_native.memory import Memory
from crumble_native.vring import Virtqueue
from framework.virtqueue_driver import VirtqueueDriver

SEVERAL_CPUS = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) == 1, reason="a thread with one CPU never spins"
)


def queue() -> tuple[VirtqueueDriver, Virtqueue]:
    memory = Memory()
    memory.add(0, mmap.mmap(-1, 1 << 20))
    driver = VirtqueueDriver(memory, size=16, at=0, arena=(1 << 16, 1 << 16))
    return driver, Virtqueue(memory, 16, driver.desc, driver.avail, driver.used, event_idx=True)


def test_rings_add_up_and_never_block() -> None:
    bell = Doorbell()
    assert bell.drain() == 0
    bell.ring()
    doorbell.ring(bell.fileno())
    assert bell.drain() == 2
    os.eventfd_write(bell.fd, 2**64 - 2)
    bell.ring()  # full
    assert doorbell.drain(bell.fd) == 2**64 - 2
    bell.close()
    bell.close()
    doorbell.ring(-1)
    assert doorbell.drain(-1) == 0


@SEVERAL_CPUS
def test_window_grows_with_success_and_shrinks_to_nothing() -> None:
    _, ring = queue()
    spinner = Spinner([ring], max_us=80)
    assert spinner.window_us == 80
    for _ in range(8):
        assert not spinner.wait()
        spinner.slept(1.0)
    assert spinner.window_us == 0
    misses = spinner.misses
    assert not spinner.wait()
    assert spinner.misses == misses  # did not even look
    spinner.slept(20e-6)
    assert spinner.window_us == 5
    for _ in range(8):
        spinner.slept(20e-6)
    assert spinner.window_us == 80


@SEVERAL_CPUS
def test_looking_that_keeps_the_other_side_from_running_rests_for_longer_and_longer() -> None:
    """Work that always comes right after a whole window in vain: both sides share a CPU."""
    _, ring = queue()
    spinner = Spinner([ring], max_us=20)
    for rest in (16, 32):
        for _ in range(4):
            misses = spinner.misses
            assert not spinner.wait()
            assert spinner.misses == misses + 1
            spinner.slept(5e-6)
        for _ in range(rest):
            assert not spinner.wait()
            assert spinner.misses == misses + 1
            spinner.slept(5e-6)


def test_pending_work_is_seen_at_once_whatever_the_window() -> None:
    driver, ring = queue()
    spinner = Spinner([ring], max_us=0)
    assert not spinner.wait()
    driver.submit([b"x"], [])
    assert spinner.wait()


@SEVERAL_CPUS
def test_work_that_comes_while_looking_is_a_hit() -> None:
    driver, ring = queue()
    spinner = Spinner([ring], max_us=100)
    started = threading.Barrier(2)

    def submit() -> None:
        started.wait()
        for _ in range(50):
            driver.submit([b"x"], [])
            while driver.waiting:
                driver.collect()
                time.sleep(0)

    thread = threading.Thread(target=submit)
    thread.start()
    started.wait()
    for _ in range(50):
        while (chain := ring.pop()) is None:
            spinner.wait()
        ring.push(chain, 0)
    thread.join()
    assert spinner.hits > 0


def test_one_cpu_never_spins() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert Spinner(max_us=100).window_us == 0
    finally:
        os.sched_setaffinity(0, before)


def test_sleep_wakes_for_fds_rings_and_time() -> None:
    driver, ring = queue()
    first, second = Doorbell(), Doorbell()
    spinner = Spinner([ring])
    fds = [first.fd, second.fd]
    assert spinner.sleep(fds, timeout=0) == []
    second.ring()
    assert spinner.sleep(fds) == [second.fd]
    driver.submit([b"x"], [])
    second.drain()
    assert spinner.sleep(fds) == []
    assert ring.pop() is not None
    assert spinner.sleep(fds, timeout=0.01) == []
    driver.submit([b"x"], [])
    assert driver.kick_wanted()  # sleeping asked for kicks
    for bell in (first, second):
        bell.close()


def test_sleep_ends_when_a_kick_comes() -> None:
    driver, ring = queue()
    bell = Doorbell()
    spinner = Spinner([ring])

    def kick() -> None:
        driver.submit([b"x"], [])
        bell.ring()

    timer = threading.Timer(0.02, kick)
    timer.start()
    while ring.pop() is None:
        spinner.sleep([bell.fd], timeout=10)
    timer.join()
    bell.close()


def test_arguments_are_checked() -> None:
    for wrong in (-1, 101):
        with pytest.raises(ValueError, match="no spin window"):
            Spinner(max_us=wrong)
    with pytest.raises(ValueError, match="too many"):
        Spinner().sleep([0] * 64)
