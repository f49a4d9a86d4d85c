"""What a client may ask of one VM, or tell it, and who answers."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from crumble.supervisor import networks
from crumble.supervisor.clients import Client
from crumble.supervisor.debug import start
from crumble.supervisor.vm import Vm
from crumble_common.errors import UsageError
from crumble_common.messages import debug, vm

# Told to its vmm, without an answer.
EVENTS = (vm.ProcessInput, vm.ProcessCredit, vm.ProcessResize)
# Its vmm's to answer.
_REQUESTS = (
    vm.ProcessSignal,
    vm.FileRead,
    vm.FileWrite,
    vm.Timeline,
    vm.Digest,
    debug.DebugTrace,
    debug.DebugCount,
)


def ask(client: Client, target: Vm, body: Any) -> Coroutine[Any, Any, Any]:
    """The work that a request to a VM is; raises UsageError for what is none."""
    if isinstance(body, vm.ProcessStart):
        return target.start_process(body, client)
    if isinstance(body, vm.Pause | vm.Resume):
        return target.pause(isinstance(body, vm.Pause))
    if isinstance(body, debug.DebugStart):
        return start(target, body)
    if isinstance(body, networks.VM_REQUESTS):
        return target.host.networks.ask(target, body)
    if isinstance(body, _REQUESTS):
        return _ask_vmm(target, body)
    raise UsageError(f"{type(body).wire_type} cannot be asked of a VM.", code="wire.target")


async def _ask_vmm(target: Vm, body: Any) -> Any:
    if isinstance(body, vm.FileRead | vm.FileWrite):
        await target.named()
        return await target.awake().request(body)
    return await target.vmm.request(body)
