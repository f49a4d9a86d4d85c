"""A netd that may be killed: what the supervisor does for one, without the supervisor.

with SurvivingNetd(NetConfig("net", policy=...)) as netd:
    client = netd.client()
    ...
    netd.kill()             # SIGKILL; what it had parked is taken in
    netd.start(client)      # another one, with the same arena and what was parked
"""

from __future__ import annotations

import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Self

from crumble_common import wire
from crumble_common.arena import Arena
from crumble_common.messages import net
from crumble_common.messages.net import NetConfig
from crumble_common.parking import Lot
from framework.net_client import NetClient

_RUN = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[3]);"
    "from crumble_common import wire; from crumble_common.service import service_main;"
    "from crumble_netd.service import NetdService;"
    "config = wire.decode(bytes.fromhex(sys.argv[1])).body;"
    "sys.exit(service_main(NetdService, config, fds=json.loads(sys.argv[2])))"
)


class SurvivingNetd:
    """killed: how often it was."""

    def __init__(self, config: NetConfig) -> None:
        self.killed = 0
        self._config = wire.encode(wire.Envelope(config)).hex()
        self.arena = Arena.create(net.ARENA, net.ARENA_VERSION, net.ARENA_SIZE)
        self.lot = Lot(4096)
        self.process: subprocess.Popen[str] | None = None
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None

    def start(self, client: NetClient | None = None) -> socket.socket:
        """A process; `client`, if given, goes on with it."""
        import json

        ours, theirs = socket.socketpair()
        parking = self.lot.open()
        fds = {"net": theirs.fileno(), "arena": self.arena.fd, "parking": parking.fileno()}
        with theirs, parking:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _RUN, self._config, json.dumps(fds), json.dumps(sys.path)],
                pass_fds=list(fds.values()), stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        self._stop.clear()
        self._keeper = threading.Thread(target=self._keep)
        self._keeper.start()
        if client is not None:
            client.master.reattach(ours)
        return ours

    def client(self, **options: int) -> NetClient:
        """A guest's side of it."""
        return NetClient(self.start(), inflight=True, **options)

    def _keep(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.lot.fileno(), selectors.EVENT_READ)
            while not self._stop.is_set():
                if selector.select(0.05) and not self.lot.receive():
                    return

    def kill(self) -> None:
        """At once, wherever it is."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self._ended()
        self.killed += 1

    def _ended(self) -> None:
        assert self.process is not None
        assert self._keeper is not None
        assert self.process.stderr is not None
        self.errors.append(self.process.communicate(timeout=20)[1])
        self._stop.set()
        self._keeper.join()
        self.lot.leave()

    def kill_and_go_on(self, client: NetClient) -> float:
        """Kills it and starts another one; the seconds until that one has the rings."""
        begun = time.monotonic()
        self.kill()
        self.start(client)
        return time.monotonic() - begun

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self._ended()
        self.lot.close()
        self.arena.close()
