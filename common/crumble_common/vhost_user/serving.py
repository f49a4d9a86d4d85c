"""A back end's service around its one front end: waits for it or takes the one that is there already,
takes part in captures of its memory, and ends with it.
"""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable, Mapping

from crumble_common import log
from crumble_common.errors import UsageError
from crumble_common.memory_base import MemoryBase
from crumble_common.service import Context
from crumble_common.vhost_user.backend import Backend, Device
from crumble_common.vhost_user.memory_capture import MemoryCapture
from crumble_common.vhost_user.wire import VhostUserError

# How often a capture under way is looked at, s.
_CAPTURE_LOOK = 1.0


class Serving:
    """`device`, served over the service's fd `socket_fd`: a listening or a connected Unix socket.

    Of our own vmm there are two more fds, "page_state" (which layer of memory a page is in) and, for
    a restored guest, those of the MemoryBase below, which all its clones share: all are mapped
    here, while that is allowed. fds: where they are found, else among those that the service was started
    with. on_end: called when the front end has left, else the service ends. Raises UsageError when the
    fd is no socket.
    """

    def __init__(
        self,
        context: Context,
        socket_fd: str,
        device: Device,
        *,
        fds: Mapping[str, int] | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self._context = context
        self._device = device
        self._fds = context.fds if fds is None else fds
        self._on_end = on_end or context.finish
        self._socket: socket.socket | None = _socket(
            context.fd(socket_fd) if fds is None else fds[socket_fd]
        )
        self._page_state = self._map("page_state", mmap.PROT_READ | mmap.PROT_WRITE)
        self._base = self._map_base()
        self._capture = MemoryCapture(self._page_state)
        self._backend: Backend | None = None
        self._waiting = False

    def start(self) -> None:
        """Waits for the front end, or serves the one that is connected."""
        sock = self._socket
        assert sock is not None
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.setblocking(False)
            self._waiting = True
            self._context.loop.add_fd(sock.fileno(), "listen", self._accept)
        else:
            self._serve(sock)

    @property
    def running(self) -> bool:
        """The guest has a ring that is served."""
        return self._backend is not None and any(ring.running for ring in self._backend.rings)

    def capture_to(self, fd: int) -> None:
        """From now on frozen pages are saved to `fd`, which is taken over, before they are written."""
        self._capture.begin(fd, self._backend)
        self._context.loop.call_later(_CAPTURE_LOOK, self._look)

    def close(self) -> None:
        """Stops the rings and lets go of the front end."""
        self._capture.end()
        if self._socket is not None:
            if self._waiting:
                self._context.loop.remove_fd(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._backend is not None:
            self._context.loop.remove_fd(self._backend.fileno())
            self._backend.close()
            self._backend = None

    def _look(self) -> None:
        if not self._capture.end_if_done():
            self._context.loop.call_later(_CAPTURE_LOOK, self._look)

    def _map(self, name: str, access: int) -> mmap.mmap | None:
        if name not in self._fds:
            return None
        fd = self._fds[name]
        return mmap.mmap(fd, os.fstat(fd).st_size, prot=access)

    def _map_base(self) -> mmap.mmap | None:
        base = MemoryBase.given(self._fds)
        return None if base is None else base.map(os.fstat(base.fds[0]).st_size)

    def _accept(self) -> None:
        assert self._socket is not None
        try:
            connection, _ = self._socket.accept()
        except BlockingIOError:
            return
        self._context.loop.remove_fd(self._socket.fileno())
        self._socket.close()
        self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        self._socket = None
        self._backend = Backend(
            connection, self._device, page_state=self._page_state, base=self._base
        )
        self._context.loop.add_fd(self._backend.fileno(), "vhost-user", self._readable)

    def _readable(self) -> None:
        assert self._backend is not None
        try:
            alive = self._backend.handle_readable()
        except VhostUserError as error:
            log.error("vhost-user ended", reason=error.message)
            alive = False
        if not alive:
            self.close()
            self._on_end()


def _socket(fd: int) -> socket.socket:
    try:
        return socket.socket(fileno=fd)
    except OSError as error:
        raise UsageError(f"fd {fd} is not a socket: {error.strerror}.") from error
