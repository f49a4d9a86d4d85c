"""ACPI tables of a machine with reduced hardware (ACPI 6.5, chapter 5): RSDP, XSDT, FADT, MADT, DSDT."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from crumble_vmm.boot import aml
from crumble_vmm.boot.wdat import wdat

# Length, revision and checksum come between the two.
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_OEM, _OEM_TABLE, _CREATOR = b"CRMBLE", b"CRUMBLE ", b"CRMB"
_FADT_SIZE, _FADT_REVISION, _FADT_MINOR = 276, 6, 5
# §5.2.9: fixed feature flags, and IA-PC boot architecture flags.
_WBINVD, _POWER_BUTTON, _SLEEP_BUTTON, _RESET_REGISTER, _REDUCED = 0, 4, 5, 10, 20
_NO_VGA, _NO_RTC = 2, 5
_SYSTEM_IO = 1
LOCAL_APIC = 0xFEE0_0000
_ALL_PROCESSORS, _NMI_PIN = 0xFF, 1
_S5 = 5


@dataclass(frozen=True, slots=True)
class AcpiDevice:
    """A device of the DSDT. hid: "PNP0501" or another string. crs: resource descriptors (aml)."""

    name: str
    hid: str
    uid: int
    crs: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Its AML."""
        hid = aml.eisa_id(self.hid) if self.hid.startswith("PNP") else aml.string(self.hid)
        return aml.device(
            self.name,
            aml.name("_HID", hid),
            aml.name("_UID", aml.integer(self.uid)),
            aml.name("_CCA", aml.integer(1)),
            aml.name("_CRS", aml.resources(*self.crs)),
        )


@dataclass(frozen=True, slots=True)
class AcpiPci:
    """A host bridge with bus 0. window: (base, size). lines: INTA of devices 1, 2, ..."""

    ecam: int
    window: tuple[int, int]
    lines: Sequence[int]

    def encode(self) -> bytes:
        """Its AML (PCI Firmware 3.3, §4.1)."""
        routes = (
            aml.package(*map(aml.integer, (number << 16 | 0xFFFF, 0, 0, line)))
            for number, line in enumerate(self.lines, start=1)
        )
        return aml.device(
            "PCI0",
            aml.name("_HID", aml.eisa_id("PNP0A08")),
            aml.name("_CID", aml.eisa_id("PNP0A03")),
            *(aml.name(name, aml.integer(0)) for name in ("_UID", "_SEG", "_BBN")),
            aml.name("_CCA", aml.integer(1)),
            aml.name("_CRS", aml.resources(aml.bus_numbers(0, 0), aml.window(*self.window))),
            aml.name("_PRT", aml.package(*routes)),
        )

    def mcfg(self) -> bytes:
        """MCFG's body (§4.1.2): segment 0, buses 0 to 0."""
        return struct.pack("<8xQHBB4x", self.ecam, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class AcpiBoard:
    """What the tables say. Ports: each one byte. reset: (port, value). watchdog: where its registers are."""

    cpus: int
    ioapic: int
    sleep_control: int
    sleep_status: int
    reset: tuple[int, int]
    devices: Sequence[AcpiDevice]
    pci: AcpiPci | None = None
    watchdog: int | None = None

    def tables(self, address: int) -> bytes:
        """All tables, the RSDP first, for guest-physical `address`, a multiple of 16."""
        blob = bytearray(64)  # the RSDP has 36 bytes
        dsdt = _append(blob, _table(b"DSDT", 2, self._dsdt()))
        fadt = _append(blob, _table(b"FACP", _FADT_REVISION, self._fadt(address + dsdt)))
        madt = _append(blob, _table(b"APIC", 5, self._madt()))
        listed = [fadt, madt]
        if self.pci is not None:
            listed.append(_append(blob, _table(b"MCFG", 1, self.pci.mcfg())))
        if self.watchdog is not None:
            listed.append(_append(blob, _table(b"WDAT", 1, wdat(self.watchdog))))
        pointers = b"".join(struct.pack("<Q", address + at) for at in listed)
        xsdt = _append(blob, _table(b"XSDT", 1, pointers))
        blob[:36] = _rsdp(address + xsdt)
        return bytes(blob)

    def _dsdt(self) -> bytes:
        devices = [item.encode() for item in self.devices]
        if self.pci is not None:
            devices.append(self.pci.encode())
        kind = aml.package(*map(aml.integer, (_S5, _S5, 0, 0)))
        return aml.scope("\\_SB", *devices) + aml.name("\\_S5", kind)

    def _fadt(self, dsdt: int) -> bytes:
        table = bytearray(_FADT_SIZE)
        flags = (_WBINVD, _POWER_BUTTON, _SLEEP_BUTTON, _RESET_REGISTER, _REDUCED)
        struct.pack_into("<I", table, 40, dsdt)
        struct.pack_into("<H", table, 109, 1 << _NO_VGA | 1 << _NO_RTC)
        struct.pack_into("<I", table, 112, sum(1 << flag for flag in flags))
        port, value = self.reset
        struct.pack_into("<12sB", table, 116, _port(port), value)
        table[131] = _FADT_MINOR
        struct.pack_into("<Q", table, 140, dsdt)
        struct.pack_into("<12s12s", table, 244, _port(self.sleep_control), _port(self.sleep_status))
        return bytes(table[_HEADER.size :])

    def _madt(self) -> bytes:
        body = struct.pack("<II", LOCAL_APIC, 0)
        for cpu in range(self.cpus):
            body += struct.pack("<BBBBI", 0, 8, cpu, cpu, 1)
        body += struct.pack("<BBBBII", 1, 12, 0, 0, self.ioapic, 0)
        return body + struct.pack("<BBBHB", 4, 6, _ALL_PROCESSORS, 0, _NMI_PIN)


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum of all bytes zero."""
    return -sum(data) & 0xFF


def _port(number: int) -> bytes:
    """§5.2.3.2: a byte-wide port as a generic address."""
    return struct.pack("<BBBBQ", _SYSTEM_IO, 8, 0, 1, number)


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    length = _HEADER.size + len(body)
    head = _HEADER.pack(signature, length, revision, 0, _OEM, _OEM_TABLE, 1, _CREATOR, 1)
    data = bytearray(head + body)
    data[9] = checksum(data)
    return bytes(data)


def _rsdp(xsdt: int) -> bytes:
    """§5.2.5.3: the first checksum is of the first 20 bytes, the second of all 36."""
    data = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, _OEM, 2, 0, 36, xsdt, 0))
    data[8] = checksum(data[:20])
    data[32] = checksum(data)
    return bytes(data)


def _append(blob: bytearray, table: bytes) -> int:
    """Adds a table at a multiple of 16; gives its offset."""
    blob += bytes(-len(blob) % 16)
    at = len(blob)
    blob += table
    return at
