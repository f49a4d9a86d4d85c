"""How long a guest's connection stands still when its `netd` is killed: ms from SIGKILL to the next answer.

    python -m benchmarks.net_death [--rounds 20]

A real guest echoes what comes by a forward. In each round `netd` is killed, and a byte sent at once; the table
has the time until it is back, and that of a byte sent when nothing was killed.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import tempfile
import time
from pathlib import Path

from benchmarks._common import Comparison
from crumble_common import paths
from framework.command import World, read_until

IMAGE = "deb:trixie/busybox-static"
# Deaths that come too often end a VM.
_REST = 3.5


def main() -> None:
    """Measures, prints the table, writes benchmarks/results/net_death.json."""
    parser = argparse.ArgumentParser(prog="benchmarks.net_death", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    comparison = Comparison("net_death", "ms", {})
    with tempfile.TemporaryDirectory() as scratch, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        world = World(Path(scratch), "crumble.cli.main")
        world.environment["CRUMBLE_DATA_DIR"] = str(paths.data_dir())
        script = "nc -ll -p 80 -e cat & sleep 1; echo listening; sleep 100000"
        guest = world.start(
            "run", "--name", "box", "-p", f"{port}:80", IMAGE, "busybox", "sh", "-c", script
        )
        try:
            assert guest.stdout is not None
            read_until(guest.stdout, b"listening\n")
            time.sleep(2)
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.settimeout(30)
                _answer(connection)
                comparison.measure(
                    {
                        "killed": lambda: {"answer": _killed(world, connection)},
                        "not killed": lambda: {"answer": _answer(connection)},
                    },
                    options.rounds,
                )
        finally:
            guest.send_signal(signal.SIGTERM)
            guest.communicate(timeout=60)
            world.end()
    print(comparison.table())
    print(f"written: {comparison.save()}")


def _killed(world: World, connection: socket.socket) -> float:
    time.sleep(_REST)
    os.kill(world.pid("netd"), signal.SIGKILL)
    return _answer(connection)


def _answer(connection: socket.socket) -> float:
    began = time.monotonic()
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"
    return (time.monotonic() - began) * 1000


if __name__ == "__main__":
    main()
