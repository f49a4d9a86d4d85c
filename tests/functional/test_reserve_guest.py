"""A VM in reserve with a real guest: whoever gets it finds one of his own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble.snapshots.store import Store
from framework.command import eventually
from framework.real_crumble import IMAGE, RealWorld, real_world

pytestmark = [pytest.mark.guest, pytest.mark.slow]

WHO = "hostname; cat /etc/hostname; getent hosts $(hostname).internal | wc -l; grep -c $(hostname) /etc/hosts"
DRAWN = "cat /proc/sys/kernel/random/uuid; cat /sys/class/net/*/address"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[RealWorld]:
    with real_world(tmp_path / "world") as made:
        made.environment["CRUMBLE_RESERVE"] = "1"
        made.up()
        made.run("run", IMAGE, "true")
        store = Store(made.data / "snapshots")
        eventually(lambda: store.names(), "no boot snapshot")
        made.run("run", IMAGE, "true")
        yield made
        made.run("down", "-t", "0")


def reserve(world: RealWorld) -> set[int]:
    """Its processes, which keep what they were called once they are another VM's; empty until all three are there."""
    taken = {
        s["pid"] for vm in json.loads(world.run("ps", "--json").stdout) for s in vm["services"]
    }
    found = {pid for name, pid in world.services().items() if ".re" in name} - taken
    return found if len(found) == 3 else set()


def running(world: RealWorld, name: str) -> set[int]:
    (found,) = [vm for vm in json.loads(world.run("ps", "--json").stdout) if vm["name"] == name]
    return {service["pid"] for service in found["services"]}


def test_it_is_one_of_their_own(world: RealWorld) -> None:
    drawn = set()
    for name in ("one", "two"):
        eventually(lambda: reserve(world), lambda: f"no VM in reserve: {world.services()}")
        waiting = reserve(world)
        done = world.run("run", "-d", "--name", name, IMAGE, "sleep", "1000")
        assert done.returncode == 0, done.stderr
        assert running(world, name) == waiting
        found = world.run("exec", name, "sh", "-c", WHO).stdout.split()
        assert found == [name, name, "1", "1"]
        drawn.add(world.run("exec", name, "sh", "-c", DRAWN).stdout)
    assert len(drawn) == 2, "they draw other numbers and have other addresses"
