"""x86 vCPUs as KVM sees them: what a kernel finds in the registers when it is entered, and CPUID.

Structures: linux/kvm.h of x86. Entry: Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

# struct kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, padding
_SEGMENT = struct.Struct("<QIH10B")
# struct kvm_sregs: eight segments; GDT, IDT; cr0, cr2, cr3, cr4, cr8, EFER, APIC base; pending interrupts
_SREGS = struct.Struct("<192s QH6x QH6x 7Q 32s")
# struct kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8-r15 rip rflags
REGS = struct.Struct("<18Q")
RSI, RIP, RFLAGS = 4, 16, 17
_ENTRY = struct.Struct("<7I12x")

_PE, _ET, _PG = 1, 1 << 4, 1 << 31
_PAE = 1 << 5
_LME, _LMA = 1 << 8, 1 << 10
_RFLAGS_FIXED = 2
# __BOOT_CS, __BOOT_DS
_CODE, _DATA = 0x10, 0x18
MTRR_DEF_TYPE = 0x2FF
# Enabled, write-back: nothing here is uncached for lack of an MTRR.
_MTRR_WRITE_BACK = 1 << 11 | 6


@dataclass(frozen=True, slots=True)
class CpuidEntry:
    """struct kvm_cpuid_entry2. flags: 1 when `index` counts."""

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def unpack_cpuid(data: bytes) -> list[CpuidEntry]:
    """KVM's table."""
    return [CpuidEntry(*fields) for fields in _ENTRY.iter_unpack(data)]


def pack_cpuid(entries: Iterable[CpuidEntry]) -> bytes:
    """A table for KVM."""
    return b"".join(
        _ENTRY.pack(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in entries
    )


def guest_cpuid(
    supported: list[CpuidEntry], cpu: int, cpus: int, *, deadline: bool
) -> list[CpuidEntry]:
    """What vCPU `cpu` of `cpus` says of itself: the host's features, our topology, no PMU.

    One package, `cpus` cores without siblings. deadline: KVM has the TSC deadline timer.
    """
    amd = any(entry.function == 0 and entry.ebx == 0x68747541 for entry in supported)
    shift = (cpus - 1).bit_length()
    made = []
    for entry in supported:
        if entry.function in (0xB, 0x1F):
            continue
        made.append(_adapted(entry, cpu, cpus, deadline=deadline, amd=amd))
    if supported and max(e.function for e in supported if e.function < 1 << 30) >= 0xB:
        made += _topology(cpu, cpus, shift)
    return made


def _topology(cpu: int, cpus: int, shift: int) -> Iterator[CpuidEntry]:
    """Leaf 0xB: a level of one thread, a level of cores, the end."""
    yield CpuidEntry(0xB, 0, 1, 0, 1, 0x100, cpu)
    yield CpuidEntry(0xB, 1, 1, shift, cpus, 0x201, cpu)
    yield CpuidEntry(0xB, 2, 1, 0, 0, 2, cpu)


def _adapted(entry: CpuidEntry, cpu: int, cpus: int, *, deadline: bool, amd: bool) -> CpuidEntry:
    shift = (cpus - 1).bit_length()
    match entry.function:
        case 1:
            # Without the hypervisor bit Linux calibrates its clock on a PIT, which isn't there.
            ecx = entry.ecx | 1 << 31 | (1 << 24 if deadline else 0)
            ebx = entry.ebx & 0xFFFF | (1 << shift) << 16 | cpu << 24
            edx = entry.edx & ~(1 << 28) | (1 << 28 if cpus > 1 else 0)
            return replace(entry, ebx=ebx, ecx=ecx, edx=edx)
        case 4:
            sharing = (1 << shift) - 1 if entry.eax >> 5 & 7 == 3 else 0
            return replace(entry, eax=entry.eax & 0x3FFF | sharing << 14 | ((1 << shift) - 1) << 26)
        case 0xA | 0x8000_0022:
            return replace(entry, eax=0, ebx=0, ecx=0, edx=0)
        case 0x8000_0008 if amd:
            return replace(entry, ecx=shift << 12 | cpus - 1)
        case 0x8000_001E:
            return replace(entry, eax=cpu, ebx=cpu & 0xFF, ecx=0)
    return entry


def kernel_entry(
    sregs: bytes, pc: int, boot_params: int, page_table: int, gdt: int
) -> tuple[bytes, bytes]:
    """The REGS and SREGS groups with which a kernel is entered in 64-bit mode.

    sregs: as they were. gdt: address of four descriptors.
    """
    old = _SREGS.unpack(sregs)
    apic_base, pending = old[11], old[12]
    code = _SEGMENT.pack(0, 0xFFFF_FFFF, _CODE, 11, 1, 0, 0, 1, 1, 1, 0, 0, 0)
    data = _SEGMENT.pack(0, 0xFFFF_FFFF, _DATA, 3, 1, 0, 1, 1, 0, 1, 0, 0, 0)
    task = _SEGMENT.pack(0, 0xFFFF, 0, 11, 1, 0, 0, 0, 0, 0, 0, 0, 0)
    table = _SEGMENT.pack(0, 0xFFFF, 0, 2, 1, 0, 0, 0, 0, 0, 0, 1, 0)
    segments = code + data * 5 + task + table
    new = _SREGS.pack(
        segments, gdt, 31, 0, 0, _PE | _ET | _PG, 0, page_table, _PAE, 0, _LME | _LMA,
        apic_base, pending,
    )  # fmt: skip
    registers = [0] * 18
    registers[RSI], registers[RIP], registers[RFLAGS] = boot_params, pc, _RFLAGS_FIXED
    return REGS.pack(*registers), new


def boot_msrs() -> dict[int, int]:
    """What firmware would have set."""
    return {MTRR_DEF_TYPE: _MTRR_WRITE_BACK}


# Flat 64-bit code and 32-bit data, at __BOOT_CS and __BOOT_DS.
GDT = struct.pack("<4Q", 0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
