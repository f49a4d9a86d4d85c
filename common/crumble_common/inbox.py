"""A service's inbox: fds that its supervisor hands over while it runs.

A Unix SOCK_SEQPACKET pair, one end inherited as the fd "inbox". A message is a name (at most 64 bytes of
UTF-8) and one fd. The supervisor sends it before the control message that names it, so that taking
never waits. Neither end ever blocks.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket

from crumble_common.errors import InternalError

MAX_NAME = 64
# Fds that may lie here unasked for; the oldest goes then.
_KEPT = 16
_RIGHTS = socket.CMSG_SPACE(array.array("i").itemsize)


class Inbox:
    """The service's end; takes over `fd`."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
        self._arrived: dict[str, int] = {}

    def take(self, name: str) -> int:
        """The fd that was sent as `name`, now the caller's; InternalError "service.fd"."""
        self._receive()
        if name not in self._arrived:
            raise InternalError(f"The fd {name!r} was not handed over.", code="service.fd")
        return self._arrived.pop(name)

    def close(self) -> None:
        """Closes it, and what nobody took."""
        self._socket.close()
        for fd in self._arrived.values():
            os.close(fd)
        self._arrived.clear()

    def _receive(self) -> None:
        """Everything that has arrived. socket.recv_fds would ignore the flags."""
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                name, rights, _, _ = self._socket.recvmsg(MAX_NAME, _RIGHTS, flags)
                if not name:
                    return
                self._keep(name.decode("utf-8", "replace"), _fds(rights))

    def _keep(self, name: str, fds: list[int]) -> None:
        for fd in fds:
            if name in self._arrived:
                os.close(self._arrived.pop(name))
            self._arrived[name] = fd
        while len(self._arrived) > _KEPT:
            os.close(self._arrived.pop(next(iter(self._arrived))))


class Outbox:
    """The supervisor's end. theirs: the other one, for the service; closed by `handed_over`."""

    def __init__(self) -> None:
        self._socket, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    @property
    def theirs(self) -> int:
        """The fd to start the service with."""
        return self._theirs.fileno()

    def handed_over(self) -> None:
        """The service has its end: we need it no more."""
        self._theirs.close()

    def send(self, name: str, fd: int) -> None:
        """Hands `fd` over, which stays ours too; InternalError when the service takes none."""
        data = name.encode()
        if not 0 < len(data) <= MAX_NAME:
            raise InternalError(f"{name!r} cannot be an fd's name.", code="service.fd")
        try:
            right = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
            self._socket.sendmsg([data], [right], socket.MSG_DONTWAIT)
        except OSError as error:
            raise InternalError(f"A service takes no fd: {error}.", code="service.fd") from error

    def close(self) -> None:
        """Closes both ends."""
        self._socket.close()
        self._theirs.close()


def _fds(rights: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) // found.itemsize * found.itemsize])
    return found.tolist()
