"""A fork has no fsd until its guest, or somebody else, wants one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble_common import paths
from framework import assets
from framework.command import World, eventually

pytestmark = [pytest.mark.guest, pytest.mark.slow]

IMAGE = "deb:trixie/busybox-static"
NAMES = ["a-1", "a-2", "a-3"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    assets.pulled(IMAGE)
    made = World(tmp_path, "crumble.cli.main")
    made.environment["CRUMBLE_DATA_DIR"] = str(paths.data_dir())
    made.environment["CRUMBLE_RESERVE"] = "0"
    made.up()
    yield made
    made.run("down")
    made.end()
    made.assert_nothing_left()


def ran(world: World, *words: str) -> str:
    done = world.run(*words)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def begins(world: World, *command: str) -> None:
    words = command or ("sleep", "1000")
    ran(world, "run", "-d", "--name", "box", "--network", "none", IMAGE, *words)


def forks(world: World) -> None:
    ran(world, "fork", "box", "-n", "3", "--name", "a")
    assert with_fsd(world) == ["box"]


def with_fsd(world: World) -> list[str]:
    """The VMs that have one."""
    names = [name.partition("/")[0] for name in world.services()]
    start = "crumble-fsd."
    return sorted(name.removeprefix(start) for name in names if name.startswith(start))


def says_its_name(world: World, name: str) -> None:
    assert ran(world, "exec", name, "cat", "/etc/hostname") == f"{name}\n"
    assert f"127.0.1.1 {name}\n" in ran(world, "exec", name, "cat", "/etc/hosts")


def test_each_begins_when_it_is_asked_for(world: World) -> None:
    begins(world)
    forks(world)
    says_its_name(world, "a-2")
    assert with_fsd(world) == ["a-2", "box"]
    ran(world, "exec", "a-2", "sh", "-c", "echo mine >/file; sync")
    assert ran(world, "exec", "box", "cat", "/etc/hostname") == "box\n"
    says_its_name(world, "a-3")
    assert with_fsd(world) == ["a-2", "a-3", "box"]
    ran(world, "stop", "a-1")  # in an orderly way: it writes back its files
    ran(world, "stop", "-t", "0", "a-2")
    assert with_fsd(world) == ["a-3", "box"]


def test_captures_of_one_that_has_none(world: World) -> None:
    begins(world)
    ran(world, "exec", "box", "sh", "-c", "echo of-box >/file; sync")
    forks(world)
    ran(world, "fork", "a-1", "--name", "b")  # its files have the name of its parent
    assert with_fsd(world) == ["a-1", "box"]
    says_its_name(world, "b")
    says_its_name(world, "a-1")
    ran(world, "pause", "a-2")
    refused = world.run("exec", "a-2", "true")
    assert "is paused" in refused.stderr
    ran(world, "snapshot", "create", "a-2", "asleep")
    ran(world, "unpause", "a-2")
    says_its_name(world, "a-2")
    ran(world, "run", "-d", "--name", "c", "--from", "asleep", "sleep", "1000")
    says_its_name(world, "c")
    assert ran(world, "exec", "c", "cat", "/file") == "of-box\n"
    ran(world, "stop", "-t", "0", "c")
    ran(world, "snapshot", "rm", "asleep")


def test_a_guest_that_wants_a_file_itself(world: World) -> None:
    begins(world, "sh", "-c", "while :; do busybox sleep 1; echo more >>/found; done")
    ran(world, "fork", "box", "--name", "two")
    eventually(lambda: with_fsd(world) == ["box", "two"], "its fsd does not begin")
    eventually(
        lambda: ran(world, "exec", "two", "cat", "/etc/hostname") == "two\n", "its name is old"
    )
    found = "its writes do not come"
    eventually(lambda: "more" in world.run("exec", "two", "cat", "/found").stdout, found)
    before = ran(world, "exec", "two", "cat", "/found")
    eventually(lambda: ran(world, "exec", "two", "cat", "/found") != before, found)


@pytest.mark.parametrize("service", ["vmm", "fsd"])
def test_parts_that_die(world: World, service: str) -> None:
    begins(world)
    forks(world)
    if service == "fsd":
        says_its_name(world, "a-1")
    os.kill(world.pid(f"{service}.a-1"), signal.SIGKILL)
    eventually(lambda: "a-1" not in ran(world, "ps"), "the VM does not end")
    assert with_fsd(world) == ["box"]
    says_its_name(world, "a-2")
    says_its_name(world, "box")
