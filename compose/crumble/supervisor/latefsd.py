"""The `fsd` of a fork, which begins when somebody wants it: 7 MiB less of one that waits (docs/decisions/0014).

    none ──FsWanted, a client's request, a capture, an orderly stop──► begun ──► its files name the guest

Until then its end of the connection is ours, and the guest has what its caches have.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from crumble.supervisor import rename
from crumble.supervisor.capture import logged, settled
from crumble.supervisor.tasks import Task, limited
from crumble_common.errors import CrumbleError, GuestError, InternalError

if TYPE_CHECKING:
    from crumble.supervisor.origin import Origin
    from crumble.supervisor.services import ServiceProcess
    from crumble.supervisor.vm import Vm
    from crumble_common.messages.fs import FsConfig

_SOCKET = "root_fs"
# What a capture waits for files that are being renamed, s: the guest may not answer.
_NAMING = 10.0


class LateFsd:
    """Of one VM. socket: where its front end is connected to; it stays the caller's."""

    def __init__(self, vm: Vm, origin: Origin, config: FsConfig, socket: int) -> None:
        self._vm, self._about, self._config = vm, origin.about, config
        self._process: ServiceProcess | None = None
        self._naming: Task[None] | None = None
        self._over = False
        vm.host.fds.put(vm.id, _SOCKET, os.dup(socket))

    @staticmethod
    def suits(vm: Vm) -> bool:
        """Whether `vm` is a fork whose `fsd` may be late. What it shares is looked for when it is made."""
        origin, request = vm.origin, vm.request
        forked = origin is not None and origin.snapshot is None
        return forked and not request.seed and not request.shares

    def begun(self) -> ServiceProcess:
        """Its process, which begins now if it has not; raises CrumbleError."""
        if self._process is None:
            if self._over:
                raise GuestError(f"The VM {self._vm.name} was stopped.", code="vm.stopped")
            vm, row = self._vm, self._vm.host.table["fsd"]
            kept = vm.host.fds.of(vm.id)
            given = {name: kept[name] for name in row.fds if name in kept}
            self._process = vm.host.services.start(
                row, f"fsd.{vm.name}", self._config, vm.event, given
            )
            vm.host.fds.close(vm.id, _SOCKET)  # its end is to be seen
            vm.adopt(self._process)
        return self._process

    def wanted(self) -> None:
        """The guest wants files."""
        try:
            self.begun()
        except CrumbleError as error:
            self._vm.fail(error)
        else:
            Task(self.named()).then(logged("guest keeps the old name", self._vm))

    async def named(self) -> None:
        """Waits until the guest's files have its name, unless they cannot: before anything is done in it that a client asks for."""
        if self._naming is None:
            self._naming = Task(self._name())
        await settled(self._naming)

    async def _name(self) -> None:
        if self._vm.hostname != self._about.hostname:
            self.begun()
            await settled(self._vm.agent)
            await rename.rename(self._vm, self._about)

    async def hostname(self) -> str:
        """The name that its files have."""
        naming = self._naming
        if naming is None:
            return self._about.hostname
        with contextlib.suppress(CrumbleError):
            await limited(self._vm.host.loop, naming, _NAMING, _late)
        return self._vm.hostname if naming.done else self._about.hostname

    def close(self, *, last_call: bool) -> None:
        """It begins now or never. last_call: now, since a guest that shuts down writes back its files."""
        if last_call:
            with contextlib.suppress(CrumbleError):
                self.begun()
        self._over = True


def _late() -> CrumbleError:
    return InternalError("The guest does not rename its files.", code="service.late")
