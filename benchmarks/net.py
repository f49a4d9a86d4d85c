"""What a virtual network costs, without a guest: CPU of the back end a gigabyte, a round trip and a connection.

    python -m benchmarks.net [--rounds 3] [--megabytes 200]

A driver plays the guest over vhost-user with a TCP of its own; the other end is a socket on the host's loopback.
Sides: `netd` with all offloads, as the supervisor runs it (it survives its own death), `netd-alone` without that,
`netd-1500` alone with an MTU of 1500 and no offloads; `passt` and `passt-1500`, where passt is installed
or --passt says where it is. Debian 12's has no vhost-user: it gets whole frames through a Unix socket.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from benchmarks._common import Comparison, Sample, process_cpu_seconds
from crumble_common.messages.net import NetConfig, NetPolicy
from crumble_netd.addresses import packed
from framework.net_client import OFFLOADS, PLAIN, NetClient, Stream
from framework.stream_net_client import StreamNetClient
from framework.surviving_netd import SurvivingNetd

HOST = packed("10.0.2.2")
GATEWAY = packed("10.0.2.1")  # the host's loopback, to passt
CHUNK = 1 << 20
ROUND_TRIPS = 300
CONNECTIONS = 200


class Forgetting(deque[bytes]):
    """What was received is not kept."""

    def append(self, data: bytes, /) -> None:
        pass


def measure_surviving(megabytes: int) -> Sample:
    """`measure`, of one with an arena and a place to park its sockets."""
    config = NetConfig("net", policy=NetPolicy(["host"]))
    with SurvivingNetd(config) as netd, netd.client(spin_us=50) as client:
        assert netd.process is not None
        return _all(client, netd.process.pid, megabytes, HOST)


def measure(features: int, megabytes: int) -> Sample:
    """One back end: a stream each way, then small questions and answers."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "crumble_netd", "--fd", str(theirs.fileno())]
        process = subprocess.Popen(
            [*command, "--allow", "host"], pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL
        )
    with NetClient(ours, features=features, spin_us=50) as client:
        found = _all(client, process.pid, megabytes, HOST)
    process.wait()
    return found


def measure_passt(passt: str, mtu: int, megabytes: int) -> Sample:
    """passt, over its socket for QEMU."""
    with tempfile.TemporaryDirectory(prefix="passt") as directory:
        Path(directory).chmod(0o777)  # it is somebody else when root starts it
        path = f"{directory}/socket"
        command = [passt, "-f", "-1", "-4", "-s", path, "-m", str(mtu)]
        process = subprocess.Popen(
            [*command, "-a", "10.0.2.15", "-n", "24", "-g", "10.0.2.1"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while not Path(path).exists() and process.poll() is None:
                time.sleep(0.01)
            with StreamNetClient(path, mtu) as client:
                return _all(client, process.pid, megabytes, GATEWAY)
        finally:
            process.kill()
            process.wait()


def _all(client: NetClient, pid: int, megabytes: int, host: bytes) -> dict[str, float]:
    size = megabytes * CHUNK
    found = _streams(client, pid, size, host) | _questions(client, pid, host)
    return found | _connections(client, pid, host)


def _pair(client: NetClient, host: bytes) -> tuple[Stream, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stream = client.connect((host, server.getsockname()[1]))
        connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream, connection


def _streams(client: NetClient, pid: int, size: int, host: bytes) -> dict[str, float]:
    stream, connection = _pair(client, host)
    stream.received = Forgetting()
    data = bytes(CHUNK)

    def write() -> None:
        for _ in range(size // CHUNK):
            connection.sendall(data)

    def read() -> None:
        buffer = bytearray(CHUNK)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv_into(buffer):
                pass

    found = {}
    before = process_cpu_seconds(pid)
    threading.Thread(target=write, daemon=True).start()
    stream.wait(lambda: stream.count >= size, 600)
    found["to guest"] = (process_cpu_seconds(pid) - before) * 1e12 / size
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    before = process_cpu_seconds(pid)
    for _ in range(size // CHUNK):
        stream.send(data)
    stream.wait(lambda: stream.idle, 600)
    found["from guest"] = (process_cpu_seconds(pid) - before) * 1e12 / size
    stream.abort()
    reader.join()
    connection.close()
    return found


def _questions(client: NetClient, pid: int, host: bytes) -> dict[str, float]:
    stream, connection = _pair(client, host)

    def answer() -> None:
        while data := connection.recv(100):
            connection.sendall(data)

    thread = threading.Thread(target=answer)
    thread.start()
    before, began = process_cpu_seconds(pid), time.monotonic()
    for _ in range(ROUND_TRIPS):
        stream.send(b"x")
        stream.read(1)
    elapsed, spent = time.monotonic() - began, process_cpu_seconds(pid) - before
    stream.shutdown()
    thread.join()
    connection.close()
    return {
        "round trip us": elapsed * 1e6 / ROUND_TRIPS,
        "round trip CPU us": spent * 1e6 / ROUND_TRIPS,
    }


def _connections(client: NetClient, pid: int, host: bytes) -> dict[str, float]:
    """Opened and reset, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        to = (host, server.getsockname()[1])
        before, began = process_cpu_seconds(pid), time.monotonic()
        for _ in range(CONNECTIONS):
            stream = client.connect(to)
            server.accept()[0].close()
            stream.abort()
        elapsed, spent = time.monotonic() - began, process_cpu_seconds(pid) - before
    return {
        "connections a s": CONNECTIONS / elapsed,
        "connection CPU us": spent * 1e6 / CONNECTIONS,
    }


def main() -> None:
    """Measures, prints the table, writes benchmarks/results/net.json."""
    parser = argparse.ArgumentParser(prog="benchmarks.net", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--passt", default=shutil.which("passt"), help="the program")
    options = parser.parse_args()
    comparison = Comparison("net", "CPU ms a GB", {"megabytes": options.megabytes})
    size = options.megabytes
    sides: dict[str, Callable[[], Sample]] = {
        "netd": lambda: measure_surviving(size),
        "netd-alone": lambda: measure(OFFLOADS, size),
        "netd-1500": lambda: measure(PLAIN, size),
    }
    if options.passt:
        sides["passt"] = lambda: measure_passt(options.passt, 65_520, size)
        sides["passt-1500"] = lambda: measure_passt(options.passt, 1500, size)
    else:
        print("net: no passt here to compare with", file=sys.stderr)
    comparison.measure(sides, options.rounds)
    print(comparison.table())
    print(f"written: {comparison.save()}")


if __name__ == "__main__":
    main()
