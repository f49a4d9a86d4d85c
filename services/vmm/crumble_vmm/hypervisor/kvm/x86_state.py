"""All that an x86 vCPU is, as plain values, and a vCPU made of them.

Register groups are the kernel's structures (linux/kvm.h). The order of restoring is theirs, too: the
APIC's base (sregs) before the LAPIC, LAPIC and TSC before the TSC deadline, events last.
"""

from __future__ import annotations

import struct
from typing import Any

from crumble_native import kvm
from crumble_vmm.hypervisor.kvm import cpuid
from crumble_vmm.snapshot.state import foreign

_GROUPS = {
    "mp_state": kvm.MP_STATE,
    "sregs": kvm.SREGS,
    "regs": kvm.REGS,
    "xsave": kvm.XSAVE,
    "xcrs": kvm.XCRS,
    "debugregs": kvm.DEBUGREGS,
    "lapic": kvm.LAPIC,
}
_KEYS = {*_GROUPS, "events", "msrs", "cpuid", "tsc_khz"}
TSC, TSC_DEADLINE = 0x10, 0x6E0
# MTRRs, which KVM's list leaves out: variable, fixed, and their default.
_MTRRS = [*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF]
# struct kvm_lapic_state, LVT timer: its mode; 2: TSC deadline, 1 << 16: masked.
_LVT_TIMER = 0x320
_MODE, _DEADLINE, _MASKED = 3 << 17, 2 << 17, 1 << 16
# What Linux takes for the same frequency (250 ppm), and KVM as well.
_TSC_TOLERANCE = 4000


def get_state(vcpu: kvm.Vcpu, indices: list[int], table: bytes) -> dict[str, Any]:
    """indices: KVM's list of MSRs. table: what CPUID tells the guest."""
    state: dict[str, Any] = {name: vcpu.get(group) for name, group in _GROUPS.items()}
    state["events"] = vcpu.get(kvm.EVENTS)
    state["msrs"] = [list(item) for item in _read_msrs(vcpu, indices + _MTRRS).items()]
    state["cpuid"] = table
    state["tsc_khz"] = vcpu.tsc_khz
    return state


def _read_msrs(vcpu: kvm.Vcpu, indices: list[int]) -> dict[int, int]:
    """Of those that this vCPU has; the TSC first, the deadline last."""
    found: dict[int, int] = {}
    rest = sorted(indices, key=lambda index: (index == TSC_DEADLINE, index != TSC))
    while rest:
        part = vcpu.get_msrs(rest)
        found |= part
        rest = rest[len(part) + 1 :]
    return found


def set_state(
    vcpu: kvm.Vcpu, state: dict[str, Any], supported: list[cpuid.CpuidEntry], told: bytes
) -> None:
    """told: what CPUID tells it now. Raises UsageError "snapshot.foreign" for what this CPU is not, ValueError for what none can be."""
    if state.keys() != _KEYS:
        raise ValueError("not the state of an x86 vCPU")
    try:
        _set_identity(vcpu, state, supported, told)
        for name, group in _GROUPS.items():
            vcpu.set(group, state[name])
        _write_msrs(vcpu, _awake(dict(state["msrs"]), state["lapic"]))
        vcpu.set(kvm.EVENTS, state["events"])
    except (OSError, TypeError, OverflowError, struct.error) as error:
        raise ValueError(f"an x86 vCPU: {error}") from None


def _set_identity(
    vcpu: kvm.Vcpu, state: dict[str, Any], supported: list[cpuid.CpuidEntry], told: bytes
) -> None:
    """The CPU it ran on, as far as a guest can tell."""
    table = cpuid.unpack(state["cpuid"])
    if missing := cpuid.missing(table, supported):
        raise foreign(f"this host's CPU lacks {', '.join(missing)}")
    if state["cpuid"] != told:  # a vCPU that has run takes no other
        vcpu.set_cpuid(state["cpuid"])
    wanted, here = state["tsc_khz"], vcpu.tsc_khz
    if abs(wanted - here) * _TSC_TOLERANCE > here:
        try:
            vcpu.tsc_khz = wanted
        except OSError:
            raise foreign(
                f"its time-stamp counter runs at {wanted} kHz, this CPU's at {here}"
            ) from None


def _awake(msrs: dict[int, int], lapic: bytes) -> dict[int, int]:
    """A deadline that has passed reads as none, also when its interrupt is not there yet: so it comes now."""
    timer = int.from_bytes(lapic[_LVT_TIMER : _LVT_TIMER + 4], "little")
    waits = timer & (_MODE | _MASKED) == _DEADLINE
    if waits and msrs.get(TSC_DEADLINE) == 0:
        msrs[TSC_DEADLINE] = max(1, msrs.get(TSC, 1))
    return msrs


def _write_msrs(vcpu: kvm.Vcpu, msrs: dict[int, int]) -> None:
    """One that cannot be written need not be when it has the value, or says nothing."""
    rest = list(msrs.items())
    while rest:
        taken = vcpu.try_msrs(dict(rest))
        if taken < len(rest):
            index, value = rest[taken]
            if value != 0 and vcpu.get_msrs([index]).get(index) != value:
                raise ValueError(f"MSR {index:#x} cannot be {value:#x}")
        rest = rest[taken + 1 :]
