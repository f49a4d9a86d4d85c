"""A guest that went on from a capture is one of its own, and right: by fork and by restore."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.real_crumble import IMAGE, RealWorld, real_world

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]

# riscv64's, arm64's and x86-64's getrandom.
_GETRANDOM = {"riscv64": 278, "aarch64": 278, "x86_64": 318}
# Has a connection, on which it only listens, and an open handle; says what it hears and, once asked, draws.
RESIDENT = """
use Socket; use POSIX (); $| = 1; chomp(my $arch = `uname -m`); my %nr = (GETRANDOM);
socket(S, PF_INET, SOCK_STREAM, 0); connect(S, pack_sockaddr_in(PORT, inet_aton("host.internal"))) or die $!;
open(R, "<", "/dev/urandom"); sysread(R, my $x, 3);
unless (fork) {
    while (1) {
        my $n = sysread(S, my $b, 99);
        my $end = defined $n ? "end" : "$!";
        open(H, ">>", "/heard"); print H $n ? $b : $end; close(H);
        last unless $n;
    }
    POSIX::_exit(0);
}
open(F, ">", "/ready"); close(F);
select(undef, undef, undef, 0.01) until -e "/go";
sysread(R, my $own, 16); open(U, "<", "/dev/urandom"); sysread(U, my $new, 16);
my $call = "\\0" x 16; syscall($nr{$arch}, $call, 16, 0);
open(D, ">", "/drawn.tmp"); print D unpack("H*", $_), "\\n" for $own, $new, $call; close(D);
rename("/drawn.tmp", "/drawn"); sleep 1000;
"""
LOOK = """
date +%s.%N; hostname; cat /sys/class/net/eth0/address
getent ahostsv4 host.internal | head -n1 | cut -d' ' -f1
perl -e 'use Socket; socket(S, PF_INET, SOCK_STREAM, 0);
    connect(S, pack_sockaddr_in(PORT, inet_aton("host.internal"))) or die $!; sysread(S, $b, 9); print $b'
touch /go; until [ -e /drawn ]; do sleep 0.01; done; cat /drawn
"""


class Host:
    """Greets who connects, and keeps the first connection."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.kept: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._server.accept()
            except OSError:
                return  # closed
            self.kept.append(peer)
            peer.sendall(b"hello\n")

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()
        for peer in self.kept:
            peer.close()


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[RealWorld]:
    with real_world(tmp_path / "world") as made:
        made.up()
        yield made
        made.run("down", "-t", "0")


def ran(world: RealWorld, *words: str) -> str:
    done = world.run(*words)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def heard(world: RealWorld, name: str, wanted: str) -> None:
    """The resident's connection has said so, after `hello`."""
    script = f"until [ \"$(sed 1d /heard)\" = '{wanted}' ]; do sleep 0.02; done"
    began = time.monotonic()
    ran(world, "exec", name, "timeout", "20", "sh", "-c", script)
    assert time.monotonic() - began < 20


def test_clones_are_apart_and_right(world: RealWorld, host: Host) -> None:
    program = RESIDENT.replace("PORT", str(host.port)).replace(
        "GETRANDOM", ", ".join(f"{name} => {number}" for name, number in _GETRANDOM.items())
    )
    allowed = ("--allow", f"host:{host.port}")
    ran(world, "run", "-d", "--name", "box", *allowed, IMAGE, "perl", "-e", program)
    ran(world, "exec", "box", "sh", "-c", "until [ -s /heard -a -e /ready ]; do sleep 0.02; done")
    ran(world, "snapshot", "create", "box", "taken")
    ran(world, "run", "-d", "--name", "restored", *allowed, "--from", "taken", "sleep", "1000")
    ran(world, "fork", "-n", "2", "--name", "fork", "box")
    clones = ("restored", "fork-1", "fork-2")

    # What the parent had open is reset in each clone, though nothing is sent; in the parent it goes on.
    for name in clones:
        heard(world, name, "Connection reset by peer")
    host.kept[0].sendall(b"still there")
    heard(world, "box", "still there")

    macs, drawn = set(), set()
    for name in ("box", *clones):
        before = time.time()
        output = ran(world, "exec", name, "sh", "-c", LOOK.replace("PORT", str(host.port)))
        after = time.time()
        now, hostname, mac, resolved, greeting, *numbers = output.split()
        assert hostname == name
        assert resolved == "10.0.2.2"
        assert greeting == "hello"
        assert len(numbers) == 3
        assert before - 1 < float(now) < after + 1, "the wall clock is the host's"
        macs.add(mac)
        drawn.update(numbers)
    assert len(macs) == 4
    assert len(drawn) == 12, "no two draws are the same"
