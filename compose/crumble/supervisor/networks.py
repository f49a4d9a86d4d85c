"""The networks that VMs share: a `netd` each, from the first VM on it to the last; and what is asked of any."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from crumble.networks.store import NetworkStore
from crumble.supervisor.capture import logged, settled
from crumble.supervisor.network import config_of
from crumble.supervisor.succession import Line
from crumble.supervisor.tasks import Future, Task
from crumble_common import log
from crumble_common.errors import CrumbleError, UsageError
from crumble_common.messages import client as messages
from crumble_common.messages import net
from crumble_common.messages.vm import NetReconnect

if TYPE_CHECKING:
    from crumble.supervisor.services import ServiceProcess
    from crumble.supervisor.supervisor import Supervisor
    from crumble.supervisor.vm import Vm

# What a client may ask of a VM's network, or of a named one.
VM_REQUESTS = (
    net.ForwardAdd,
    net.ForwardRemove,
    net.NetInspect,
    net.ServiceAdd,
    net.CaptureStop,
    messages.NetCapture,
)
_GRACE = 1.0


class Networks:
    """One supervisor's. Everything is called in its loop. moving: VMs on the way from one to another."""

    def __init__(self, host: Supervisor) -> None:
        self.moving: set[Vm] = set()
        self._host = host
        self._running: dict[str, ServiceProcess] = {}
        self._lines: dict[str, Line] = {}
        self._joined: set[Vm] = set()
        self._members: dict[str, set[Vm]] = {}
        self._last: dict[str, Future[None]] = {}

    def attach(self, vm: Vm, fds: Mapping[str, int]) -> None:
        """Connects a VM to its network, soon; a failure is the VM's. The fds stay the caller's."""
        held = {name: os.dup(fd) for name, fd in fds.items()}
        Task(self.join(vm, held, vm.network.port)).then(lambda done: _fail(vm, done))

    async def join(
        self, vm: Vm, held: dict[str, int], port: Callable[[Vm, Mapping[str, str]], net.PortAdd]
    ) -> None:
        """Connects a VM to its network, which is a named one; `held` are ours. Raises CrumbleError.

        One after the other: an inbox holds but a few fds.
        """
        name = vm.network.kind
        self._members.setdefault(name, set()).add(vm)
        vm.ended.then(lambda _: self._left(vm, name))
        try:
            await self._add(vm, held, port)
            self._joined.add(vm)
        except BaseException:
            self._left(vm, name)
            raise

    async def _add(
        self, vm: Vm, held: dict[str, int], port: Callable[[Vm, Mapping[str, str]], net.PortAdd]
    ) -> None:
        name = vm.network.kind
        before, mine = self._last.get(name), Future[None]()
        self._last[name] = mine
        try:
            if before is not None:
                await before
            process = self._process(vm)
            names = {fd_name: f"{fd_name}.{vm.id}" for fd_name in held}
            for fd_name, fd in held.items():
                process.give(names[fd_name], fd)
            await process.request(port(vm, names))
        finally:
            mine.set(None)
            for fd in held.values():
                os.close(fd)

    def _process(self, vm: Vm) -> ServiceProcess:
        name = vm.network.kind
        if name not in self._running:
            assert vm.network.named is not None
            config = config_of(vm.network.named)
            line = self._lines[name] = Line(self._host, f"net.{name}", config, _heard, {})
            self._watch(name, line.start())
        return self._running[name]

    def _watch(self, name: str, process: ServiceProcess) -> None:
        self._running[name] = process
        process.ended.then(lambda reason: self._ended(name, process, reason.result()))

    def _ended(self, name: str, process: ServiceProcess, error: CrumbleError) -> None:
        """Another one takes its place, and everybody who was on it comes back."""
        if self._running.get(name) is not process:
            return
        members = tuple(self._members.get(name, ()))
        lost = [vm for vm in members if vm.state != "running"]  # it may not have seen its network
        try:
            self._watch(name, self._lines[name].succeed(error))
        except CrumbleError as failure:
            del self._running[name]
            self._lines.pop(name).close()
            lost, error = list(members), failure
        for vm in lost:
            vm.fail(error)
        for vm in self._joined.intersection(members).difference(lost):
            Task(self._rejoin(vm, name)).then(logged("network not taken over", vm))

    async def _rejoin(self, vm: Vm, name: str) -> None:
        while vm.saving is not None and not vm.saving.done:
            await settled(vm.saving)  # who writes its memory meanwhile must know of the capture
        if vm not in self._members.get(name, ()) or not vm.alive:
            return
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                held = self.fds(vm, theirs.fileno())
            await self._add(vm, held, vm.network.port)
            vm.vmm.give("net", ours.fileno())
        await vm.vmm.request(NetReconnect("net"))

    def fds(self, vm: Vm, front_end: int) -> dict[str, int]:
        """What a `netd` gets of a VM, for the caller to close."""
        kept, names = self._host.fds.of(vm.id), self._host.table["netd"].fds
        given = {name: fd for name, fd in kept.items() if name in names}
        return {name: os.dup(fd) for name, fd in {**given, "net": front_end}.items()}

    async def listening(self, vm: Vm) -> None:
        """Waits until its forwards are there; raises CrumbleError when they cannot be."""
        if vm.network.named is None:
            await (await self.of(vm))[0].ready
        else:
            await self._last[vm.network.kind]
        vm.check()

    async def leave(self, vm: Vm) -> None:
        """Takes a VM, which has let go of it, off its named network."""
        name = vm.network.kind
        with contextlib.suppress(CrumbleError):  # it has noticed, or is gone itself
            await self._running[name].request(net.PortRemove(vm.name))
        self._left(vm, name)

    def _left(self, vm: Vm, name: str) -> None:
        members = self._members.get(name, set())
        if vm not in members:
            return
        members.discard(vm)
        self._joined.discard(vm)
        process = self._running.get(name)
        if members:
            if process is not None:
                process.request(
                    net.PortRemove(vm.name)
                )  # it may be a successor, and wait for this one
            return
        del self._members[name]
        if process is not None:
            del self._running[name]
            line = self._lines.pop(name)
            process.stop(_GRACE)
            process.ended.then(lambda _: line.close())

    async def of(self, vm: Vm) -> tuple[ServiceProcess, str]:
        """The process that serves a VM's network, begun again when it is at rest, and the VM's name there; CrumbleError
        when there is none.
        """
        if not vm.network.on:
            raise UsageError(
                f"The VM {vm.name} has no network.",
                code="vm.network",
                hint="Leave out --network none to give it one.",
            )
        if not vm.network.connected:
            raise UsageError(
                f"The VM {vm.name} is not connected to a network.",
                code="vm.network",
                hint=f"`crumble network connect NETWORK {vm.name}` connects it.",
            )
        if vm.network.named is None:
            return await vm.netd.awake() if vm.netd else vm.service("netd"), ""
        if vm.network.kind not in self._running:
            raise UsageError(f"The VM {vm.name} is not running.", code="vm.not_running")
        return self._running[vm.network.kind], vm.name

    async def sever(self, vm: Vm, connections: bytes) -> None:
        """What a VM has open that went on from a snapshot ends in it."""
        if vm.network.named is not None:
            await self._last[vm.network.kind]  # it is being attached
        process, guest = await self.of(vm)
        await process.ready
        await process.request(net.NetSever(connections, guest))

    async def ask(self, vm: Vm, body: Any) -> Any:
        """A client's request about one VM's network: VM_REQUESTS."""
        vm.check()
        process, guest = await self.of(vm)
        if isinstance(body, messages.NetCapture):
            body = self._capture(process, vm, body)
        return await process.request(dataclasses.replace(body, guest=guest))

    @staticmethod
    def _capture(process: ServiceProcess, vm: Vm, wanted: messages.NetCapture) -> net.CaptureStart:
        with opened(wanted.path) as fd:
            process.give(f"pcap.{vm.id}", fd)
        return net.CaptureStart(f"pcap.{vm.id}", snaplen=wanted.snaplen)

    async def inspect(self, name: str) -> net.NetState:
        """A network as it is now, without guests when nobody is on it; UsageError for an unknown one."""
        NetworkStore().get(name)
        if name not in self._running:
            return net.NetState([], [], {})
        state: net.NetState = await self._running[name].request(net.NetInspect())
        return state

    def remove(self, name: str) -> None:
        """Removes a definition; UsageError while somebody is on it."""
        if members := self._members.get(name):
            raise UsageError(
                f"The network {name} is used by {', '.join(sorted(vm.name for vm in members))}.",
                code="network.used",
                hint="Stop them first.",
            )
        NetworkStore().remove(name)


class opened:  # noqa: N801  reads as a call
    """The file or pipe of a packet capture, open while it is handed over; UsageError when it cannot be."""

    def __init__(self, path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self.fd = os.open(path, flags, 0o600)  # a pipe that nobody reads is refused
        except OSError as error:
            raise UsageError(
                f"Cannot write {path}: {error.strerror}.", code="net.capture"
            ) from error

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _heard(event: Any) -> None:
    log.warning("unexpected event of a network", type=event.wire_type)


def _fail(vm: Vm, done: Future[None]) -> None:
    try:
        done.result()
    except CrumbleError as error:
        vm.fail(error)
