"""What a vCPU and the GIC are on arm64, in plain values, for snapshots.

A vCPU is every register KVM lists for it, among them what its ID registers say: a host whose CPU cannot be
that one refuses. The GIC: Linux, Documentation/virt/kvm/devices/arm-vgic-v3.rst; registers: Arm IHI 0069.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from crumble_native import kvm
from crumble_vmm.boot.tree_arm64 import mpidr

# KVM_DEV_ARM_VGIC_GRP_*
_DISTRIBUTOR, _REDISTRIBUTOR, _CPU_INTERFACE, _LEVELS = 1, 5, 6, 7
_PRIVATE = 32
# (first register, bits of each interrupt)
_BANKS = ((0x80, 1), (0x100, 1), (0x200, 1), (0x300, 1), (0x400, 8), (0xC00, 2))
_ROUTES = 0x6000
_SGI_FRAME = 0x1_0000
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


def get_gic(vm: kvm.Vm, lines: int, cpus: int) -> bytes:
    """64 bits of each register."""
    values = [vm.get_gic(*register) for register in _registers(lines, cpus)]
    return struct.pack(f"<{len(values)}Q", *values)


def set_gic(vm: kvm.Vm, lines: int, cpus: int, state: bytes) -> None:
    """Sets what get_gic gave; ValueError."""
    registers = list(_registers(lines, cpus))
    try:
        values = struct.unpack(f"<{len(registers)}Q", state)
        for register, value in zip(registers, values, strict=True):
            vm.set_gic(*register, value)
    except (struct.error, OSError) as error:
        raise ValueError(f"GIC: {error}") from None
