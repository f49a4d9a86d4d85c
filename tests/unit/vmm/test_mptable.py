"""The MP table, read as the specification says."""

import struct

import pytest

from crumble_vmm.boot.mptable import mp_table

BASE = 0xF_0000
SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def entries(blob: bytes) -> list[bytes]:
    """The table's entries, found as a kernel does: the pointer, the header, one by one."""
    signature, table, paragraphs, revision = struct.unpack_from("<4sIBB", blob)
    assert (signature, paragraphs, revision) == (b"_MP_", 1, 4)
    assert sum(blob[:16]) % 256 == 0
    data = blob[table - BASE :]
    signature, length = struct.unpack_from("<4sH", data)
    assert (signature, length) == (b"PCMP", len(data)) and sum(data) % 256 == 0
    (count, lapic) = struct.unpack_from("<HI", data, 34)
    assert lapic == 0xFEE0_0000
    found, at = [], 44
    while at < length:
        found.append(data[at : at + SIZES[data[at]]])
        at += len(found[-1])
    assert at == length and len(found) == count
    return found


@pytest.mark.parametrize("cpus", [1, 2, 64])
def test_all_cpus_and_the_first_boots(cpus: int) -> None:
    made = [item for item in entries(mp_table(BASE, cpus, 0xFEC0_0000, 24)) if item[0] == 0]
    assert [(item[1], item[3]) for item in made] == [(0, 3), *((n, 1) for n in range(1, cpus))]


def test_inputs_of_the_ioapic_are_edges_of_their_own_numbers() -> None:
    found = entries(mp_table(BASE, 1, 0xFEC0_0000, 24))
    (ioapic,) = [item for item in found if item[0] == 2]
    assert struct.unpack("<BBBBI", ioapic) == (2, 0, 0x11, 1, 0xFEC0_0000)
    lines = [struct.unpack("<BBHBBBB", item) for item in found if item[0] == 3]
    assert lines == [(3, 0, 5, 0, pin, 0, pin) for pin in range(24)]


def test_the_most_fits_where_kernels_look() -> None:
    assert len(mp_table(BASE, 255, 0xFEC0_0000, 24)) < 0x1_0000
