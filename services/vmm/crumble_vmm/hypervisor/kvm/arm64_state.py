"""What a vCPU and the GIC are on arm64, in plain values, for snapshots.

A vCPU is every register KVM lists for it, among them what its ID registers say: a host whose CPU cannot be
that one refuses. The GIC: Linux, Documentation/virt/kvm/devices/arm-vgic*.rst; registers: Arm IHI 0069 and,
of version 2, IHI 0048.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from crumble_native import kvm
from crumble_vmm.boot.tree_arm64 import mpidr

# KVM_DEV_ARM_VGIC_GRP_*
_DISTRIBUTOR, _CONTROL, _REDISTRIBUTOR, _CPU_INTERFACE, _LEVELS, _ITS = 1, 4, 5, 6, 7, 8
# KVM_DEV_ARM_ITS_SAVE_TABLES, KVM_DEV_ARM_ITS_RESTORE_TABLES, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES
_SAVE_TABLES, _RESTORE_TABLES, _SAVE_PENDING = 1, 2, 3
_PRIVATE = 32
# (first register, bits of each interrupt)
_BANKS = ((0x80, 1), (0x100, 1), (0x200, 1), (0x300, 1), (0x400, 8), (0xC00, 2))
_ROUTES = 0x6000
_SGI_FRAME = 0x1_0000
# Of a redistributor, halves: GICR_PROPBASER, GICR_PENDBASER, GICR_CTLR, which lets LPIs in. Of the ITS:
# GITS_IIDR, GITS_CBASER, GITS_CREADR, GITS_CWRITER, GITS_BASER<n>; and, after its tables, GITS_CTLR.
_LPI = (0x70, 0x74, 0x78, 0x7C, 0x00)
_ITS_REGISTERS = (0x4, 0x80, 0x90, 0x88, *(0x100 + 8 * number for number in range(8)))
_ITS_CONTROL = 0
# Of version 2. GICD_IIDR comes first, which lets groups be set. GICC: CTLR, PMR, BPR, ABPR, APR0 to 3.
_V2_CPU_INTERFACE = 2
_IIDR, _TARGETS, _SOFTWARE_PENDING = 0x8, (0x800, 8), range(0xF20, 0xF30, 4)
_V2_INTERFACE = (0x00, 0x04, 0x08, 0x1C, 0xD0, 0xD4, 0xD8, 0xDC)
# op0, op1, CRn, CRm, op2 of ICC_*: SRE, PMR, BPR0, BPR1, AP0R0, AP1R0, CTLR, IGRPEN0, IGRPEN1
_INTERFACE = (
    (12, 12, 5), (4, 6, 0), (12, 8, 3), (12, 12, 3), (12, 8, 4), (12, 9, 0), (12, 12, 4), (12, 12, 6),
    (12, 12, 7),
)  # fmt: skip


def get_cpu(vcpu: kvm.Vcpu) -> dict[str, Any]:
    """Registers by their KVM_REG_*, in KVM's order; whether it is on."""
    registers = [[number, vcpu.get_register(number)] for number in vcpu.register_list()]
    return {"registers": registers, "mp_state": vcpu.get(kvm.MP_STATE)}


def set_cpu(vcpu: kvm.Vcpu, state: dict[str, Any]) -> None:
    """Sets what get_cpu gave; ValueError for what this CPU cannot be."""
    try:
        for number, data in state["registers"]:
            if vcpu.get_register(number) != data:
                vcpu.set_register(number, data)
        vcpu.set(kvm.MP_STATE, state["mp_state"])
    except (OSError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"vCPU {vcpu.index}: {error}") from None


