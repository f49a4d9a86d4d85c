"""What a VM can die of: under which code, whose fault that is, and what to do about it.

A VmEvent of kind "panic", "crash" or "failed" has one of these codes, or that of another error.
"""

from __future__ import annotations

from crumble_common.errors import CrumbleError, GuestError, HostError, InternalError
from crumble_common.messages.vm import VmEvent

SEE_DMESG = "Run with --dmesg to see what its kernel printed."
_SEE_HOST = "See the host's kernel log (`dmesg` as root)."
# The code → whose fault, what to do; what a guest's kernel printed is worth reading in addition.
_FAULTS: dict[str, tuple[type[CrumbleError], str]] = {
    "guest.panic": (GuestError, ""),
    "guest.crash": (GuestError, ""),
    "guest.triple_fault": (
        GuestError,
        "Its kernel lost its page or interrupt tables, or reboots this way: try another --kernel.",
    ),
    "guest.halted": (GuestError, "Its kernel stopped on purpose: try another --kernel."),
    "guest.emulation": (
        GuestError,
        "Try a newer host kernel, another --kernel, or --hv soft; report the instruction's bytes.",
    ),
    "guest.watchdog": (
        GuestError,
        "Who feeds /dev/watchdog, or the whole guest, hung: look at what it did, or let it ask for longer.",
    ),
    "host.kvm": (HostError, f"{_SEE_HOST} Try a newer host kernel, or --hv soft."),
    "host.kvm_entry": (
        HostError,
        f"If it went on from a snapshot, try --no-snapshot. {_SEE_HOST}",
    ),
    "host.memory": (
        HostError,
        f"Look whether /dev/shm and the store's disk are full. {_SEE_HOST}",
    ),
    "vm.failed": (InternalError, ""),
}


def fault_of(event: VmEvent, *, dmesg: bool = True) -> CrumbleError:
    """The error that a "panic", "crash" or "failed" means. dmesg: what the kernel prints was shown."""
    code = event.code
    if code not in _FAULTS:
        code = "vm.failed" if event.kind == "failed" else f"guest.{event.kind}"
    kind, hint = _FAULTS[code]
    if kind is GuestError and not dmesg:
        hint = f"{hint} {SEE_DMESG}".strip()
    return kind(event.detail or f"The VM ended: {event.kind}.", code=code, hint=hint)


def memory_lost(process: str, *, guest: bool) -> HostError:
    """`process` was killed by SIGBUS: it touched memory that the host no longer has. guest: it runs one. That is
    told as a vCPU that did the same: who touches the guest's memory first is chance.
    """
    if guest:
        lost = "the host's memory behind the guest's is gone"
        what = f"The guest cannot go on: {lost} ({process} got a SIGBUS)."
    else:
        what = (
            f"{process} touched memory, or a file that it maps, which the host has lost (SIGBUS)."
        )
    hint = _FAULTS["host.memory"][1]
    return HostError(what, code="host.memory", hint=hint, signal=7)
