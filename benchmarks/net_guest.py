"""A real guest's network: `crumble run` beside QEMU's user networking, with the same kernel and the same busybox.

    python -m benchmarks.net_guest [--rounds 3] [--megabytes 64]

The guest opens three connections to the host's loopback: for `dd` to write to, for `dd` to read from, and for a `cat` that
says what it hears. Times are the host's, from the first byte to the last. Both emulate a riscv64 CPU, so what
its kernel does for the bytes is in them: on this back end a network is what its guest's CPU can feed.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks._common import Comparison, Sample
from crumble_common import paths
from framework import assets
from framework.command import World
from framework.qemu_guest import QemuGuest

IMAGE = "deb:trixie/busybox-static"
MODULES = ("failover", "net_failover", "virtio_net")
ROUND_TRIPS = 200
CHUNK = 1 << 16
_LIMIT = 240.0
# QEMU's own network: its guest sets its address as a static one.
_ADDRESS = "ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; sleep 1"
HOST = "10.0.2.2"


class Host:
    """The host's ends of one guest's connections."""

    def __init__(self, megabytes: int) -> None:
        self.size = megabytes << 20
        self._servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        for server in self._servers:
            server.settimeout(_LIMIT)

    @property
    def ports(self) -> list[int]:
        """Where it listens."""
        return [server.getsockname()[1] for server in self._servers]

    @property
    def script(self) -> str:
        """What the guest does."""
        writes, reads, answers = (f"busybox nc {HOST} {port} -e busybox" for port in self.ports)
        count = self.size // CHUNK
        return (
            f"{writes} dd if=/dev/zero bs={CHUNK} count={count} 2>/dev/null;"
            f"{reads} dd of=/dev/null bs={CHUNK} 2>/dev/null; {answers} cat"
        )

    def measure(self) -> Sample:
        """While the guest does that."""
        with ExitStack() as stack:
            for server in self._servers:
                stack.enter_context(server)
            return {
                "from guest Gbit/s": self._from_guest(self._next(0)),
                "to guest Gbit/s": self._to_guest(self._next(1)),
                "round trip us": _round_trips(self._next(2)),
            }

    def _next(self, which: int) -> socket.socket:
        connection, _ = self._servers[which].accept()
        connection.settimeout(_LIMIT)
        return connection

    def _from_guest(self, connection: socket.socket) -> float:
        buffer = bytearray(1 << 20)
        with connection:
            got = first = connection.recv_into(buffer)
            began = time.monotonic()
            while more := connection.recv_into(buffer):
                got += more
            elapsed = time.monotonic() - began
        if got != self.size:
            sys.exit(f"benchmarks.net_guest: {got} bytes came instead of {self.size}")
        return (got - first) * 8 / elapsed / 1e9

    def _to_guest(self, connection: socket.socket) -> float:
        data = bytes(CHUNK)
        with connection:
            began = time.monotonic()
            for _ in range(self.size // CHUNK):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)  # its end: it has read everything
            return self.size * 8 / (time.monotonic() - began) / 1e9


def _round_trips(connection: socket.socket) -> float:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        for count in (ROUND_TRIPS // 10, ROUND_TRIPS):  # the first are to warm up
            began = time.monotonic()
            for _ in range(count):
                connection.sendall(b"x")
                connection.recv(1)
    return (time.monotonic() - began) * 1e6 / ROUND_TRIPS


def crumble_side(megabytes: int) -> Sample:
    """`crumble run`."""
    host = Host(megabytes)
    with tempfile.TemporaryDirectory() as scratch:
        world = World(Path(scratch), "crumble.cli.main")
        world.environment["CRUMBLE_DATA_DIR"] = str(paths.data_dir())
        words = ["run", "--allow", "host", IMAGE, "busybox", "sh", "-c", host.script]
        with _ended(world.start(*words, stdout=subprocess.DEVNULL, stderr=None)):
            found = host.measure()
        world.end()
    return found


def qemu_side(megabytes: int) -> Sample:
    """QEMU's TCG and user networking."""
    host = Host(megabytes)
    kernel = assets.kernel()
    load = "".join(f"insmod /{name}.ko;" for name in MODULES)
    with tempfile.TemporaryDirectory() as scratch:
        guest = QemuGuest(
            Path(scratch), f"{load}{_ADDRESS};{host.script}\n", {}, memory=512,
            files={f"{name}.ko": kernel.module(name) for name in MODULES},
        )  # fmt: skip
        guest.command += ["-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n"]
        process = subprocess.Popen(
            guest.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        with _ended(process):
            return host.measure()


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
        process.wait(60)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
            process.wait(60)


def main() -> None:
    """Measures, prints the table, writes benchmarks/results/net_guest.json."""
    parser = argparse.ArgumentParser(prog="benchmarks.net_guest", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=64)
    options = parser.parse_args()
    comparison = Comparison("net_guest", "", {"megabytes": options.megabytes})
    comparison.measure(
        {
            "crumble": lambda: crumble_side(options.megabytes),
            "qemu": lambda: qemu_side(options.megabytes),
        },
        options.rounds,
    )
    print(comparison.table())
    print(f"written: {comparison.save()}")


if __name__ == "__main__":
    main()
