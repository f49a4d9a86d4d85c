"""How a machine's end is told."""

from __future__ import annotations

from collections.abc import Callable

from crumble_common.errors import GuestError
from crumble_common.eventloop import EventLoop, Timer
from crumble_common.messages.vm import VmEvent
from crumble_vmm.console_log import ConsoleLog
from crumble_vmm.guest.protocol import INIT_FAILED
from crumble_vmm.hypervisor.base import Exit, ExitReason

# A kernel that says it panicked is believed when the agent is silent for so long, s.
_PANIC_LIMIT = 5.0
# What a vCPU came back for, as VmEvent's code, and as a sentence's beginning.
_CRASHES = {
    ExitReason.TRIPLE_FAULT: ("guest.triple_fault", "The guest crashed"),
    ExitReason.STUCK: ("guest.halted", "The guest stopped"),
    ExitReason.EMULATION: ("guest.emulation", "The guest cannot go on"),
    ExitReason.INTERNAL: ("host.kvm", "The guest cannot go on"),
    ExitReason.ENTRY: ("host.kvm_entry", "The guest cannot go on"),
    ExitReason.WATCHDOG: ("guest.watchdog", "The guest's watchdog ended it"),
    ExitReason.MEMORY: ("host.memory", "The guest cannot go on"),
}


def panic(name: str, console: ConsoleLog) -> VmEvent:
    """The kernel of VM `name` panicked, in its own words."""
    why = console.panic().rstrip(".") or "it does not say why"
    return VmEvent(name, "panic", f"The guest's kernel panicked: {why}.")


def agent_ended() -> GuestError:
    """The guest is there, and cannot be talked to."""
    text = "The guest's agent ended."
    return GuestError(text, code="guest.agent", hint="Start the VM again.")


class PanicDoubt:
    """The console says that the kernel panicked and stays there: it may be text that a program wrote.

    believed: called when nothing has ended the doubt, an answer of the agent's, for _PANIC_LIMIT.
    """

    def __init__(self, loop: EventLoop, believed: Callable[[], None]) -> None:
        self._loop = loop
        self._believed = believed
        self._timer: Timer | None = None

    def begin(self) -> bool:
        """False when there is a doubt already."""
        if self._timer is not None:
            return False
        self._timer = self._loop.call_later(_PANIC_LIMIT, self._believed)
        return True

    def end(self) -> None:
        """The guest lives."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def ending(name: str, stop: Exit, console: ConsoleLog) -> VmEvent:
    """A vCPU of VM `name` came back for good."""
    if console.panic():
        return panic(name, console)
    if failed := console.after(INIT_FAILED):
        return VmEvent(name, "failed", f"The guest's init failed: {failed}")
    if stop.reason is ExitReason.POWER_OFF:
        return VmEvent(name, "poweroff", "The guest powered off.")
    if stop.reason is ExitReason.RESET:
        return VmEvent(name, "reset", f"The guest asked for a {stop.detail}.")
    if stop.reason is ExitReason.FAILED:
        return VmEvent(name, "failed", f"The VM's monitor failed: {stop.detail}.", "vm.failed")
    code, what = _CRASHES.get(stop.reason, ("guest.crash", "The guest crashed"))
    return VmEvent(name, "crash", f"{what}: {stop.detail}.", code)


def no_agent(name: str, limit: float) -> VmEvent:
    """The agent of VM `name` was not there after `limit` seconds."""
    return VmEvent(name, "failed", f"The guest's agent did not answer within {limit:g} s.")
