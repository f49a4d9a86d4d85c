"""Keeps processes that are about to be commands, for the launcher (native/launcher/crumble.c)."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from crumble.supervisor.spawner import Spawner
from crumble_common import log, paths
from crumble_common.errors import InternalError

_ENTRY = "crumble.cli.served:main"
# The launcher becomes the Python of this name beside it when nobody serves it.
_PYTHON = "-python"
_WAITING = 64
# It may end by itself so often before no more is started.
_LOST = 5


class Commands:
    """The socket `commands`, and the process that serves it; nothing when no launcher began us."""

    def __init__(self, place: Path, logs: Path) -> None:
        self._path = place / "commands"
        self._log = logs / "commands.log"
        self._launcher = paths.absolute(sys.argv[0]).removesuffix(_PYTHON)
        self._listener: socket.socket | None = None
        self._left = _LOST

    def start(self, spawner: Spawner) -> None:
        """Starts it, on a forkserver that has none."""
        if not sys.argv[0].endswith(_PYTHON) or not os.access(self._launcher, os.X_OK):
            return
        if self._listener is None:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._listener.bind(str(self._path))
            self._listener.listen(_WAITING)
        log_fd = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            environment = {"CRUMBLE_LAUNCHER": self._launcher}
            fds = {"commands": self._listener.fileno()}
            spawner.spawn(
                "commands",
                _ENTRY,
                environment,
                fds,
                log_fd,
                lambda status: self._ended(spawner, status),
            )
        finally:
            os.close(log_fd)

    def close(self) -> None:
        """Who comes from now on begins by itself."""
        if self._listener is not None:
            self._path.unlink(missing_ok=True)
            self._listener.close()
            self._listener = None

    def _ended(self, spawner: Spawner, status: int) -> None:
        if self._listener is None:
            return
        log.warning("the commands' process ended", status=status)
        self._left -= 1
        try:
            if self._left:
                self.start(spawner)
                return
        except InternalError:  # the forkserver is lost: the next one's will be started
            pass
        self.close()
