"""The MP table, for kernels that are told not to use ACPI (Intel, MultiProcessor Specification 1.4, chapter 4)."""

from __future__ import annotations

import struct

from crumble_vmm.boot.acpi import LOCAL_APIC, checksum

# Entry types, and of interrupts; an ISA bus is the only one.
_CPU, _BUS, _IOAPIC, _INTERRUPT, _LOCAL = range(5)
_INT, _NMI = 0, 1
_ISA, _IOAPIC_ID, _ALL, _NMI_PIN = 0, 0, 0xFF, 1
_ENABLED, _BOOTS = 1, 2
_ACTIVE_HIGH_EDGE = 0b0101
_REVISION, _LAPIC_VERSION, _IOAPIC_VERSION = 4, 0x14, 0x11
_HEADER_SIZE, _POINTER_SIZE = 44, 16
# The checksum's place in either.
_TABLE_SUM, _POINTER_SUM = 7, 10


def mp_table(address: int, cpus: int, ioapic: int, pins: int) -> bytes:
    """The pointer and the table, for guest-physical `address`, a multiple of 16 that kernels search.

    Input n of the IOAPIC at `ioapic` is ISA interrupt n, an edge.
    """
    entries = [_cpu(number) for number in range(cpus)]
    entries.append(struct.pack("<BB6s", _BUS, _ISA, b"ISA   "))
    entries.append(struct.pack("<BBBBI", _IOAPIC, _IOAPIC_ID, _IOAPIC_VERSION, _ENABLED, ioapic))
    entries += [_interrupt(_INTERRUPT, _INT, pin, _IOAPIC_ID, pin) for pin in range(pins)]
    entries.append(_interrupt(_LOCAL, _NMI, 0, _ALL, _NMI_PIN))
    body = b"".join(entries)
    size = _HEADER_SIZE + len(body)
    head = struct.pack(
        "<4sHBB8s12sIHHIHBx", b"PCMP", size, _REVISION, 0, b"CRUMBLE ", b"CRUMBLE     ", 0, 0,
        len(entries), LOCAL_APIC, 0, 0,
    )  # fmt: skip
    pointer = struct.pack("<4sIBBB5x", b"_MP_", address + _POINTER_SIZE, 1, _REVISION, 0)
    return _summed(pointer, _POINTER_SUM) + _summed(head + body, _TABLE_SUM)


def _cpu(number: int) -> bytes:
    flags = _ENABLED | (_BOOTS if number == 0 else 0)
    return struct.pack("<BBBBII8x", _CPU, number, _LAPIC_VERSION, flags, 0, 0)


def _interrupt(kind: int, what: int, source: int, to: int, pin: int) -> bytes:
    return struct.pack("<BBHBBBB", kind, what, _ACTIVE_HIGH_EDGE, _ISA, source, to, pin)


def _summed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([checksum(data)]) + data[at + 1 :]
