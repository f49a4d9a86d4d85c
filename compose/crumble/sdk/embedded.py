"""A supervisor in a thread of this process: for one-shot use, when no daemon runs.

It has a private directory below the runtime directory and takes no clients but ours. When this
process is killed, the forkserver sees that, ends the services and removes the directory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import zmq

from crumble.supervisor.ground import Ground
from crumble_common import log


class Embedded:
    """The supervisor and its thread. `on_end` is called, in that thread, when it has ended."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], ground: Ground | None = None
    ) -> None:
        ground = ground or Ground()
        self.on_end: Callable[[], None] = lambda: None
        try:
            from crumble.supervisor.supervisor import Supervisor  # while the forkserver imports

            self._supervisor = Supervisor(context=context, ground=ground)
            self._log = self._open_log()
            self._supervisor.bind()
        except BaseException:
            ground.close()
            raise
        self.address = self._supervisor.inproc
        self._thread = threading.Thread(target=self._run, name="crumble-supervisor", daemon=True)
        self._owner = os.getpid()
        os.register_at_fork(after_in_child=self._forked)

    def start(self) -> None:
        """Serves from now on."""
        self._thread.start()

    def stop(self, grace: float = 0.0) -> None:
        """Ends every VM and service; returns when nothing is left."""
        if os.getpid() == self._owner and self._thread.is_alive():
            self._supervisor.stop(grace)
            self._thread.join()

    def _run(self) -> None:
        try:
            self._supervisor.run()
        finally:
            self.on_end()
            if self._log >= 0:
                log.setup()
                os.close(self._log)

    def _open_log(self) -> int:
        """Our program's stderr is not ours to write to, unless it was asked for."""
        if os.environ.get("CRUMBLE_LOG"):
            return -1
        path = self._supervisor.instance.logs / "supervisor.log"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        log.setup("supervisor", fd=fd)
        return fd

    def _forked(self) -> None:
        if self._thread.ident is not None:
            self._supervisor.disown()
