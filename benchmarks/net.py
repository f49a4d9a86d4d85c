"""What a virtual network costs, without a guest: CPU ms of the back end a gigabyte, and round trips.

    python -m benchmarks.net [--rounds 3] [--megabytes 200]

A driver plays the guest over vhost-user with a TCP of its own; the other end is a socket on the host's loopback.
Sides: `netd` with all offloads, as the supervisor runs it (it survives its own death), `netd-alone` without that,
`netd-1500` alone with an MTU of 1500 and no offloads. There is no peer in the run yet: Debian
12's passt has no vhost-user; the anchors are in docs/decisions/0011.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import threading
import time
from collections import deque

from benchmarks._common import Comparison, Sample, process_cpu_seconds
from crumble_common.messages.net import NetConfig, NetPolicy
from crumble_netd.addresses import packed
from framework.net_client import OFFLOADS, PLAIN, NetClient, Stream
from framework.surviving_netd import SurvivingNetd

HOST = packed("10.0.2.2")
CHUNK = 1 << 20
ROUND_TRIPS = 300


class Forgetting(deque[bytes]):
    """What was received is not kept."""

    def append(self, data: bytes, /) -> None:
        pass


def measure_surviving(megabytes: int) -> Sample:
    """`measure`, of one with an arena and a place to park its sockets."""
    config = NetConfig("net", policy=NetPolicy(["host"]))
    with SurvivingNetd(config) as netd, netd.client(spin_us=50) as client:
        assert netd.process is not None
        return _streams(client, netd.process.pid, megabytes * CHUNK) | _questions(client)


def measure(features: int, megabytes: int) -> Sample:
    """One back end: a stream each way, then small questions and answers."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "crumble_netd", "--fd", str(theirs.fileno())]
        process = subprocess.Popen(
            [*command, "--allow", "host"], pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL
        )
    with NetClient(ours, features=features, spin_us=50) as client:
        found = _streams(client, process.pid, megabytes * CHUNK) | _questions(client)
    process.wait()
    return found


def _pair(client: NetClient) -> tuple[Stream, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stream = client.connect((HOST, server.getsockname()[1]))
        connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream, connection


def _streams(client: NetClient, pid: int, size: int) -> dict[str, float]:
    stream, connection = _pair(client)
    stream.received = Forgetting()
    data = bytes(CHUNK)

    def write() -> None:
        for _ in range(size // CHUNK):
            connection.sendall(data)

    def read() -> None:
        buffer = bytearray(CHUNK)
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


def _questions(client: NetClient) -> dict[str, float]:
    stream, connection = _pair(client)

    def answer() -> None:
        while data := connection.recv(100):
            connection.sendall(data)

    thread = threading.Thread(target=answer)
    thread.start()
    began = time.monotonic()
    for _ in range(ROUND_TRIPS):
        stream.send(b"x")
        stream.read(1)
    elapsed = time.monotonic() - began
    stream.shutdown()
    thread.join()
    connection.close()
    return {"round trip us": elapsed * 1e6 / ROUND_TRIPS}


def main() -> None:
    """Measures, prints the table, writes benchmarks/results/net.json."""
    parser = argparse.ArgumentParser(prog="benchmarks.net", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=200)
    options = parser.parse_args()
    comparison = Comparison("net", "CPU ms a GB", {"megabytes": options.megabytes})
    size = options.megabytes
    comparison.measure(
        {
            "netd": lambda: measure_surviving(size),
            "netd-alone": lambda: measure(OFFLOADS, size),
            "netd-1500": lambda: measure(PLAIN, size),
        },
        options.rounds,
    )
    print(comparison.table())
    print(f"written: {comparison.save()}")


if __name__ == "__main__":
    main()
