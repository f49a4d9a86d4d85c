"""A VM that has gone on from its boot snapshot before anybody asks for it: the next `crumble run` finds it running.

There is one, like the VM that was started last; it has a name that nobody sees, and becomes the VM that is asked for
by being renamed. Who wants more than what a boot snapshot depends on (ports, rules, a capture of packets, a network with
a name) gets a new one. $CRUMBLE_RESERVE=0: none is made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from typing import TYPE_CHECKING, Any

from crumble.supervisor import limits, recipe
from crumble.supervisor.network import NETWORKS, Network
from crumble.supervisor.rehearsal import rehearse
from crumble.supervisor.tasks import Cancelled, Task
from crumble.supervisor.vm import Vm
from crumble_common import log
from crumble_common.errors import CrumbleError
from crumble_common.messages.net import NetPolicy, NetRename
from crumble_common.messages.vm import Rename

if TYPE_CHECKING:
    from crumble.supervisor.supervisor import Supervisor
    from crumble_common.eventloop import Timer

# Made so long after a VM was started, or has ended, s: one that has just started needs the processor itself.
_AFTER_START, _AFTER_END = 1.0, 0.01
# Ended when nobody has started a VM for so long, s.
_KEPT = 300.0
# Memory of this machine that must be there beside what the VM could take, bytes.
_SPARE_MEMORY = 1 << 30


class _Nobody:
    """Whose a VM is that nobody has asked for."""

    def deliver(self, event: Any, source: str) -> None:
        """Nobody listens."""


class Reserve:
    """One supervisor's. Everything is called in its loop."""

    def __init__(self, host: Supervisor) -> None:
        self._host = host
        self._on = host.instance.daemon and os.environ.get("CRUMBLE_RESERVE", "1") != "0"
        self._like: Vm | None = None
        self._vm: Vm | None = None
        self._about: object = None
        self._numbers = itertools.count(1)
        self._timer: Timer | None = None
        self._expiry: Timer | None = None

    def started(self, vm: Vm) -> None:
        """A VM runs: there is soon to be another one like it."""
        if self._on and vm.boot_key and vm.origin is not None and vm.network.kind in NETWORKS:
            self._like = vm
            self._later(_AFTER_START)
            if self._expiry is not None:
                self._expiry.cancel()
            self._expiry = self._host.loop.call_later(_KEPT, self._expired)

    def ended(self) -> None:
        """A VM has ended: now there is time."""
        if self._timer is not None:
            self._later(_AFTER_END)

    def _later(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._host.loop.call_later(seconds, self._due)

    def _due(self) -> None:
        self._timer = None
        like = self._like
        if like is None or (self._vm is not None and self._vm.boot_key == like.boot_key):
            return
        self.drop()
        if limits.available_memory() > like.memory + _SPARE_MEMORY:
            Task(self._make(like))

    def _expired(self) -> None:
        self._like = None
        self.drop()

    def keeps(self, vm: Vm) -> bool:
        """Whether it is the one that waits."""
        return vm is self._vm

    def drop(self) -> None:
        """None is wanted at the moment."""
        vm, self._vm = self._vm, None
        if vm is not None:
            vm.stop(0)

    async def close(self) -> None:
        """None is made any more."""
        self._on, self._like = False, None
        for timer in (self._timer, self._expiry):
            if timer is not None:
                timer.cancel()
        vm = self._vm
        if vm is not None:
            await vm.stop(0)

    async def _make(self, like: Vm) -> None:
        """Never fails."""
        vm = Vm(self._host, f"reserve~{next(self._numbers)}", _plain(like), _Nobody())
        vm.image, vm.boot_key, vm.backend = like.image, like.boot_key, like.backend
        origin = self._host.captures.booted(vm)
        if origin is None:
            vm.log.remove()
            return
        # Names for the guest's files to begin with: those that it has.
        vm.hostname = origin.about.hostname
        vm.go_on_from(origin)
        self._vm, self._about = vm, origin.about
        vm.ended.then(lambda _: self._gone(vm))
        vm.booting = Task(recipe.boot(vm, lambda _: None))
        try:
            await vm.booting
        except (CrumbleError, Cancelled, OSError) as error:
            log.info("no VM in reserve", why=error)
            vm.stop(0)
            return
        _let_go(vm)
        if self._vm is vm:
            await rehearse(vm)

    def _gone(self, vm: Vm) -> None:
        vm.log.remove()
        if self._vm is vm:
            self._vm = None

    async def take(self, vm: Vm) -> bool:
        """Makes the VM in reserve be `vm`, which is to go on from a boot snapshot; False when there is none for it."""
        other = self._vm
        if other is None or other is vm or other.booting is None or not self._serves(vm, other):
            return False
        self._vm, renamed = None, False
        try:
            with contextlib.suppress(CrumbleError, OSError):
                await other.booting
                await _rename(other, vm)
                renamed = True
        except BaseException:
            other.stop(0)
            raise
        if not renamed or other.state != "running":
            other.stop(0)
            return False
        _become(vm, other)
        return True

    def _serves(self, vm: Vm, other: Vm) -> bool:
        request, origin = vm.request, vm.origin
        same = vm.boot_key == other.boot_key and origin is not None and origin.about == self._about
        more = request.publish or request.capture or request.policy != NetPolicy()
        return same and not more and request.network == other.request.network


def _plain(like: Vm) -> Any:
    """A request for a VM with the same boot, and nothing beside."""
    return dataclasses.replace(
        like.request, name="", hostname="", detach=False, main=None, operation="", publish=[], policy=NetPolicy(),
        capture="",
    )  # fmt: skip


async def _rename(other: Vm, vm: Vm) -> None:
    """Its processes answer to `vm`'s name; raises CrumbleError when one is dead, which nobody may have noticed yet."""
    asked = [other.vmm.request(Rename(vm.name, vm.hostname))]
    if other.netd is not None:
        netd = await other.netd.awake()
        asked.append(netd.request(NetRename([vm.name, vm.hostname])))
    for answer in asked:
        await answer


def _let_go(vm: Vm) -> None:
    """Its snapshot may be removed, though its processes have mapped it."""
    if vm.origin is not None:
        vm.origin.release()
        vm.origin = None


def _become(vm: Vm, other: Vm) -> None:
    """`other`'s processes are `vm`'s from now on, and what is kept for them; nothing is left of `other`."""
    vm.id, vm.hypervisor, vm.state = other.id, other.hypervisor, "running"
    vm.network = Network(vm.network.kind, vm)  # its MAC is the id's
    services, other.services, other.state = other.services, [], "stopped"
    vm.netd, other.netd = other.netd, None
    for service in services:
        service.rename(f"{service.row.name}.{vm.name}", vm.event)
        vm.adopt(service)
    if vm.netd is not None:
        vm.netd.hand_over(vm)
    _let_go(other)
    other.log.remove()
    vm.agent.set(None)
    log.info("taken from the reserve", vm=vm.name)
