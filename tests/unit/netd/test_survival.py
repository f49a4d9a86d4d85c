"""netd killed at any instant: a guest's connections go on, to the byte, with its successor."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from crumble_common.messages.net import NetConfig, NetPolicy
from framework.net_client import NetClient
from framework.netd_guest import HOST
from framework.surviving_netd import SurvivingNetd


@pytest.fixture
def netd() -> Iterator[SurvivingNetd]:
    with SurvivingNetd(NetConfig("net", mac="", policy=NetPolicy(["host"]))) as made:
        yield made
        for errors in made.errors:
            assert "Traceback" not in errors, errors


class Peer:
    """Sends what it is to send and keeps what it gets, each in a thread of its own."""

    def __init__(self, data: bytes, pause: float = 0.0) -> None:
        self.data, self.got = data, bytearray()
        self._pause = pause
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        with connection:
            writer = threading.Thread(target=self._send, args=(connection,))
            writer.start()
            while piece := connection.recv(1 << 16):
                self.got += piece
                time.sleep(self._pause)
            writer.join()

    def _send(self, connection: socket.socket) -> None:
        connection.sendall(self.data)
        connection.shutdown(socket.SHUT_WR)

    def join(self) -> None:
        self._thread.join(60)
        self._server.close()


def wait(client: NetClient, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        client.pump(min(left, 0.01))


@pytest.mark.parametrize(("seed", "pause"), [(1, 0.0), (2, 0.002)])
def test_bytes_both_ways_are_the_same_bytes(netd: SurvivingNetd, seed: int, pause: float) -> None:
    chance = random.Random(seed)
    up, down = chance.randbytes(12_000_000), chance.randbytes(12_000_000)
    peer = Peer(down, pause)
    with netd.client(buffer=66_000) as client:
        stream = client.connect((HOST, peer.port))
        stream.send(up)
        stream.shutdown()
        for _ in range(5):
            wait(client, chance.uniform(0.005, 0.1))
            netd.kill_and_go_on(client)
        answer = stream.read_all(60)
        client.wait(lambda: stream.idle, 60)
        peer.join()
        assert netd.killed == 5
        assert answer == down
        assert peer.got == up
