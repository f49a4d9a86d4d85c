"""How a guest is asked to power off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crumble.supervisor.tasks import Future, limited
from crumble_common import log
from crumble_common.errors import CrumbleError, GuestError
from crumble_common.messages.vm import Resume, Shutdown

if TYPE_CHECKING:
    from crumble.supervisor.services import ServiceProcess
    from crumble.supervisor.vm import Vm


async def power_off(vm: Vm, vmm: ServiceProcess, off: Future[None], grace: float) -> None:
    """Asks the guest, and waits until `off` is resolved, it cannot do it, or `grace` seconds are over."""
    if vm.paused:
        vmm.request(Resume())
    vmm.ended.then(lambda _: off.set(None))
    vmm.request(Shutdown(grace)).then(lambda reply: _give_up(reply, off))
    try:
        await limited(vm.host.loop, off, grace, late)
    except CrumbleError as error:
        log.info("guest did not power off", vm=vm.name, why=error)


def _give_up(reply: Future[Any], off: Future[None]) -> None:
    try:
        reply.result()
    except CrumbleError:
        off.set(None)  # the agent cannot do it


def late() -> CrumbleError:
    """What it is when nobody waits any longer."""
    return GuestError("The guest did not power off in time.", code="guest.late")
