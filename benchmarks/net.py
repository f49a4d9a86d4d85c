"""What a virtual network costs, without a guest, and what it does in a second.

CPU of the back end for a gigabyte each way, by one TCP connection and by sixteen, a round trip, a connection, a datagram of 64
and of 1,400 bytes; how much of that there was in a second of a driver in Python, which is what bounds it. A guest's: `benchmarks.net_guest`.

    python -m benchmarks.net [--rounds 3] [--megabytes 100]

A driver plays the guest over vhost-user with a TCP of its own; the other end is a socket on the host's loopback.
Sides: `netd` with all offloads, as the supervisor runs it (it survives its own death), `netd-alone` without that,
`netd-1500` alone with an MTU of 1500 and no offloads; `passt` and `passt-1500`, where passt is installed
or --passt says where it is. Debian 12's has no vhost-user: it gets whole frames through a Unix socket.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import _net_tcp, _net_udp
from benchmarks._common import Comparison, Sample
from crumble_common.messages.net import NetConfig, NetPolicy
from crumble_netd.addresses import packed
from framework.net_client import OFFLOADS, PLAIN, NetClient
from framework.stream_net_client import StreamNetClient
from framework.surviving_netd import SurvivingNetd

HOST = packed("10.0.2.2")
GATEWAY = packed("10.0.2.1")  # the host's loopback, to passt


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
    return _net_tcp.measure(client, pid, megabytes, host) | _net_udp.measure(client, pid, host)


def main() -> None:
    """Measures, prints the table, writes benchmarks/results/net.json."""
    parser = argparse.ArgumentParser(prog="benchmarks.net", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=100)
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
