"""AML and ACPI tables: by the specification's own arithmetic, and by Intel's compiler where it is."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_common.errors import InternalError
from crumble_vmm.boot import aml
from crumble_vmm.boot.acpi import AcpiBoard, AcpiDevice, AcpiPci, checksum

BASE = 0xE_0000


def board(cpus: int = 2, slots: int = 3, pci: AcpiPci | None = None) -> AcpiBoard:
    serial = AcpiDevice("COM1", "PNP0501", 0, (aml.io_ports(0x3F8, 8), aml.interrupt(4, edge=True)))
    virtio = [
        AcpiDevice(
            f"VR{slot:02}", "LNRO0005", slot,
            (aml.memory(0xD000_0000 + slot * 4096, 4096), aml.interrupt(16 + slot, edge=True)),
        )
        for slot in range(slots)
    ]  # fmt: skip
    return AcpiBoard(cpus, 0xFEC0_0000, 0x600, 0x601, (0x602, 1), [serial, *virtio], pci)


def tables(blob: bytes) -> dict[bytes, bytes]:
    """The tables by signature, found as a kernel does: RSDP, XSDT, FADT, DSDT."""
    assert blob[:8] == b"RSD PTR " and blob[15] == 2
    assert sum(blob[:20]) % 256 == 0 and sum(blob[:36]) % 256 == 0
    (xsdt,) = struct.unpack_from("<Q", blob, 24)
    found = {}
    pending = [xsdt]
    while pending:
        at = pending.pop() - BASE
        signature, length = struct.unpack_from("<4sI", blob, at)
        table = blob[at : at + length]
        assert len(table) == length and sum(table) % 256 == 0 and at % 16 == 0
        found[signature] = table
        if signature == b"XSDT":
            pending += struct.unpack(f"<{(length - 36) // 8}Q", table[36:])
        elif signature == b"FACP":
            (old,) = struct.unpack_from("<I", table, 40)
            (new,) = struct.unpack_from("<Q", table, 140)
            assert old == new
            pending.append(new)
    return found


def test_a_kernel_finds_every_table() -> None:
    found = tables(board().tables(BASE))
    assert found.keys() == {b"XSDT", b"FACP", b"APIC", b"DSDT"}
    facp = found[b"FACP"]
    assert len(facp) == 276
    (flags,) = struct.unpack_from("<I", facp, 112)
    assert flags & 1 << 20 and flags & 1 << 10
    assert facp[116:128] == bytes((1, 8, 0, 1)) + (0x602).to_bytes(8, "little")
    assert facp[244:256] == bytes((1, 8, 0, 1)) + (0x600).to_bytes(8, "little")


@pytest.mark.parametrize("cpus", [1, 2, 16])
def test_the_madt_names_each_cpu_once(cpus: int) -> None:
    madt = tables(board(cpus).tables(BASE))[b"APIC"]
    assert struct.unpack_from("<II", madt, 36) == (0xFEE0_0000, 0)
    at, seen, kinds = 44, [], []
    while at < len(madt):
        kind, length = madt[at], madt[at + 1]
        kinds.append(kind)
        if kind == 0:
            seen.append((madt[at + 2], madt[at + 3], madt[at + 4]))
        at += length
    assert at == len(madt)
    assert seen == [(cpu, cpu, 1) for cpu in range(cpus)]
    assert kinds == [0] * cpus + [1, 4]


PCI = AcpiPci(0xE000_0000, (0xD100_0000, 0x100_0000), [16, 17])


def test_a_kernel_finds_configuration_space() -> None:
    mcfg = tables(board(pci=PCI).tables(BASE))[b"MCFG"]
    assert struct.unpack("<QHBB", mcfg[44:56]) == (0xE000_0000, 0, 0, 0)
    assert len(mcfg) == 60
    assert b"PCI0" not in tables(board().tables(BASE))[b"DSDT"]


def test_intels_compiler_reads_the_devices(tmp_path: Path) -> None:
    iasl = shutil.which("iasl")
    if iasl is None:
        pytest.skip("iasl is not here: install acpica-tools")
    for name, data in tables(board(pci=PCI).tables(BASE)).items():
        (tmp_path / f"{name.decode()}.aml").write_bytes(data)
        done = subprocess.run(
            [iasl, "-d", f"{name.decode()}.aml"], cwd=tmp_path, capture_output=True, text=True, check=False
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Invalid" not in done.stderr + done.stdout
    source = (tmp_path / "DSDT.dsl").read_text()
    for words in (
        'Name (_HID, EisaId ("PNP0501")', 'Name (_HID, "LNRO0005")', "Device (VR02)",
        "0xD0002000,         // Address Base", "0x03F8,             // Range Minimum",
        "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive",
        "0x00000012,", "S5 System State", 'Name (_HID, EisaId ("PNP0A08")', "0x0002FFFF",
        "0xD1FFFFFF,         // Range Maximum", "WordBusNumber (ResourceProducer",
        "DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite",
    ):  # fmt: skip
        assert words in source, words


@given(st.integers(0, (1 << 28) - 5))
def test_a_package_length_holds_itself(size: int) -> None:
    """§20.2.4: the number read back is that of all bytes from the first length byte on."""
    data = aml.package_length(size)
    extra = data[0] >> 6
    assert len(data) == 1 + extra
    if extra == 0:
        assert data[0] == size + 1
    else:
        assert data[0] & 0x30 == 0
        assert data[0] & 0xF | int.from_bytes(data[1:], "little") << 4 == size + len(data)


def test_what_cannot_be_said() -> None:
    with pytest.raises(InternalError):
        aml.package_length(1 << 28)
    for name in ("", "ABCDE", "A.B", "\\"):
        with pytest.raises(InternalError):
            aml.name_string(name)
    with pytest.raises(InternalError):
        aml.integer(1 << 64)


@given(st.binary(max_size=300))
def test_a_checksum_makes_zero(data: bytes) -> None:
    assert (sum(data) + checksum(data)) % 256 == 0
