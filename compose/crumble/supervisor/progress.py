"""How far a capture is, for the client that waits for it: Progress events from "captures"."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Self

from crumble.snapshots import manifest as form
from crumble.snapshots.draft import Draft
from crumble.snapshots.meter import INTERVAL
from crumble_common.memory_base import count_frozen
from crumble_common.messages.image import Progress, Unit
from crumble_native.memory import STATE_HEADER_SIZE

if TYPE_CHECKING:
    from crumble.supervisor.clients import Client
    from crumble.supervisor.vm import Vm

SOURCE = "captures"


class Telling:
    """One request of a client's."""

    def __init__(self, client: Client, operation: str) -> None:
        self._client = client
        self._operation = operation

    def tell(self, step: str, done: int, total: int, unit: Unit = "bytes") -> None:
        """In the supervisor's loop; 0 is a total that nobody knows."""
        event = Progress(self._operation, step, min(done, total) if total else done, total, unit)
        self._client.deliver(event, SOURCE)


class Saving:
    """A context in which a VM's memory is saved: looks now and then how much of it is."""

    def __init__(self, vm: Vm, draft: Draft, telling: Telling) -> None:
        self._vm, self._draft, self._telling = vm, draft, telling
        self._loop = vm.host.loop

    def __enter__(self) -> Self:
        self._timer = self._loop.call_later(INTERVAL, self._look)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        memory = self._draft.fds.get(form.MEMORY)
        if memory is not None and self._vm.alive:
            done = os.fstat(memory).st_blocks * 512
            left = _left(self._vm)
            self._telling.tell("memory", done, done + left if left is not None else 0)
        self._timer = self._loop.call_later(INTERVAL, self._look)


def _left(vm: Vm) -> int | None:
    """Bytes, of which those that are zero will not be written; None where pages are not marked."""
    if vm.backend.name != "soft":
        return None
    fd = vm.host.fds.get(vm.id, "page_state")
    return count_frozen(os.pread(fd, vm.memory // form.PAGE, STATE_HEADER_SIZE)) * form.PAGE
