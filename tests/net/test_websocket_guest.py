"""A WebSocket between a client here and Debian's server in a real guest, held while netd is killed again and again."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble_common import paths
from framework import assets
from framework.command import World, eventually, read_until
from framework.ports import free_port

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]

IMAGE = "deb:trixie/python3-websockets"
KILLS = 3
# It also asks every second whether the client is there, and gives up after three: the pauses are shorter.
SERVER = """
import asyncio, websockets
async def serve(socket):
    async for message in socket:
        await socket.send(message[::-1])
async def main():
    async with websockets.serve(serve, "", 80, ping_interval=1, ping_timeout=3):
        print("listening", flush=True)
        await asyncio.Future()
asyncio.run(main())
"""
# RFC 6455 §1.3, §5.2.
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _PING, _PONG = 1, 9, 10


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    assets.pulled(IMAGE)
    made = World(tmp_path, "crumble.cli.main")
    made.environment["CRUMBLE_DATA_DIR"] = str(paths.data_dir())
    yield made
    made.end()
    made.assert_nothing_left()


class WebSocket:
    """A client; small messages. pings: that it has answered."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 30)
        self._stream = self._socket.makefile("rb")
        self.pings = 0
        key = base64.b64encode(os.urandom(16))
        self._socket.sendall(
            b"GET / HTTP/1.1\r\nHost: guest\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._stream.readline()
        assert head.startswith(b"HTTP/1.1 101 ")
        assert base64.b64encode(hashlib.sha1(key + _GUID).digest()) in head

    def send(self, data: bytes, opcode: int = _TEXT) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
        self._socket.sendall(struct.pack("!BB", 0x80 | opcode, 0x80 | len(data)) + mask + masked)

    def receive(self) -> bytes:
        """The next message; pings are answered."""
        while True:
            first, size = struct.unpack("!BB", self._stream.read(2))
            data = self._stream.read(size)
            if first == 0x80 | _TEXT:
                return data
            assert first == 0x80 | _PING
            self.pings += 1
            self.send(data, _PONG)

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


def test_it_is_held_while_netd_dies(world: World) -> None:
    port = free_port()
    guest = world.start("run", "-p", f"{port}:80", IMAGE, "python3", "-c", SERVER)
    assert guest.stdout is not None
    read_until(guest.stdout, b"listening\n")
    client = WebSocket(port)
    for number in range(KILLS):
        client.send(b"before %d" % number)
        assert client.receive() == (b"before %d" % number)[::-1]
        old = world.pid("netd")
        client.send(b"while %d" % number)
        os.kill(old, signal.SIGKILL)
        assert client.receive() == (b"while %d" % number)[::-1]
        eventually(lambda: world.pid("netd") != old, "nobody took its place")  # noqa: B023
    seen = client.pings
    while client.pings < seen + 2:
        client.send(b"idle")
        assert client.receive() == b"eldi"
    client.close()
    guest.terminate()
    guest.communicate(timeout=60)
