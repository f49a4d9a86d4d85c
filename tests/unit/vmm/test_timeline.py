"""Phases of a boot on one clock."""

import time

from crumble_vmm.timeline import Timeline


def test_phases_of_the_guest_are_placed_on_the_hosts_clock() -> None:
    timeline = Timeline()
    with timeline.phase("kernel load"):
        pass
    timeline.enter_guest()
    entry = timeline.entry
    timeline.guest_ready([("mounts", 600), ("modules", 800), ("ready", 1000)])
    slices = {item.name: item for item in timeline.slices()}
    assert list(slices) == ["kernel load", "guest: kernel", "guest: mounts", "guest: modules"]
    assert slices["guest: kernel"].start == entry
    assert slices["guest: modules"].end <= time.monotonic_ns()
    assert slices["guest: mounts"].end == slices["guest: modules"].start


def test_steps_follow_each_other_from_the_start_of_the_process() -> None:
    timeline = Timeline()
    timeline.step("start")
    timeline.skip()
    timeline.step("later")
    start, later = timeline.slices()
    assert 0 < start.start <= start.end <= later.start <= later.end
    # This process is older than a tick, and younger than the machine.
    assert start.end - start.start < time.monotonic_ns()


def test_a_guest_that_says_nothing_or_nonsense() -> None:
    timeline = Timeline()
    timeline.enter_guest()
    timeline.guest_ready([])
    assert [item.name for item in timeline.slices()] == ["guest: kernel and init"]
    timeline = Timeline()
    timeline.enter_guest()
    timeline.guest_ready([("a" * 200, 2**63), ("b", 0), ("c", 2**64 - 1)])
    for item in timeline.slices():
        assert timeline.entry <= item.start <= item.end <= time.monotonic_ns()
