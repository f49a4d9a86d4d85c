"""How a machine's end is told."""

from __future__ import annotations

from crumble_common.messages.vm import VmEvent
from crumble_vmm.console_log import ConsoleLog
from crumble_vmm.guest.protocol import INIT_FAILED
from crumble_vmm.hypervisor.base import Exit, ExitReason


def panic(name: str, console: ConsoleLog) -> VmEvent:
    """The kernel of VM `name` panicked, in its own words."""
    why = console.panic().rstrip(".") or "it does not say why"
    return VmEvent(name, "panic", f"The guest's kernel panicked: {why}.")


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
    return VmEvent(name, "crash", f"The guest crashed: {stop.detail}.")


def no_agent(name: str, limit: float) -> VmEvent:
    """The agent of VM `name` was not there after `limit` seconds."""
    return VmEvent(name, "failed", f"The guest's agent did not answer within {limit:g} s.")
