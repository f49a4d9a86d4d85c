"""`ocid` as a service: image requests, each in a thread of its own, with progress events.

Sandbox: it reads what its user can read (images and archives lie anywhere), writes only its store, and
talks to the network. What must happen outside goes through `outside.Broker`, forked before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from crumble_common import log
from crumble_common.errors import CrumbleError, HostError, InternalError, UsageError
from crumble_common.messages.image import (
    ImageCancel,
    ImageCommit,
    ImageExport,
    ImageGet,
    ImageInspect,
    ImageList,
    ImageRemove,
    ImagesConfig,
    KernelGet,
)
from crumble_common.sandbox import Profile
from crumble_common.service import Context, Reply, Service
from crumble_ocid.library import Library
from crumble_ocid.outside import Broker
from crumble_ocid.progress import Reporter
from crumble_ocid.store import Store

_MAX_OPERATIONS = 32


class OcidService(Service[ImagesConfig]):
    """Images and kernels for everybody else."""

    name = "ocid"
    config_type = ImagesConfig
    network: ClassVar[bool] = True
    keep_ids: ClassVar[bool] = False

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._running: dict[threading.Thread, Reporter] = {}
        self._served = 0

    def open(self, config: ImagesConfig) -> None:
        self._root = Path(config.store)
        broker = Broker()
        self._library = Library(Store(self._root), broker, insecure=config.insecure_registries)

    def sandbox(self) -> Profile:
        return Profile(read=("/",), write=(str(self._root),), network=True)

    def start(self) -> None:
        """Nothing to watch: all work comes as messages."""

    def handle(self, message: Any, reply: Reply) -> None:
        library = self._library
        work: Callable[[Reporter], Any]
        if isinstance(message, ImageGet):
            work = lambda reporter: library.get(message, reporter)  # noqa: E731
        elif isinstance(message, KernelGet):
            work = lambda reporter: library.kernel(message, reporter)  # noqa: E731
        elif isinstance(message, ImageExport):
            work = lambda reporter: library.export(message, reporter)  # noqa: E731
        elif isinstance(message, ImageCommit):
            work = lambda reporter: library.commit(message, reporter)  # noqa: E731
        elif isinstance(message, ImageList):
            work = lambda _: library.images()  # noqa: E731
        elif isinstance(message, ImageInspect):
            work = lambda _: library.inspect(message.reference)  # noqa: E731
        elif isinstance(message, ImageRemove):
            work = lambda _: library.remove(message.reference)  # noqa: E731
        elif isinstance(message, ImageCancel):
            self._cancel(message.operation)
            return
        else:
            raise UsageError(f"ocid does not know {message.wire_type}.")
        self._begin(work, getattr(message, "operation", ""), reply)

    def stats(self) -> dict[str, int]:
        return {"operations.running": len(self._running), "operations.served": self._served}

    def stop(self, grace: float) -> None:
        """Running operations end at their next step; what they had is kept for resuming."""
        for reporter in tuple(self._running.values()):
            reporter.cancel()
        self._library.abort()
        deadline = self.context.loop.now() + grace
        for thread in tuple(self._running):
            thread.join(max(0.0, deadline - self.context.loop.now()))
        self._library.close()

    def _begin(self, work: Callable[[Reporter], Any], operation: str, reply: Reply) -> None:
        if len(self._running) >= _MAX_OPERATIONS:
            raise HostError(
                f"ocid is busy with {_MAX_OPERATIONS} other requests.",
                code="ocid.busy",
                hint="Try again in a moment.",
            )
        send = self.context.send if operation else None
        reporter = Reporter(send, operation)

        def run() -> None:
            try:
                _answer(work, reporter, reply)
            finally:
                del self._running[threading.current_thread()]

        # A daemon: one that hangs in a system call must not keep the process from ending.
        thread = threading.Thread(target=run, name="ocid", daemon=True)
        self._running[thread] = reporter
        self._served += 1
        thread.start()

    def _cancel(self, operation: str) -> None:
        """Ends one operation. Others lose their connections, too, and connect again."""
        for reporter in tuple(self._running.values()):
            if reporter.operation == operation:
                reporter.cancel()
                self._library.abort()


def _answer(work: Callable[[Reporter], Any], reporter: Reporter, reply: Reply) -> None:
    try:
        reply.ok(work(reporter))
    except CrumbleError as error:
        reply.error(error)
    except OSError as error:
        reply.error(
            HostError(
                f"ocid failed: {error}.",
                code="host.os",
                hint="Free what it says is lacking, and try again.",
            )
        )
    except Exception as error:  # noqa: BLE001  a bug must not leave the asker waiting
        log.exception("operation failed", error)
        reply.error(InternalError(f"ocid failed: {error!r}.", code="ocid.bug"))
