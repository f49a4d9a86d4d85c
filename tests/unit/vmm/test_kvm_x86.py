"""What an x86 vCPU says of itself, and how a machine is ended by ports."""

import struct

import pytest

from crumble_vmm.boards import board_for
from crumble_vmm.devices.power_ports import KeyboardController, PowerPorts
from crumble_vmm.hypervisor.base import ExitReason, GuestEnds
from crumble_vmm.hypervisor.kvm import x86
from crumble_vmm.hypervisor.kvm.x86 import CpuidEntry

AMD = (0x68747541, 0x444D4163, 0x69746E65)
HOST = [
    CpuidEntry(0, 0, 0, 0xD, *AMD),
    CpuidEntry(1, 0, 0, 0x800F12, 0x0510_0800, 0, 1 << 28),
    CpuidEntry(4, 0, 1, 0xFC00_0121, 1, 2, 3),
    CpuidEntry(4, 3, 1, 0xFC03_C163, 1, 2, 3),
    CpuidEntry(0xA, 0, 0, 1, 2, 3, 4),
    CpuidEntry(0xB, 0, 1, 1, 2, 0x100, 5),
    CpuidEntry(0x8000_0008, 0, 0, 0x3030, 7, 0x700F, 0),
    CpuidEntry(0x8000_001E, 0, 0, 5, 0x105, 3, 0),
]


def table(cpu: int, cpus: int, *, deadline: bool = True) -> dict[tuple[int, int], CpuidEntry]:
    made = x86.guest_cpuid(HOST, cpu, cpus, deadline=deadline)
    found = {(entry.function, entry.index): entry for entry in made}
    assert len(found) == len(made)
    return found


def test_one_cpu_has_no_siblings() -> None:
    leaf = table(0, 1)[1, 0]
    assert leaf.ebx >> 24 == 0 and leaf.ebx >> 16 & 0xFF == 1
    assert not leaf.edx & 1 << 28
    assert leaf.ecx & 1 << 31 and leaf.ecx & 1 << 24


def test_without_a_deadline_timer() -> None:
    assert not table(0, 1, deadline=False)[1, 0].ecx & 1 << 24


@pytest.mark.parametrize(("cpu", "cpus", "shift"), [(1, 2, 1), (2, 3, 2), (15, 16, 4)])
def test_each_cpu_is_a_core_of_one_package(cpu: int, cpus: int, shift: int) -> None:
    leaves = table(cpu, cpus)
    assert leaves[1, 0].ebx >> 24 == cpu and leaves[1, 0].edx & 1 << 28
    assert [leaves[0xB, level].edx for level in range(3)] == [cpu] * 3
    threads, cores, end = (leaves[0xB, level] for level in range(3))
    assert (threads.eax, threads.ebx, threads.ecx) == (0, 1, 0x100)
    assert (cores.eax, cores.ebx, cores.ecx) == (shift, cpus, 0x201)
    assert end.ebx == 0
    assert leaves[0x8000_0008, 0].ecx == shift << 12 | cpus - 1
    assert (leaves[0x8000_001E, 0].eax, leaves[0x8000_001E, 0].ebx) == (cpu, cpu)
    assert leaves[4, 0].eax >> 14 & 0xFFF == 0
    assert leaves[4, 3].eax >> 14 & 0xFFF == (1 << shift) - 1
    assert leaves[0xA, 0].eax == leaves[0xA, 0].edx == 0


def test_a_table_goes_to_kvm_and_back() -> None:
    assert x86.unpack_cpuid(x86.pack_cpuid(HOST)) == HOST


def test_a_kernel_is_entered_in_64_bit_mode() -> None:
    before = bytearray(312)
    struct.pack_into("<Q", before, 272, 0xFEE0_0900)
    regs, sregs = x86.kernel_entry(bytes(before), 0x100_0200, 0x7000, 0x9000, 0x500)
    registers = x86.REGS.unpack(regs)
    assert (registers[x86.RIP], registers[x86.RSI], registers[x86.RFLAGS]) == (
        0x100_0200,
        0x7000,
        2,
    )
    assert len(sregs) == 312
    cr0, _, cr3, cr4, _, efer, apic = struct.unpack_from("<7Q", sregs, 224)
    assert (cr0 & 0x8000_0001, cr3, cr4 & 1 << 5) == (0x8000_0001, 0x9000, 1 << 5)
    assert (efer, apic) == (1 << 8 | 1 << 10, 0xFEE0_0900)
    assert sregs[12:14] == b"\x10\0" and sregs[24 + 12 : 24 + 14] == b"\x18\0"


@pytest.mark.parametrize(
    ("size", "runs"),
    [
        (256 << 20, [(0, 256 << 20, 0)]),
        (3 << 30, [(0, 3 << 30, 0)]),
        (5 << 30, [(0, 3 << 30, 0), (4 << 30, 2 << 30, 3 << 30)]),
    ],
)
def test_memory_has_a_hole_for_devices(size: int, runs: list[tuple[int, int, int]]) -> None:
    regions = board_for("amd64").regions(size)
    assert [(region.gpa, region.size, region.offset) for region in regions] == runs


@pytest.mark.parametrize(
    ("device", "offset", "value", "reason"),
    [
        (PowerPorts(), 0, 5 << 2 | 0x20, ExitReason.POWER_OFF),
        (PowerPorts(), 2, 1, ExitReason.RESET),
        (KeyboardController(), 4, 0xFE, ExitReason.RESET),
    ],
)
def test_ports_that_end_the_machine(
    device: PowerPorts | KeyboardController, offset: int, value: int, reason: ExitReason
) -> None:
    with pytest.raises(GuestEnds) as caught:
        device.mmio_write(offset, 1, value)
    assert caught.value.exit.reason is reason
    device.mmio_write(offset, 1, value & ~0x20 if offset == 0 else 0)
    assert device.mmio_read(offset, 1) == 0
