"""A running guest moves from network to network: addresses, names, reach and forwards are those of where it is."""

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

RED, BLUE = "test-move-red", "test-move-blue"
IMAGE = "deb:trixie/busybox-static"
ADDRESS = "busybox ip -4 addr show eth0 | busybox grep -o 'inet [0-9.]*'"
SERVER = "mkdir /w; hostname > /w/index.html; exec busybox httpd -f -p '[::]:80' -h /w"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    assets.pulled(IMAGE)
    made = World(tmp_path, "crumble.cli.main")
    made.environment["CRUMBLE_DATA_DIR"] = str(paths.data_dir())
    made.run("network", "rm", RED, BLUE)  # of a run that was killed
    yield made
    made.run("down")
    made.end()
    made.run("network", "rm", RED, BLUE)
    made.assert_nothing_left()


def ran(world: World, *words: str) -> str:
    done = world.run(*words)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def inside(world: World, vm: str, script: str) -> list[str]:
    return ran(world, "exec", vm, "sh", "-c", script).splitlines()


def refused(world: World, *words: str) -> str:
    done = world.run(*words)
    assert done.returncode != 0, words
    return done.stderr


def fetch(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
        peer.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: peer.recv(4096), b"")).rpartition(b"\r\n")[2]


def test_a_guest_moves(world: World) -> None:
    ran(world, "network", "create", RED, "--subnet", "10.97.0.0/24")
    ran(world, "network", "create", BLUE, "--subnet", "10.98.0.0/24")
    early, late = free_port(), free_port()
    world.up()
    ran(world, "run", "-d", "--name", "mover", "-p", f"{early}:80", IMAGE, "sh", "-c", SERVER)
    ran(world, "run", "-d", "--name", "red", "--network", RED, IMAGE, "sh", "-c", SERVER)
    ran(world, "run", "-d", "--name", "mute", "--network", "none", IMAGE, "sleep", "1000")
    ran(world, "port", "mover", "add", f"{late}:80")
    eventually(lambda: fetch(early) == b"mover\n", "the server does not come up")

    # From a network of its own to a named one: the guest has the address at once, by both versions.
    ran(world, "network", "connect", RED, "mover")
    script = f"""{ADDRESS}
    busybox wget -q -T 9 -O - http://red.internal/
    n=0; until busybox ip -6 addr show scope global | busybox grep -q fd63 || [ $n = 2000 ]; do n=$((n+1)); done
    busybox ping -6 -c 1 -q -w 9 red.internal | busybox grep -c '1 packets received'"""
    assert inside(world, "mover", script) == ["inet 10.97.0.4", "red", "1"]
    assert inside(world, "red", "busybox wget -q -T 9 -O - http://mover.internal/") == ["mover"]
    assert fetch(early) == fetch(late) == b"mover\n"
    assert [vm["name"] for vm in json.loads(ran(world, "ps", "--json")) if vm["network"] == RED]
    assert "is on" in refused(world, "network", "connect", RED, "mover")

    # To another one, which the first network's guests do not reach.
    told = json.loads(ran(world, "network", "connect", "--json", BLUE, "mover"))
    assert told == {"name": "mover", "network": BLUE, "address": "10.98.0.3"}
    script = f"{ADDRESS}; busybox wget -q -T 2 -O - http://10.97.0.3/ || echo no way"
    assert inside(world, "mover", script) == ["inet 10.98.0.3", "no way"]
    assert inside(world, "red", "busybox nslookup mover.internal >/dev/null || echo gone") == [
        "gone"
    ]
    assert fetch(early) == b"mover\n"

    # Off it: the link is down, nobody listens, and no snapshot can be made.
    ran(world, "network", "disconnect", BLUE, "mover")
    assert inside(world, "mover", "cat /sys/class/net/eth0/carrier") == ["0"]
    with pytest.raises(ConnectionRefusedError):
        fetch(early)
    assert "not connected" in refused(world, "net", "stats", "mover")
    assert "not connected" in refused(world, "fork", "mover", "--name", "never")
    assert "is not on" in refused(world, "network", "disconnect", BLUE, "mover")

    # Back to one of its own, which may die like any other.
    ran(world, "network", "connect", "user", "mover")
    script = f"cat /sys/class/net/eth0/carrier; {ADDRESS}; busybox nslookup host.internal | busybox grep -c 10.0.2.2"
    assert inside(world, "mover", script) == ["1", "inet 10.0.2.15", "1"]
    assert fetch(early) == fetch(late) == b"mover\n"
    mine = json.loads(ran(world, "inspect", "mover"))
    (pid,) = [s["pid"] for s in mine["services"] if s["name"] == "netd.mover"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: answers(early), "nobody took its place")

    # What cannot be is said before anything changes.
    assert "no network interface" in refused(world, "network", "connect", RED, "mute")
    assert "There is no network never" in refused(world, "network", "connect", "never", "mover")
    ran(world, "pause", "mover")
    assert "is paused" in refused(world, "network", "connect", RED, "mover")
    ran(world, "unpause", "mover")
    assert fetch(early) == b"mover\n"


def test_connections_of_before_are_reset(world: World) -> None:
    """Those that are open when a guest leaves a network: at both ends, and at once."""
    ran(world, "network", "create", RED, "--subnet", "10.97.0.0/24")
    world.up()
    with socket.create_server(("127.0.0.1", 0)) as server:
        at = server.getsockname()[1]
        server.settimeout(60)
        script = f"mkfifo /f 2>/dev/null; exec 3<>/f; busybox nc host.internal {at} <&3; echo ended"
        ran(world, "run", "-d", "--name", "mover", "--allow", f"host:{at}", IMAGE, "sleep", "1000")
        for where in (("connect", RED), ("disconnect", RED)):
            inner = world.start("exec", "mover", "sh", "-c", script)
            peer, _ = server.accept()
            with peer:
                peer.settimeout(60)
                peer.sendall(b"hello\n")
                assert inner.stdout is not None
                assert read_until(inner.stdout, b"hello\n") == b"hello\n"
                ran(world, "network", *where, "mover")
                with pytest.raises(ConnectionResetError):
                    peer.recv(1)
            assert inner.communicate(timeout=60)[0] == b"ended\n"


def answers(port: int) -> bool:
    try:
        return fetch(port) == b"mover\n"
    except OSError:
        return False
