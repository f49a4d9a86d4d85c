"""`crumble network connect` and `disconnect`: a running VM's one interface moves from one network to another.

Its connections are reset, its rings are taken back and its link goes down; then the old network forgets it, and only then the new one takes its
rings, its forwards and the ports of the host that it may reach. The guest's agent tells it who it is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from crumble.supervisor.capture import settled
from crumble.supervisor.network import Network
from crumble.supervisor.succession import Netd
from crumble.supervisor.tasks import limited
from crumble_common import log
from crumble_common.errors import CrumbleError, GuestError, UsageError
from crumble_common.messages import net
from crumble_common.messages.client import VmInfo
from crumble_common.messages.vm import NetDisconnect, NetReconnect

if TYPE_CHECKING:
    from crumble.supervisor.vm import Vm

_GRACE = 1.0
# What a guest's agent may take to set an address, s.
_TOLD = 20.0
_SOCKET = "net"


async def connect(vm: Vm, name: str) -> VmInfo:
    """Moves it to `name`; raises CrumbleError: before anything has changed, or with the VM disconnected."""
    with _moving(vm):
        old = vm.network
        if old.connected and old.kind == name:
            raise UsageError(f"The VM {vm.name} is on {name} already.", code="vm.network")
        if name == "none":
            raise UsageError(
                "none is no network to connect to.",
                code="vm.network",
                hint=f"`crumble network disconnect {old.kind} {vm.name}` takes it off its network.",
            )
        new = Network(name, vm)
        if old.connected:
            await _leave(vm)
        new.connected, new.kept = False, old.kept
        vm.network = new
        vm.request = dataclasses.replace(vm.request, network=name)  # its forks', too
        await _join(vm)
        log.info("moved", vm=vm.name, network=name)
        await _take_along(vm)
        return vm.info()


async def disconnect(vm: Vm, name: str) -> VmInfo:
    """Takes it off the network `name`; raises UsageError when it is on another one."""
    with _moving(vm):
        if not vm.network.connected or vm.network.kind != name:
            raise UsageError(f"The VM {vm.name} is not on {name}.", code="vm.network")
        await _leave(vm)
        return vm.info()


@contextlib.contextmanager
def _moving(vm: Vm) -> Iterator[None]:
    """One at a time, of a VM that runs and has an interface."""
    vm.awake()
    moving = vm.host.networks.moving
    if not vm.network.on:
        raise UsageError(
            f"The VM {vm.name} has no network interface.",
            code="vm.network",
            hint="It gets one when it is started without --network none.",
        )
    if vm.state != "running" or vm in moving:
        what = "is on its way to another network" if vm in moving else "is still starting"
        raise UsageError(f"The VM {vm.name} {what}.", code="vm.busy", hint="Try again in a moment.")
    moving.add(vm)
    try:
        yield
    finally:
        moving.discard(vm)


async def _leave(vm: Vm) -> None:
    """Off its network, which then knows nothing of it any more."""
    while vm.saving is not None and not vm.saving.done:
        await settled(vm.saving)  # who writes its memory meanwhile must know of the capture
    process, guest = await vm.host.networks.of(vm)
    vm.host.fds.close(vm.id, "capture")
    state: net.NetState = await process.request(net.NetInspect(guest))
    # As long as it has the addresses and the rings that its connections are of.
    await process.request(net.NetReset(guest))
    vm.network.connected, vm.network.kept = False, state.guests[0]
    await vm.vmm.request(NetDisconnect())
    if vm.network.named is not None:
        await vm.host.networks.leave(vm)
    elif vm.netd is not None:
        netd, vm.netd = vm.netd, None
        vm.services.remove(process)
        process.stop(_GRACE)
        await settled(process.ended)
        netd.close()


async def _join(vm: Vm) -> None:
    """On its network, without forwards as yet: one that cannot be is not the VM's end."""
    vmm, network = vm.vmm, vm.network
    ours, theirs = socket.socketpair()
    with ours, theirs:
        held = vm.host.networks.fds(vm, theirs.fileno())
        if network.named is None:
            bare = dataclasses.replace(network.netd_config(vm), forwards=[], capture_fd="")
            front_end = held.pop(_SOCKET)
            vm.netd = Netd(vm, bare, held)
            process = vm.netd.start(front_end)
            for fd in (front_end, *held.values()):
                os.close(fd)
            vm.adopt(process)
            await process.ready
        else:
            await vm.host.networks.join(vm, held, _bare_port)
        vmm.give(_SOCKET, ours.fileno())
    network.connected = True
    told = vmm.request(NetReconnect(_SOCKET, network.device()))
    await limited(vm.host.loop, told, _TOLD, lambda: _untold(vm))


def _untold(vm: Vm) -> CrumbleError:
    return GuestError(
        f"The VM {vm.name} is on {vm.network.kind}, but its agent has not answered within {_TOLD:g} s.",
        code="guest.late",
        hint="It will have its address when it does.",
    )


def _bare_port(vm: Vm, names: Mapping[str, str]) -> net.PortAdd:
    return dataclasses.replace(vm.network.port(vm, names), forwards=[], capture_fd="")


async def _take_along(vm: Vm) -> None:
    """What it had on the network before; raises CrumbleError for the first that cannot be had."""
    process, guest = await vm.host.networks.of(vm)
    kept, problems = vm.network.kept, []
    assert kept is not None
    for service in kept.services:
        await process.request(
            net.ServiceAdd(service.port, service.host_port, service.protocol, guest)
        )
    for forward in kept.forwards:
        try:
            await process.request(net.ForwardAdd(forward, guest))
        except CrumbleError as error:
            problems.append(error)
    if problems:
        first = problems[0]
        raise UsageError(
            f"The VM {vm.name} is on {vm.network.kind}, but without all its ports: {first.message}",
            code=first.code,
            hint=f"`crumble port {vm.name} add` adds others.",
        )
