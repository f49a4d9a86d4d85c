"""A VM whose network has nothing to do has no netd, until the guest or somebody else wants one."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble_common import paths
from framework import assets
from framework.command import World, eventually, read_until
from framework.ports import free_port

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]

IMAGE = "deb:trixie/busybox-static"


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


def netd(world: World, name: str) -> list[int]:
    """Those of a VM; names of processes are cut at 15 bytes."""
    start = f"crumble-netd.{name}"[:15]
    return [pid for name, pid in world.services().items() if name.startswith(start)]


def rests(world: World, name: str) -> None:
    """Waits until it has none."""
    eventually(lambda: not netd(world, name), "its netd does not rest")


def pings(world: World, name: str) -> None:
    for address in ("10.0.2.2", "fd63:7275:6d62:6c65::2"):
        assert "2 packets received" in ran(world, "exec", name, "busybox", "ping", "-c2", address)


def test_what_it_knew_is_still_known(world: World) -> None:
    ran(world, "run", "-d", "--name", "box", IMAGE, "sleep", "1000")
    assert world.run("exec", "box", "busybox", "nc", "10.0.2.2", "9").returncode != 0
    rests(world, "box")
    assert "refused" in ran(world, "net", "stats", "box")  # a client wants one
    rests(world, "box")
    pings(world, "box")  # the guest does
    rests(world, "box")
    ran(world, "fork", "box", "--name", "other")  # a capture does
    pings(world, "other")
    rests(world, "box")
    rests(world, "other")
    ran(world, "pause", "box")
    ran(world, "snapshot", "create", "box", "rested")
    ran(world, "unpause", "box")
    ran(world, "snapshot", "rm", "rested")
    rests(world, "box")
    ran(world, "port", "box", "add", f"{free_port()}:80")
    ran(world, "stop", "box")
    rests(world, "other")
    pings(world, "other")


def test_one_that_dies_when_it_is_wanted_again(world: World) -> None:
    ran(world, "run", "-d", "--name", "box", IMAGE, "sleep", "1000")
    rests(world, "box")
    guest = world.start("exec", "box", "busybox", "ping", "-c5", "10.0.2.2")
    os.kill(world.pid("netd"), signal.SIGKILL)
    output, _ = guest.communicate(timeout=60)
    assert b"5 packets received" in output or b"4 packets received" in output, output
    pings(world, "box")


def test_one_that_is_used_does_not_rest(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ran(
            world,
            "run",
            "-d",
            "--name",
            "forwarded",
            "-p",
            f"{free_port()}:80",
            IMAGE,
            "sleep",
            "1000",
        )
        guest = world.start(
            "run", "--name", "open", "--allow", "host", IMAGE, "sh", "-c",
            f"(echo first; cat) | busybox nc 10.0.2.2 {server.getsockname()[1]}",
        )  # fmt: skip
        connection, _ = server.accept()
        with connection:
            assert connection.recv(10) == b"first\n"
            before = netd(world, "forwarded"), netd(world, "open")
            ran(world, "run", "-d", "--name", "quiet", IMAGE, "sleep", "1000")
            rests(world, "quiet")
            ran(world, "run", "-d", "--name", "later", IMAGE, "sleep", "1000")
            rests(world, "later")
            assert (netd(world, "forwarded"), netd(world, "open")) == before
            assert all(before)
            connection.sendall(b"last\n")
        assert guest.stdout is not None
        read_until(guest.stdout, b"last\n")
    flows = json.loads(ran(world, "net", "flows", "forwarded", "--json"))
    assert flows == []
