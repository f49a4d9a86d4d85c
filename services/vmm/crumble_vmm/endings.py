"""How a machine's end is told."""

from __future__ import annotations

from crumble_common.messages.vm import VmEvent
from crumble_vmm.hypervisor.base import Exit, ExitReason


def ending(name: str, stop: Exit) -> VmEvent:
    """A vCPU of VM `name` came back for good."""
    if stop.reason is ExitReason.POWER_OFF:
        return VmEvent(name, "poweroff", "The guest powered off.")
    if stop.reason is ExitReason.RESET:
        return VmEvent(name, "reset", f"The guest asked for a {stop.detail}.")
    return VmEvent(name, "crash", f"The guest crashed: {stop.detail}.")
