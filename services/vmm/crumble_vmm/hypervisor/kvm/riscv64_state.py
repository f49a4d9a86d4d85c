"""What a vCPU is on riscv64, by KVM's registers: for snapshots, and what its device tree says.

Linux, Documentation/virt/kvm/api.rst, KVM_SET_ONE_REG, and arch/riscv/include/uapi/asm/kvm.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crumble_native import kvm

_BASE, _U64 = 0x8000_0000_0000_0000, 0x0030_0000_0000_0000
_CONFIG, _CORE, _TIMER, _ISA, _SBI = (_BASE | _U64 | kind << 24 for kind in (1, 2, 4, 7, 8))
PC, A0 = _CORE, _CORE + 10
# KVM_RISCV_SBI_EXT_DBCN; KVM_RISCV_SBI_EXT_PMU
DEBUG_CONSOLE, PERFORMANCE = _SBI + 9, _SBI + 6
FREQUENCY, TIME, COMPARE, TIMER_STATE = (_TIMER + number for number in range(4))
ISA, _ZICBOM_SIZE, _ZICBOZ_SIZE, _SATP_MODE = _CONFIG, _CONFIG + 1, _CONFIG + 5, _CONFIG + 6
_MMU = {8: "sv39", 9: "sv48", 10: "sv57"}
_ON = 1
# KVM_RISCV_ISA_EXT_*, in order.
_NAMES = (
    "a c d f h i m svpbmt sstc svinval zihintpause zicbom zicboz zbb ssaia v svnapot zba zbs zicntr zicsr "
    "zifencei zihpm smstateen zicond zbc zbkb zbkc zbkx zknd zkne zknh zkr zksed zksh zkt zvbb zvbc zvkb "
    "zvkg zvkned zvknha zvknhb zvksed zvksh zvkt zfh zfhmin zihintntl zvfh zvfhmin zfa ztso zacas sscofpmf "
    "zimop zca zcb zcd zcf zcmop zawrs"
).split()
_CANONICAL = "imafdcv"
# There is nothing behind them: no in-kernel AIA, no virtualization in a guest, no counters.
_UNTOLD = frozenset({"h", "ssaia", "sscofpmf", "smstateen"})


def number(data: bytes) -> int:
    """A register's value."""
    return int.from_bytes(data, "little")


def extensions(values: Mapping[int, int]) -> tuple[str, ...]:
    """Those a guest may use, as its device tree has them. values: of registers, by KVM_REG_*."""
    on = {name for index, name in enumerate(_NAMES) if values.get(_ISA + index)} - _UNTOLD
    letters = [name for name in _CANONICAL if name in on]
    return (*letters, *sorted(name for name in on if len(name) > 1))


def mmu(values: Mapping[int, int]) -> str:
    """The deepest page tables."""
    return _MMU.get(values.get(_SATP_MODE, 0), "sv39")


def blocks(values: Mapping[int, int]) -> dict[str, int]:
    """Bytes that cache operations work on, by the operation."""
    sizes = {"cbom": values.get(_ZICBOM_SIZE), "cboz": values.get(_ZICBOZ_SIZE)}
    return {name: size for name, size in sizes.items() if size}


def get_cpu(vcpu: kvm.Vcpu) -> dict[str, Any]:
    """Registers by their KVM_REG_*, in KVM's order, but the time, which is the machine's; whether it is on."""
    numbers = [register for register in vcpu.register_list() if register != TIME]
    registers = [[register, vcpu.get_register(register)] for register in numbers]
    return {"registers": registers, "mp_state": vcpu.get(kvm.MP_STATE)}


def set_cpu(vcpu: kvm.Vcpu, state: dict[str, Any]) -> None:
    """Sets what get_cpu gave; ValueError for what this CPU cannot be."""
    try:
        for register, data in state["registers"]:
            if vcpu.get_register(register) != data and (register, number(data)) != (TIMER_STATE, 0):
                vcpu.set_register(register, data)
        vcpu.set(kvm.MP_STATE, state["mp_state"])
    except (OSError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"vCPU {vcpu.index}: {error}") from None


def set_time(vcpus: list[kvm.Vcpu], ticks: int) -> None:
    """All vCPUs' `time`; timers that the kernel keeps start again."""
    vcpus[0].set_register(TIME, ticks.to_bytes(8, "little"))
    for vcpu in vcpus:
        if number(state := vcpu.get_register(TIMER_STATE)) == _ON:
            vcpu.set_register(TIMER_STATE, state)
