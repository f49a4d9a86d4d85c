"""kill -9 of each process while a real guest is captured.

Whoever waits is told in a sentence or gets what was asked for; what is in the store is whole; nothing is left.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble.snapshots.store import Store
from framework.command import eventually
from framework.real_crumble import IMAGE, RealWorld, real_world

pytestmark = [pytest.mark.guest, pytest.mark.slow]

MIB = 1 << 20


@pytest.fixture
def world(tmp_path: Path) -> Iterator[RealWorld]:
    with real_world(tmp_path / "w") as made:
        yield made
        made.run("down", "-t", "0")


def whole(world: RealWorld) -> None:
    """Nothing is half there, and others work."""
    place = world.data / "snapshots"
    eventually(lambda: not list(place.glob(".*")), "a draft is left")
    assert world.run("snapshot", "verify").returncode == 0
    done = world.run("run", IMAGE, "echo", "alive")
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def check_line(text: str) -> None:
    """One line; who was killed may be quoted with the end of its log."""
    assert text.startswith("crumble: ") and text.count("\n") == 1 and "Traceback" not in text, text


def kill(world: RealWorld, service: str) -> None:
    for name, pid in world.services().items():
        if service in name:
            os.kill(pid, signal.SIGKILL)


def capture_and_kill(world: RealWorld, service: str) -> None:
    place = world.data / "snapshots"
    assert world.run("run", "-d", "--name", "box", IMAGE, "sleep", "9999").returncode == 0
    world.run("exec", "box", "sh", "-c", "head -c 24M /dev/zero | tr '\\0' x > /big")
    process = world.start("snapshot", "create", "box", "one")
    eventually(lambda: list(place.glob(".tmp-*/memory")) or process.poll() is not None, "never")
    kill(world, service)
    _, stderr = process.communicate(timeout=60)
    if process.returncode:
        check_line(stderr.decode())
        assert "one" not in Store(place).names()
    else:
        size = world.run("run", "--from", "one", "stat", "-c%s", "/big").stdout
        assert size == f"{24 * MIB}\n"
        world.run("snapshot", "rm", "one")
    whole(world)
    world.run("stop", "-t", "0", "box")


def test_a_process_that_dies_while_a_vm_is_captured(world: RealWorld) -> None:
    world.run("run", IMAGE, "true")  # the others go on from its boot
    world.up()
    for service in ("vmm.box", "fsd.box", "netd.box", "fork", "ocid"):
        capture_and_kill(world, service)