def _registers(lines: int, cpus: int) -> Iterator[tuple[int, int]]:
    """(group, attribute) of all that a GICv3 without LPIs is; `lines` shared ones."""
    yield _DISTRIBUTOR, 0
    count = _PRIVATE + lines
    for first, bits in _BANKS:
        for number in range(_PRIVATE * bits // 32, count * bits // 32):
            yield _DISTRIBUTOR, first + 4 * number
    for number in range(2 * _PRIVATE, 2 * count):
        yield _DISTRIBUTOR, _ROUTES + 4 * number
    for index in range(cpus):
        yield from _private(mpidr(index) << 32)
    for number in range(_PRIVATE, count, 32):
        yield _LEVELS, number


def _private(cpu: int) -> Iterator[tuple[int, int]]:
    """Those of one CPU."""
    yield _REDISTRIBUTOR, cpu | 0x14
    for first, bits in _BANKS:
        for number in range(_PRIVATE * bits // 32):
            yield _REDISTRIBUTOR, cpu | _SGI_FRAME + first + 4 * number
    for crn, crm, op2 in _INTERFACE:
        yield _CPU_INTERFACE, cpu | 3 << 14 | crn << 7 | crm << 3 | op2
    yield _LEVELS, cpu


def _messages(cpus: int) -> Iterator[tuple[int, int]]:
    """What there is with an ITS, up to its tables (arm-vgic-its.rst, "ITS Restore Sequence")."""
    for index in range(cpus):
        yield from ((_REDISTRIBUTOR, mpidr(index) << 32 | offset) for offset in _LPI)
    yield from ((_ITS, offset) for offset in _ITS_REGISTERS)


def _version2(lines: int, cpus: int) -> Iterator[tuple[int, int]]:
    """(group, attribute) of all that a GICv2 is: its CPUs share addresses."""
    yield _DISTRIBUTOR, _IIDR
    yield _DISTRIBUTOR, 0
    count = _PRIVATE + lines
    for first, bits in (*_BANKS, _TARGETS):
        for number in range(_PRIVATE * bits // 32, count * bits // 32):
            yield _DISTRIBUTOR, first + 4 * number
    for cpu in (index << 32 for index in range(cpus)):
        for first, bits in _BANKS:
            for number in range(_PRIVATE * bits // 32):
                yield _DISTRIBUTOR, cpu | first + 4 * number
        yield from ((_DISTRIBUTOR, cpu | offset) for offset in _SOFTWARE_PENDING)
        yield from ((_V2_CPU_INTERFACE, cpu | offset) for offset in _V2_INTERFACE)


# Bytes of a register's value in what get_gic gives.
_SIZE = 8


def gic_registers(version: int, lines: int, cpus: int, *, its: bool) -> list[tuple[int, int]]:
    """(group, attribute) of all that a GIC is, as they are set; `lines` shared ones."""
    if version == 2:
        return list(_version2(lines, cpus))
    more = [*_messages(cpus), (_CONTROL, _RESTORE_TABLES), (_ITS, _ITS_CONTROL)] if its else []
    return [*_registers(lines, cpus), *more]


def gic_version(state: bytes, lines: int, cpus: int) -> int:
    """Whose state get_gic gave, as gic_registers names it; 0 for nobody's."""
    for version, its in ((2, False), (3, False), (3, True)):
        if len(state) == _SIZE * len(gic_registers(version, lines, cpus, its=its)):
            return version
    return 0


def get_gic(vm: kvm.Vm, registers: list[tuple[int, int]]) -> bytes:
    """64 bits of each register. An ITS puts its tables, and what is pending, into guest memory first."""
    if (_CONTROL, _RESTORE_TABLES) in registers:
        vm.set_gic(_CONTROL, _SAVE_TABLES, 0)
        vm.set_gic(_CONTROL, _SAVE_PENDING, 0)
    values = [vm.get_gic(*register) if register[0] != _CONTROL else 0 for register in registers]
    return struct.pack(f"<{len(values)}Q", *values)


def set_gic(vm: kvm.Vm, registers: list[tuple[int, int]], state: bytes) -> None:
    """Sets what get_gic gave; ValueError."""
    try:
        values = struct.unpack(f"<{len(registers)}Q", state)
        for register, value in zip(registers, values, strict=True):
            vm.set_gic(*register, value)
    except (struct.error, OSError) as error:
        raise ValueError(f"GIC: {error}") from None
