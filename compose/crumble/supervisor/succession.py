"""A service that outlives its processes: when one dies, another one is started with what it left.

What it leaves is an arena, which is ours, and the sockets that it parked with us (crumble_common.parking). One
that dies again and again ends its VM, with a sentence that says so.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from crumble.supervisor.capture import logged, settled
from crumble.supervisor.tasks import Task
from crumble_common import log
from crumble_common.arena import Arena
from crumble_common.errors import CrumbleError, InternalError
from crumble_common.messages import net
from crumble_common.messages.net import NetIdle
from crumble_common.messages.vm import NetReconnect, NetRest, NetWanted
from crumble_common.parking import Lot

if TYPE_CHECKING:
    from crumble.supervisor.services import Event, ServiceProcess
    from crumble.supervisor.supervisor import Supervisor
    from crumble.supervisor.tasks import Future
    from crumble.supervisor.vm import Vm
    from crumble_common.eventloop import Timer
    from crumble_common.messages.net import NetConfig
    from crumble_common.messages.service import Ready

# Deaths within this time, s, that are too many; and without a successor having been ready, one after another.
_WITHIN, _TOO_MANY, _STILLBORN = 60.0, 20, 3
# At rest for so long at most, s: routers advertise themselves every half an hour, and so does a `netd` that begins.
_RESTS = 1800.0
# Sockets kept for one VM: its flows (TCP, UDP), and forwards.
_SOCKETS = 4096
# Of this process, descriptors that are not for this.
_RESERVE = 256


class Line:
    """The processes of one network, one after another. fds: by name, those that each of them gets; they are ours now."""

    def __init__(
        self, host: Supervisor, name: str, config: NetConfig, on_event: Event, fds: dict[str, int]
    ) -> None:
        self._host, self._name, self._config, self._on_event = host, name, config, on_event
        self._fds = {name: os.dup(fd) for name, fd in fds.items()}
        arena = Arena.create(net.ARENA, net.ARENA_VERSION, net.ARENA_SIZE)
        self._fds["arena"] = arena.fd
        self._lot = Lot(_room())
        self._deaths: deque[float] = deque(maxlen=_TOO_MANY)
        self._stillborn = 0
        self._watched = -1
        self.has_lived = False

    def start(self, **given: int) -> ServiceProcess:
        """A process; `given`, its own fds, stay the caller's. Raises CrumbleError."""
        host = self._host
        self._unwatch()
        with self._lot.open() as parking:
            fds = {**self._fds, **given, "parking": parking.fileno()}
            process = host.services.start(
                host.table["netd"], self._name, self._config, self._on_event, fds
            )
        self._watched = self._lot.fileno()
        host.loop.add_fd(self._watched, "parking", self._told)
        self._stillborn += 1
        process.ready.then(self._ready)
        return process

    def _ready(self, outcome: Future[Ready]) -> None:
        with contextlib.suppress(CrumbleError):
            outcome.result()
            self._stillborn, self.has_lived = 0, True

    def succeed(self, error: CrumbleError, **given: int) -> ServiceProcess:
        """As start, after a process has died of `error`; raises it when another one is no use."""
        now = self._host.loop.now()
        self._deaths.append(now)
        often = len(self._deaths) == _TOO_MANY and now - self._deaths[0] < _WITHIN
        if often or self._stillborn >= _STILLBORN:
            raise _too_often(error)
        log.warning("service is replaced", service=self._name, why=error)
        return self.start(**given)

    def rename(self, name: str, config: NetConfig, on_event: Event) -> None:
        """Another VM's from now on; the process there is has been told."""
        self._name, self._config, self._on_event = name, config, on_event

    def close(self) -> None:
        """Nobody needs it any more."""
        self._unwatch()
        self._lot.close()
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _told(self) -> None:
        if not self._lot.receive():
            self._unwatch()

    def _unwatch(self) -> None:
        if self._watched >= 0:
            self._host.loop.remove_fd(self._watched)
            self._watched = -1


