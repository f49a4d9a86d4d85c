"""Bytes both ways through a netd that is killed meanwhile; not one is lost or repeated."""

from __future__ import annotations

import random
import socket
import threading
import time

from framework.net_client import NetClient
from framework.netd_guest import HOST
from framework.surviving_netd import SurvivingNetd


class Peer:
    """Sends what it is to send and keeps what it gets, each in a thread of its own.

    pause: between its reads, s. pace: between its writes, of a hundredth each, s.
    """

    def __init__(self, data: bytes, pause: float = 0.0, pace: float = 0.0) -> None:
        self.data, self.got = data, bytearray()
        self._pause, self._pace = pause, pace
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
        step = -(-len(self.data) // 100)
        for at in range(0, len(self.data), step):
            connection.sendall(self.data[at : at + step])
            time.sleep(self._pace)
        connection.shutdown(socket.SHUT_WR)

    def join(self) -> None:
        self._thread.join(60)
        self._server.close()


def wait(client: NetClient, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        client.pump(min(left, 0.01))


def exchange(netd: SurvivingNetd, seed: int, pause: float, kills: int, size: int) -> None:
    """With kills at instants that the seed chooses. pause: of the host between its reads, s."""
    chance = random.Random(seed)
    up, down = chance.randbytes(size), chance.randbytes(size)
    peer = Peer(down, pause)
    with netd.client(buffer=chance.choice([66_000, 4096])) as client:
        stream = client.connect((HOST, peer.port))
        stream.send(up)
        stream.shutdown()
        for _ in range(kills):
            wait(client, chance.uniform(0.0, 0.08))
            netd.kill_and_go_on(client)
        answer = stream.read_all(60)
        client.wait(lambda: stream.idle, 60)
        peer.join()
        assert netd.killed == kills
        assert answer == down
        assert peer.got == up
