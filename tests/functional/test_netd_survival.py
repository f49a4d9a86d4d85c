"""kill -9 of netd under a real guest: what it has open goes on, to the byte, and it can open more."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble_common import paths
from framework import assets
from framework.command import World, eventually, read_until
from framework.netd_exchange import Peer

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]

IMAGE = "deb:trixie/busybox-static"
SIZE = 6_000_000
KILLS = 4


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    assets.pulled(IMAGE)
    made = World(tmp_path, "crumble.cli.main")
    made.environment["CRUMBLE_DATA_DIR"] = str(paths.data_dir())
    yield made
    made.run("down")
    made.end()
    made.assert_nothing_left()


def ran(world: World, *words: str) -> str:
    done = world.run(*words)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def test_a_named_networks_guests_go_on(world: World) -> None:
    """Between them, to outside and from outside; also when one of them ends with their netd."""
    data = random.Random(6).randbytes(SIZE // 3)
    exchange, forwarded = Peer(data, pace=0.03), free_port()
    world.run("network", "rm", "test-survival")
    ran(world, "network", "create", "test-survival")
    world.up()
    run = ("run", "-d", "--network", "test-survival", "--allow", "host", "--name")
    server = "busybox nc -l -p 80 -e cat & exec busybox nc -l -p 81 -e cat"
    client = (
        "mkfifo /in; busybox nc web.internal 81 < /in > /out & exec 3> /in;"
        f"head -c {SIZE // 3} /dev/urandom > /up; busybox nc host.internal {exchange.port} < /up > /down;"
        "touch /done; exec sleep 1000"
    )
    ran(world, *run, "web", "-p", f"{forwarded}:80", IMAGE, "sh", "-c", server)
    ran(world, *run, "gone", IMAGE, "sleep", "1000")
    with connected(forwarded) as long_lived:
        long_lived.settimeout(30)
        long_lived.sendall(b"before")
        assert long_lived.recv(100) == b"before"
        ran(world, *run, "one", IMAGE, "sh", "-c", client)
        eventually(lambda: len(exchange.got) > 0, "the guest does not send")
        for number in range(2):
            old = world.pid("net.")
            os.kill(old, signal.SIGKILL)
            if number:
                ran(world, "stop", "-t", "0", "gone")
            eventually(lambda: world.pid("net.") != old, "nobody took its place")  # noqa: B023
            long_lived.sendall(b"%d" % number)
            assert long_lived.recv(100) == b"%d" % number
            ask = f"echo {number} > /in; until busybox grep -q {number} /out; do :; done; cat /out"
            output = ran(world, "exec", "one", "busybox", "timeout", "20", "sh", "-c", ask)
            assert output.split() == [str(n) for n in range(number + 1)]
    sums = "until test -e /done; do busybox sleep 0.1; done; sha256sum < /up; sha256sum < /down; busybox nslookup web.internal > /dev/null && echo found"
    up, down, found = ran(world, "exec", "one", "sh", "-c", sums).splitlines()
    exchange.join()
    assert found == "found"
    assert down.split()[0] == hashlib.sha256(data).hexdigest()
    assert hashlib.sha256(exchange.got).hexdigest() == up.split()[0]
    ran(world, "down")
    ran(world, "network", "rm", "test-survival")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def connected(port: int) -> socket.socket:
    """To a forward: a guest that goes on from a snapshot may be there before its network."""
    found: list[socket.socket] = []

    def connect() -> bool:
        try:
            found.append(socket.create_connection(("127.0.0.1", port)))
        except ConnectionRefusedError:
            return False
        return True

    eventually(connect, "nobody listens for the forward")
    return found[0]


def test_what_is_open_goes_on(world: World) -> None:
    data = random.Random(5).randbytes(SIZE)
    exchange, forwarded = Peer(data, pace=0.03), free_port()  # lasts as long as the kills
    script = (
        f"nc -l -p 80 -e cat & sleep 0.2; echo listening; head -c {SIZE} /dev/urandom > /up;"
        f"nc host.internal {exchange.port} < /up > /down; sha256sum < /up; sha256sum < /down;"
        f"nslookup host.internal > /dev/null && echo resolved; sleep 0.5"
    )
    guest = world.start(
        "run", "--name", "box", "--allow", "host", "-p", f"{forwarded}:80", IMAGE,
        "busybox", "sh", "-c", script,
    )  # fmt: skip
    assert guest.stdout is not None
    read_until(guest.stdout, b"listening\n")
    with connected(forwarded) as long_lived:
        long_lived.settimeout(30)
        long_lived.sendall(b"before")
        assert long_lived.recv(100) == b"before"
        eventually(lambda: len(exchange.got) > 0, "the guest does not send")
        for number in range(KILLS):
            old = world.pid("netd")
            os.kill(old, signal.SIGKILL)
            eventually(lambda: world.pid("netd") != old, "nobody took its place")  # noqa: B023
            long_lived.sendall(b"%d" % number)
            assert long_lived.recv(100) == b"%d" % number
    output = read_until(guest.stdout, b"resolved\n").decode()
    exchange.join()
    up, down = (line.split()[0] for line in output.splitlines()[:2])
    assert down == hashlib.sha256(data).hexdigest()
    assert (len(exchange.got), hashlib.sha256(exchange.got).hexdigest()) == (SIZE, up)
    guest.communicate(timeout=60)
    assert guest.returncode == 0
