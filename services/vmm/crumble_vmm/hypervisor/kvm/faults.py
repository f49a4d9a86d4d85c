"""What KVM's exits say of a guest that cannot go on (Linux, Documentation/virt/kvm/api.rst)."""

from __future__ import annotations

from crumble_native import kvm
from crumble_vmm.hypervisor.base import Exit, ExitReason

# KVM_SYSTEM_EVENT_*: what arm64 and riscv64 guests ask firmware for.
SYSTEM_EVENTS = {
    1: Exit(ExitReason.POWER_OFF, "power-off"),
    2: Exit(ExitReason.RESET, "reset"),
    3: Exit(ExitReason.CRASH, "it says so itself"),
}
# Linux's errno for memory that hardware has found damaged; Python's errno has it not.
EHWPOISON = 133
# KVM_INTERNAL_ERROR_*, but for emulation.
_INTERNAL = {
    2: "exceptions within exceptions",
    3: "an interrupt or exception that it could not deliver",
    4: "an exit of the CPU that it does not know",
}


def fault(stop: kvm.Exit) -> tuple[ExitReason, str]:
    """What happened, and a clause that says it."""
    match stop.reason:
        case kvm.EXIT_SHUTDOWN:
            return ExitReason.TRIPLE_FAULT, "triple fault"
        case kvm.EXIT_EMULATION:
            code = stop.instruction.hex(" ") or "unknown"
            return ExitReason.EMULATION, f"KVM cannot emulate an instruction ({code})"
        case kvm.EXIT_INTERNAL:
            what = _INTERNAL.get(stop.data, "it does not say why")
            numbers = f"internal error {stop.data}, {stop.extra:#x}"
            return ExitReason.INTERNAL, f"KVM failed: {what} ({numbers})"
        case kvm.EXIT_ENTRY:
            return ExitReason.ENTRY, f"the CPU refuses its state (reason {stop.data:#x})"
        case kvm.EXIT_MEMORY:
            lost = "is damaged" if stop.data == EHWPOISON else "is gone"
            address = f" ({stop.address:#x})" if stop.extra else ""
            return ExitReason.MEMORY, f"the host's memory behind the guest's{address} {lost}"
        case kvm.EXIT_HALT:
            return ExitReason.STUCK, "it halted, and nothing can wake it"
        case _:
            return ExitReason.INTERNAL, f"KVM stopped it for reason {stop.data}"
