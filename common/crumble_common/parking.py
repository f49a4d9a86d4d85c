"""Parked fds: what a service holds that its successor needs, kept by whoever starts both.

A Unix SOCK_SEQPACKET pair, one end inherited as the fd "parking". A service tells by it what it opens and closes,
in batches: a message is {"put": names, "drop": names} with one fd for each name put. Whoever keeps them (`Lot`)
sends all it has to a successor, first thing, in messages of the same form; one without names ends them.
What a dead service had sent is taken from the pair before: so an fd is safe as soon as `flush` returns.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from typing import Any

import msgpack

from crumble_common.errors import InternalError

# The kernel passes at most 253 in a message.
_BATCH = 128
_MAX_NAME = 96
_MESSAGE = 32 + _BATCH * 2 * (_MAX_NAME + 3)
_RIGHTS = socket.CMSG_SPACE(_BATCH * array.array("i").itemsize)
# What a successor waits for what it is given, s.
_PATIENCE = 10.0


class Parking:
    """The service's end; takes over `fd`. Never waits, but for `recover`."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
        self._put: dict[str, int] = {}
        self._drop: list[str] = []

    def recover(self) -> dict[str, int]:
        """What the predecessor had parked, by name, now the caller's (and parked still)."""
        found: dict[str, int] = {}
        self._socket.settimeout(_PATIENCE)
        try:
            while (message := _receive(self._socket, 0)) is not None:
                names, fds, _ = message
                if not names:
                    break
                found.update(zip(names, fds, strict=False))
        except TimeoutError:
            raise InternalError("What was parked does not come.", code="service.fd") from None
        self._socket.setblocking(False)
        return found

    def park(self, name: str, fd: int) -> None:
        """Has `fd`, which stays open until the next `flush`, kept."""
        self._put[name] = fd

    def drop(self, name: str) -> None:
        """It is of no use any more."""
        if self._put.pop(name, None) is None:
            self._drop.append(name)

    def flush(self) -> None:
        """Tells. What there is no room for at the moment is told the next time."""
        while self._put or self._drop:
            put, drop = list(self._put)[:_BATCH], self._drop[:_BATCH]
            try:
                _send(self._socket, put, [self._put[name] for name in put], drop)
            except OSError:  # full, or nobody is there any more
                return
            for name in put:
                del self._put[name]
            del self._drop[:_BATCH]

    def close(self) -> None:
        """Lets go of the connection; what is parked stays."""
        self._socket.close()


class Lot:
    """The keeper's: fds by name. room: how many it takes; more are not kept."""

    def __init__(self, room: int) -> None:
        self.fds: dict[str, int] = {}
        self._room = room
        self._socket: socket.socket | None = None

    def open(self) -> socket.socket:
        """The end for a new service, with what there is for it to `recover`. Non-blocking is `fileno`."""
        self.leave()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        names = list(self.fds)
        for start in range(0, len(names), _BATCH):
            batch = names[start : start + _BATCH]
            _send(self._socket, batch, [self.fds[name] for name in batch], [])
        _send(self._socket, [], [], [])
        return theirs

    def fileno(self) -> int:
        """Readable when the service has something to tell."""
        assert self._socket is not None
        return self._socket.fileno()

    def receive(self) -> bool:
        """Takes what the service has told. False when it is gone."""
        if self._socket is None:
            return False
        with contextlib.suppress(BlockingIOError):
            while (message := _receive(self._socket, socket.MSG_DONTWAIT)) is not None:
                names, fds, drop = message
                for name, fd in zip(names, fds, strict=False):
                    self._keep(name, fd)
                for name in drop:
                    self._close(name)
            return False
        return True

    def _keep(self, name: str, fd: int) -> None:
        self._close(name)
        if len(self.fds) < self._room:
            self.fds[name] = fd
        else:
            os.close(fd)

    def _close(self, name: str) -> None:
        if (fd := self.fds.pop(name, -1)) >= 0:
            os.close(fd)

    def leave(self) -> None:
        """The service is gone: what it told last is taken in, and the connection closed."""
        if self._socket is not None:
            self.receive()
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Closes everything."""
        self.leave()
        for name in list(self.fds):
            self._close(name)


def _send(to: socket.socket, put: list[str], fds: list[int], drop: list[str]) -> None:
    data = msgpack.packb({"put": put, "drop": drop})
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    to.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _receive(sock: socket.socket, flags: int) -> tuple[list[str], list[int], list[str]] | None:
    """Names put, their fds (fewer when there was no room for them here), names dropped; None at the end."""
    try:
        data, rights, _, _ = sock.recvmsg(_MESSAGE, _RIGHTS, flags | socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return None
    fds = array.array("i")
    for level, kind, found in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(found[: len(found) // fds.itemsize * fds.itemsize])
    if not data:
        return None
    put, drop = _parse(data)
    if len(put) < len(fds):
        for fd in fds[len(put) :]:
            os.close(fd)
    return put, fds.tolist()[: len(put)], drop


def _parse(data: bytes) -> tuple[list[str], list[str]]:
    """Nothing when it is no message of ours: a service may be its guest's by now."""
    try:
        message: Any = msgpack.unpackb(data)
        put, drop = message["put"], message["drop"]
    except (ValueError, KeyError, TypeError):
        return [], []
    if not _are_names(put) or not _are_names(drop):
        return [], []
    return put, drop


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and all(
        isinstance(name, str) and 0 < len(name) <= _MAX_NAME for name in names
    )
