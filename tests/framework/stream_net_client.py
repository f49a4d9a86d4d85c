"""A guest's network card over QEMU's `-netdev stream`: frames behind their length in a Unix socket, as passt serves it."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time

from crumble_netd.header.virtio_net import NOTHING, SIZE, Offload
from framework.net_client import PLAIN, NetClient
from framework.netd_guest import Guest

_CHUNK = 1 << 20


class StreamNetClient(NetClient):
    """A NetClient without rings, so without offloads."""

    def __init__(self, path: str, mtu: int) -> None:
        self._begin(PLAIN, mtu)
        self.guest = Guest(self)  # type: ignore[arg-type]  # it needs `frame` only
        self._socket = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + 5
        while code := self._socket.connect_ex(path):
            if code != errno.ECONNREFUSED or time.monotonic() > end:  # bound, and not yet listening
                raise OSError(code, os.strerror(code))
            time.sleep(0.001)
        self._socket.setblocking(False)
        self._out = bytearray()
        self._in = bytearray()

    def _transmit(self, parts: list[bytes]) -> None:
        frame = b"".join(parts)[SIZE:]
        self._out += struct.pack("!I", len(frame)) + frame
        self._send()

    def _send(self) -> None:
        while self._out:
            try:
                del self._out[: self._socket.send(self._out)]
            except BlockingIOError:
                return

    def pump(self, timeout: float = 0.0) -> None:
        """As a NetClient's."""
        self._serve()
        end = time.monotonic() + timeout
        while not self._take():
            left = end - time.monotonic()
            if left <= 0:
                break
            wanted = [self._socket] if self._out else []
            select.select([self._socket], wanted, [], min(left, self._next_deadline(left)))
            self._tick()
            self._serve()
            self._send()
        self._tick()
        self._serve()
        self._send()

    def _take(self) -> int:
        try:
            self._in += self._socket.recv(_CHUNK)
        except BlockingIOError:
            return 0
        at = count = 0
        while len(self._in) >= at + 4:
            size = int.from_bytes(self._in[at : at + 4], "big")
            if len(self._in) < at + 4 + size:
                break
            self._frame(bytes(self._in[at + 4 : at + 4 + size]), NOTHING)
            at, count = at + 4 + size, count + 1
        del self._in[:at]
        return count

    def frame(self, frame: bytes, offload: Offload = NOTHING) -> None:
        """Sends one; what it was to be offloaded is not."""
        self._transmit([bytes(SIZE) + frame])

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()
