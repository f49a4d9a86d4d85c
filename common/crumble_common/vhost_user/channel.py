"""vhost-user messages over a connected Unix socket, file descriptors in SCM_RIGHTS.

Works on blocking and non-blocking sockets. Whatever goes wrong, descriptors that arrived and were
not handed to the caller are closed.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from crumble_common.errors import HostError, UsageError
from crumble_common.vhost_user.wire import HEADER, MAX_FDS, Message, VhostUserError, parse_header

_ANCILLARY = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


def close_all(fds: Iterable[int]) -> None:
    """Closes descriptors that nobody wants."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


class Disconnected(VhostUserError):  # noqa: N818
    """The peer is gone."""


class Channel:
    """One end of a vhost-user connection. Owns the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._got = bytearray()
        self._fds: list[int] = []
        self._wanted = HEADER.size
        self._header: tuple[int, int, int] | None = None

    def fileno(self) -> int:
        """The socket's descriptor, for polling."""
        return self.sock.fileno()

    def send(self, message: Message) -> None:
        """Sends the whole message; raises Disconnected when the peer is gone or never reads."""
        data = memoryview(message.pack())
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", message.fds))]
        try:
            sent = self.sock.sendmsg([data], rights if message.fds else [], socket.MSG_NOSIGNAL)
            # Messages are small: a socket that takes only a part of one is full of unread replies.
            if sent != len(data):
                raise Disconnected("The vhost-user peer does not read its replies.")
        except OSError as error:
            raise Disconnected(f"The vhost-user peer is gone: {error.strerror}.") from error

    def receive(self) -> Message | None:
        """The next whole message; None when it has not all arrived yet (non-blocking sockets).

        Raises Disconnected at the end of the stream, VhostUserError for bytes that are no message.
        """
        while True:
            while len(self._got) < self._wanted:
                if not self._more(self._wanted - len(self._got)):
                    return None
            data = bytes(self._got)
            self._got.clear()
            if self._header is None:
                self._header = parse_header(data)
                self._wanted = self._header[2]
                continue
            (request, flags, _), fds = self._header, self._fds
            self._header, self._fds, self._wanted = None, [], HEADER.size
            return Message(request, data, flags, fds)

    def _more(self, wanted: int) -> bool:
        try:
            data, ancillary, flags, _ = self.sock.recvmsg(
                wanted, _ANCILLARY, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return False
        except TimeoutError as error:
            raise Disconnected("The vhost-user peer does not answer.") from error
        except OSError as error:
            raise Disconnected(f"The vhost-user peer is gone: {error.strerror}.") from error
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self._fds += fds
        if flags & socket.MSG_CTRUNC or len(self._fds) > MAX_FDS:
            raise VhostUserError(f"A message came with more than {MAX_FDS} file descriptors.")
        if not data:
            raise Disconnected("The vhost-user peer closed the connection.")
        self._got += data
        return True

    def close(self) -> None:
        """Closes the socket and descriptors of a message that never became whole."""
        close_all(self._fds)
        self._fds = []
        self.sock.close()


def connect(path: str, timeout: float = 5.0) -> socket.socket:
    """Connects to a listening back end; raises HostError with the path in it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise HostError(
            f"Cannot connect to {path}: {error.strerror}.",
            code="vhost_user.connect",
            hint="Start the back end first, or give the path it listens on.",
        ) from error
    return sock


def listen(path: str) -> socket.socket:
    """A listening socket at `path`, readable by its owner only. A dead socket there is replaced.

    Raises UsageError when somebody listens there or something else is in the way.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_dead(path)
        os.fchmod(sock.fileno(), 0o600)  # Linux gives the file the socket's mode
        sock.bind(path)
        sock.listen(1)
    except OSError as error:
        sock.close()
        raise UsageError(
            f"Cannot listen on {path}: {error.strerror or error}.",
            code="vhost_user.listen",
            hint="Choose another path, or end what is there.",
        ) from error
    return sock


def _remove_dead(path: str) -> None:
    """Unlinks `path` when it is a socket nobody listens on."""
    place = Path(path)
    if not place.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            place.unlink()
