"""A VM in reserve, over the fake services: who gets it, who does not, and that nobody else notices it."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crumble.snapshots.store import Store
from framework.command import World, eventually


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.environment["CRUMBLE_RESERVE"] = "1"
    made.up()
    made.run("run", "fake", "true")
    eventually(lambda: names(made), "no boot snapshot")
    yield made
    made.run("down", "-t", "0")
    made.assert_nothing_left()


def names(world: World) -> list[str]:
    return Store(world.data / "snapshots").names()


def reserve(world: World) -> int:
    """The pid of its `vmm`; 0 when there is none."""
    found = [pid for name, pid in world.services().items() if name.startswith("crumble-vmm.res")]
    return found[0] if found else 0


def filled(world: World) -> int:
    """As reserve, after a run that leaves one."""
    assert world.run("run", "fake", "true").returncode == 0
    eventually(lambda: reserve(world), "no VM in reserve")
    return reserve(world)


def started(world: World, name: str, *words: str) -> dict[str, Any]:
    done = world.run("run", "-d", "--name", name, *words, "fake", "sleep", "60")
    assert done.returncode == 0, done.stderr
    (found,) = [vm for vm in json.loads(world.run("ps", "--json").stdout) if vm["name"] == name]
    return dict(found)


def services(vm: dict[str, Any]) -> dict[str, int]:
    return {service["name"]: service["pid"] for service in vm["services"]}


def test_the_next_one_finds_it_running(world: World) -> None:
    waiting = filled(world)
    assert json.loads(world.run("ps", "--all", "--json").stdout) == [], "nobody sees it"
    vm = started(world, "box")
    assert services(vm)["vmm.box"] == waiting
    assert set(services(vm)) == {"vmm.box", "fsd.box", "netd.box"}
    assert vm["snapshot"] == names(world)[0]
    assert world.run("exec", "box", "echo", "here").stdout == "here\n"
    os.kill(services(vm)["fsd.box"], signal.SIGKILL)
    why = "fsd.box was killed by signal 9"
    eventually(lambda: why in world.run("ps", "--all", "--json").stdout, "not said why it ended")


def test_its_command_is_limited_too(world: World) -> None:
    filled(world)
    done = world.run("run", "--timeout", "0.3", "fake", "sleep", "60")
    assert (done.returncode, "did not end within 0.3 s" in done.stderr) == (124, True)


@pytest.mark.parametrize("more", [("--no-internet",), ("--network", "none"), ("--memory", "1g")])
def test_who_wants_something_else_gets_another(world: World, more: tuple[str, ...]) -> None:
    waiting = filled(world)
    assert waiting not in services(started(world, "box", *more)).values()


def test_snapshots_are_removed_as_if_it_were_not_there(world: World) -> None:
    waiting = filled(world)
    assert world.run("snapshot", "rm", *names(world)).returncode == 0
    vm = started(world, "box")
    assert waiting not in services(vm).values()
    assert vm["snapshot"] == ""


def test_its_death_is_nobodys(world: World) -> None:
    os.kill(filled(world), signal.SIGKILL)
    assert world.run("run", "fake", "echo", "fine").stdout == "fine\n"


def test_none_where_none_is_wanted(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.up()
    for _ in range(3):
        assert world.run("run", "fake", "true").returncode == 0
    eventually(lambda: not [n for n in world.services() if "vmm" in n], "something is left")
    assert not reserve(world)
    world.run("down", "-t", "0")
    world.assert_nothing_left()
