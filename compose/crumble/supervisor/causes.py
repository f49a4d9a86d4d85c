"""Why a VM failed: one service's end makes others complain, and what is reported within a moment is
judged together.
"""

from __future__ import annotations

from collections.abc import Callable

from crumble.supervisor.services import ServiceProcess
from crumble_common.errors import CrumbleError, InternalError
from crumble_common.eventloop import EventLoop, Timer
from crumble_common.messages.vm import VmEvent
from crumble_common.vm_faults import fault_of

# What failed within this time is judged together, s.
_SETTLE = 0.2
# What a back end may take to say why it left, when all that is known is that it has, s.
_PATIENCE = 3.0
# `vmm`'s word for that.
_BACK_END_LEFT = "vmm.vhost_user"


class Causes:
    """The failures of one VM's services; `fail` is called, once, with the likeliest cause."""

    def __init__(self, loop: EventLoop, vm: str, fail: Callable[[CrumbleError], None]) -> None:
        self._loop = loop
        self._vm = vm
        self._fail = fail
        self._found: list[tuple[ServiceProcess, CrumbleError]] = []
        self._blamed = False
        self._patience: Timer | None = None

    def service_ended(self, service: ServiceProcess, error: CrumbleError) -> None:
        """A process of the VM is gone."""
        self._add(service, error)
        if self._patience is not None:
            self._patience.cancel()
            self._judge()

    def guest_failed(self, vmm: ServiceProcess, event: VmEvent, dmesg: bool) -> None:
        """`vmm` says that the VM is over. dmesg: the user sees what the kernel prints."""
        self._blamed = event.code == _BACK_END_LEFT
        self._add(vmm, fault_of(event, dmesg=dmesg))

    def _add(self, service: ServiceProcess, error: CrumbleError) -> None:
        self._found.append((service, error))
        if len(self._found) == 1:
            self._loop.call_later(_SETTLE, self._settle)

    def _settle(self) -> None:
        if self._blamed and len(self._found) == 1:
            self._patience = self._loop.call_later(_PATIENCE, self._judge)
        else:
            self._judge()

    def _judge(self) -> None:
        self._patience = None
        service, error = min(self._found, key=lambda item: _rank(*item))
        if isinstance(error, InternalError):
            message = f"The VM {self._vm} failed: {error.message}"
            error = InternalError(message, code=error.code, hint=error.hint, service=service.name)
        self._fail(error)


def _rank(service: ServiceProcess, error: CrumbleError) -> tuple[bool, bool]:
    """Least is the likeliest cause: a killed process before one that complains about another's end."""
    killed = bool(error.detail.get("signal")) or error.code == "service.stuck"
    return (not killed, service.row.name == "vmm" and error.fault == "crumble")
