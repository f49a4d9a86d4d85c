"""The way to `ocid`: started when first asked for, again when it died, one for all clients."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable
from typing import Any

from crumble.supervisor.services import ServiceProcess, Services
from crumble.supervisor.table import Row
from crumble.supervisor.tasks import Cancelled
from crumble_common import log, paths
from crumble_common.messages import image as messages

OnProgress = Callable[[messages.Progress], None]

# What clients may ask with to="images".
REQUESTS = (
    messages.ImageGet,
    messages.ImageList,
    messages.ImageInspect,
    messages.ImageRemove,
    messages.ImageExport,
    messages.KernelGet,
)


class Images:
    """Asks `ocid`, and brings its progress events to who asked."""

    def __init__(self, services: Services, row: Row) -> None:
        self._services = services
        self._row = row
        self._process: ServiceProcess | None = None
        self._operations = itertools.count(1)
        self._progress: dict[str, tuple[str, OnProgress]] = {}

    def start(self) -> ServiceProcess:
        """The running process; a new one when there is none."""
        if self._process is None or self._process.state == "ended":
            config = messages.ImagesConfig(str(paths.store_dir()), _insecure_registries())
            self._process = self._services.start(self._row, self._row.name, config, self._event)
        return self._process

    async def ask(self, body: Any, on_progress: OnProgress) -> Any:
        """One request. Progress comes with the operation the asker chose, whoever else chose it."""
        operation = f"op{next(self._operations)}"
        if hasattr(body, "operation"):
            self._progress[operation] = (body.operation, on_progress)
            body = dataclasses.replace(body, operation=operation)
        process = self.start()
        try:
            return await process.request(body)
        except Cancelled:
            process.send(messages.ImageCancel(operation))
            raise
        finally:
            self._progress.pop(operation, None)

    def _event(self, event: Any) -> None:
        if isinstance(event, messages.Progress):
            if event.operation in self._progress:
                operation, on_progress = self._progress[event.operation]
                on_progress(dataclasses.replace(event, operation=operation))
        else:
            log.warning("unexpected event", service=self._row.name, type=event.wire_type)


def _insecure_registries() -> list[str]:
    given = os.environ.get("CRUMBLE_INSECURE_REGISTRIES", "")
    return [name for name in given.split(",") if name]
