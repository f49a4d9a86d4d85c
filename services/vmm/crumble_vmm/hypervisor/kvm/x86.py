"""x86 vCPUs as KVM sees them: what a kernel finds in the registers when it is entered.

Structures: linux/kvm.h of x86. Entry: Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol".
"""

from __future__ import annotations

import struct

# struct kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, padding
_SEGMENT = struct.Struct("<QIH10B")
# struct kvm_sregs: eight segments; GDT, IDT; cr0, cr2, cr3, cr4, cr8, EFER, APIC base; pending interrupts
_SREGS = struct.Struct("<192s QH6x QH6x 7Q 32s")
# struct kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8-r15 rip rflags
REGS = struct.Struct("<18Q")
RBX, RSI, RIP, RFLAGS = 1, 4, 16, 17

_PE, _ET, _PG = 1, 1 << 4, 1 << 31
_PAE = 1 << 5
_LME, _LMA = 1 << 8, 1 << 10
_RFLAGS_FIXED = 2
# __BOOT_CS, __BOOT_DS
_CODE, _DATA = 0x10, 0x18
MTRR_DEF_TYPE = 0x2FF
# Enabled, write-back: nothing here is uncached for lack of an MTRR.
_MTRR_WRITE_BACK = 1 << 11 | 6


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


def pvh_entry(sregs: bytes, pc: int, start_info: int) -> tuple[bytes, bytes]:
    """As kernel_entry, for PVH: 32-bit mode without paging, flat segments, the start info's address in ebx."""
    old = _SREGS.unpack(sregs)
    code = _SEGMENT.pack(0, 0xFFFF_FFFF, _CODE, 11, 1, 0, 1, 1, 0, 1, 0, 0, 0)
    data = _SEGMENT.pack(0, 0xFFFF_FFFF, _DATA, 3, 1, 0, 1, 1, 0, 1, 0, 0, 0)
    task = _SEGMENT.pack(0, 0x67, 0, 11, 1, 0, 0, 0, 0, 0, 0, 0, 0)
    table = _SEGMENT.pack(0, 0xFFFF, 0, 2, 1, 0, 0, 0, 0, 0, 0, 1, 0)
    new = _SREGS.pack(
        code + data * 5 + task + table, 0, 0, 0, 0, _PE | _ET, 0, 0, 0, 0, 0, old[11], old[12]
    )
    registers = [0] * 18
    registers[RBX], registers[RIP], registers[RFLAGS] = start_info, pc, _RFLAGS_FIXED
    return REGS.pack(*registers), new


def boot_msrs() -> dict[int, int]:
    """What firmware would have set."""
    return {MTRR_DEF_TYPE: _MTRR_WRITE_BACK}


# Flat 64-bit code and 32-bit data, at __BOOT_CS and __BOOT_DS.
GDT = struct.pack("<4Q", 0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
