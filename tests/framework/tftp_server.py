"""A TFTP server (RFC 1350, with the block sizes of RFC 2348) for one client at a time: what guests speak UDP with."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_READ, _WRITE, _DATA, _ACK, _OACK = 1, 2, 3, 4, 6


class TftpServer:
    """files: what it has, and gets, by name. Everything goes by `port` of the host's loopback, also what another server
    would have a port of its own for.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._name = ""
        self._size = 512
        self._writing = False

    def serve(self) -> None:
        """Until an empty datagram comes."""
        while True:
            message, peer = self._socket.recvfrom(1 << 16)
            if not message:
                break
            self._answer(message, peer)
        self._socket.close()

    def end(self) -> None:
        """Has `serve` end."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", ("127.0.0.1", self.port))

    def _answer(self, message: bytes, peer: Any) -> None:
        what, block = struct.unpack_from("!HH", message)
        if what in (_READ, _WRITE):
            self._begin(message, peer)
        elif what == _ACK and not self._writing:
            data = self.files[self._name][block * self._size :][: self._size]
            if data or len(self.files[self._name]) == block * self._size:
                self._socket.sendto(struct.pack("!HH", _DATA, block + 1) + data, peer)
        elif what == _DATA and self._writing:
            if len(self.files[self._name]) == (block - 1) * self._size:
                self.files[self._name] += message[4:]
            self._socket.sendto(struct.pack("!HH", _ACK, block), peer)

    def _begin(self, message: bytes, peer: Any) -> None:
        name, _, *options = message[2:].split(b"\0")[:-1]
        found = {options[i].lower(): options[i + 1] for i in range(0, len(options), 2)}
        self._name, self._size = name.decode(), int(found[b"blksize"])
        self._writing = message[1] == _WRITE
        if self._writing:
            self.files[self._name] = b""
        agreed = b"blksize\0" + found[b"blksize"] + b"\0"
        self._socket.sendto(struct.pack("!H", _OACK) + agreed, peer)


@contextmanager
def tftp_server(files: dict[str, bytes]) -> Iterator[TftpServer]:
    """One that serves, in a thread."""
    server = TftpServer(files)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.end()
        thread.join()