class Netd:
    """The `netd` of one VM. fds: see Line.

    awake ──NetIdle──► it is ended ──► at rest ──NetWanted, a request, time──► awake
    """

    def __init__(self, vm: Vm, config: NetConfig, fds: dict[str, int]) -> None:
        self._vm = vm
        self._line = Line(vm.host, f"netd.{vm.name}", config, vm.event, fds)
        self._process: ServiceProcess | None = None  # None at rest
        self._resting: Task[None] | None = None
        self._until: Timer | None = None

    def start(self, front_end: int) -> ServiceProcess:
        """A process, for the front end that is connected to `front_end`, which stays the caller's."""
        self._process = self._line.start(net=front_end)
        return self._process

    def close(self) -> None:
        """Nobody needs it any more."""
        if self._until is not None:
            self._until.cancel()
        self._line.close()

    def heard(self, event: NetIdle | NetWanted) -> None:
        """Its process has nothing to do; or there is something to do for one."""
        if not self._vm.alive:
            return
        if isinstance(event, NetWanted):
            Task(self.awake()).then(logged("network not begun again", self._vm))
        elif self._process is not None and self._resting is None and self._may_rest(self._process):
            resting = self._resting = Task(self._rest(self._process))
            resting.then(self._rested)

    def _may_rest(self, process: ServiceProcess) -> bool:
        vm = self._vm
        saved = vm.saving is None or vm.saving.done
        used = process.busy or vm in vm.host.networks.moving or vm.host.reserve.keeps(vm)
        return vm.state == "running" and saved and self._line.has_lived and not used

    async def _rest(self, process: ServiceProcess) -> None:
        """Ends it: by force, since what it knows is written down."""
        vm = self._vm
        await vm.vmm.request(NetRest())
        if process in vm.services:
            vm.services.remove(process)
        process.stop(0)
        await settled(process.ended)
        self._process = None
        self._until = vm.host.loop.call_later(_RESTS, lambda: self.heard(NetWanted()))

    def _rested(self, done: Future[None]) -> None:
        self._resting = None
        logged("network not at rest", self._vm)(done)

    async def awake(self) -> ServiceProcess:
        """Its process, another one if it was at rest; raises CrumbleError."""
        if self._resting is not None:
            await settled(self._resting)
        if self._process is None:
            if self._until is not None:
                self._until.cancel()
            self._go_on(self._line.start)
        self._vm.check()
        assert self._process is not None
        return self._process

    def hand_over(self, vm: Vm) -> None:
        """It serves `vm` from now on, whose network is of the same kind."""
        self._vm = vm
        self._line.rename(f"netd.{vm.name}", vm.network.netd_config(vm), vm.event)

    def ended(self, process: ServiceProcess, error: CrumbleError) -> bool:
        """A process of the VM has ended; False when that is the VM's end, too."""
        vm = self._vm
        if process.row.name != "netd" or vm.state != "running" or not self._line.has_lived:
            return False  # before that the guest may not have seen its network
        if vm.saving is not None and not vm.saving.done:
            # Pages that are being saved are not to be written by one who does not know of it.
            vm.saving.then(lambda _: self._succeed(process, error))
        elif self._resting is None:
            self._succeed(process, error)
        return True

    def _succeed(self, process: ServiceProcess, error: CrumbleError) -> None:
        """Another one in the place of `process`, which died."""
        if self._vm.alive:
            self._vm.services.remove(process)
            self._go_on(partial(self._line.succeed, error))

    def _go_on(self, begin: Callable[..., ServiceProcess]) -> None:
        """`begin` starts another process. Tells `vmm`."""
        vm = self._vm
        if not vm.alive:
            return
        vmm = vm.service("vmm")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                self._process = begin(net=theirs.fileno())
                vmm.give("net", ours.fileno())
            except CrumbleError as failure:
                vm.fail(failure)
                return
        vmm.request(NetReconnect("net"))
        vm.adopt(self._process)


def _too_often(error: CrumbleError) -> CrumbleError:
    """Why the VM ends, when its `netd` does not stay alive."""
    return InternalError(
        f"The network died too often, at last: {error.message}",
        code="net.died",
        hint=error.hint,
    )


def _room() -> int:
    """Sockets that this process can keep."""
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _SOCKETS if soft < 0 else max(0, min(_SOCKETS, (soft - _RESERVE) // 2))
