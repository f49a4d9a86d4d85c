"""What an x86 vCPU says of itself, and how a machine is ended by ports."""

import struct

import pytest

from crumble_common.errors import HostError
from crumble_vmm.boards import board_for
from crumble_vmm.devices.power_ports import KeyboardController, PowerPorts
from crumble_vmm.hypervisor.base import ExitReason, GuestEnds
from crumble_vmm.hypervisor.kvm import cpuid, x86
from crumble_vmm.hypervisor.kvm.cpuid import CpuidEntry

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
    made = cpuid.guest_table(HOST, cpu, cpus, deadline=deadline)
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
    assert cpuid.unpack(cpuid.pack(HOST)) == HOST


def every_feature() -> list[CpuidEntry]:
    """A CPU that has all there is, its extended state as on Intel's."""
    full = 0xFFFF_FFFF
    parts = {2: (256, 576), 5: (64, 1088), 6: (512, 1152), 7: (1024, 1664), 9: (8, 2688)}
    return [
        *HOST,
        CpuidEntry(7, 0, 1, 2, full, full, full),
        CpuidEntry(7, 1, 1, full, 0, 0, 0),
        CpuidEntry(0xD, 0, 1, 0x2E7, 576, 2696, 0),
        CpuidEntry(0xD, 1, 1, full, 0, 0, 0),
        *(CpuidEntry(0xD, n, 1, size, at, 0, 0) for n, (size, at) in parts.items()),
        CpuidEntry(0x8000_0001, 0, 0, 0, 0, full, full),
    ]


def with_leaf(table: list[CpuidEntry], leaf: CpuidEntry) -> list[CpuidEntry]:
    return [e for e in table if (e.function, e.index) != (leaf.function, leaf.index)] + [leaf]


BIG = with_leaf(every_feature(), CpuidEntry(1, 0, 0, 0, 0, 0xFFFF_FFFF, 0xFFFF_FFFF))


@pytest.mark.parametrize(
    ("model", "states", "size", "avx", "avx512"),
    [
        ("x86-64-v2", 0, 0, False, False),
        ("x86-64-v3", 0x7, 832, True, False),
        ("x86-64-v4", 0xE7, 2688, True, True),
        ("host", 0x2E7, 2696, True, True),
    ],
)
def test_a_level_shows_what_it_has(
    model: str, states: int, size: int, avx: bool, avx512: bool
) -> None:
    cpuid.check_model(model, BIG)
    made = cpuid.guest_table(BIG, 0, 1, deadline=True, model=model)
    leaves = {(entry.function, entry.index): entry for entry in made}
    assert (leaves[0xD, 0].eax, leaves[0xD, 0].ecx) == (states, size)
    assert bool(leaves[1, 0].ecx & 1 << 28) is avx
    assert bool(leaves[7, 0].ebx & 1 << 16) is avx512
    assert leaves[1, 0].ecx & 1 << 20 and leaves[1, 0].ecx & 1 << 31  # SSE4.2, hypervisor
    assert not leaves[1, 0].ecx & 1 << 5 and not leaves[0x8000_0001, 0].ecx & 1 << 2  # VMX, SVM
    assert cpuid.missing(made, BIG) == []


def test_a_level_that_the_cpu_has_not_reached() -> None:
    cpuid.check_model("host", HOST)
    with pytest.raises(HostError, match=r"lacks .*sse4_2.*--cpu-model") as caught:
        cpuid.check_model("x86-64-v2", HOST)
    assert caught.value.code == "kvm.cpu"


def test_what_a_guest_knows_must_be_there() -> None:
    """A level moves to every CPU that has it; the host's own features only to its like."""
    v3 = with_leaf(BIG, CpuidEntry(7, 0, 1, 2, 0xFFFF_FFFF & ~(1 << 16), 0, 0xFFFF_FFFF))
    level = cpuid.guest_table(BIG, 0, 2, deadline=True, model="x86-64-v3")
    own = cpuid.guest_table(BIG, 0, 2, deadline=True)
    assert cpuid.missing(level, v3) == []
    assert "avx512f" in cpuid.missing(own, v3)
    assert any("CPUID 0x7.0 ecx" in name for name in cpuid.missing(own, v3))
    other = with_leaf(BIG, CpuidEntry(0, 0, 0, 0xD, 1, 2, 3))
    assert "another maker" in cpuid.missing(level, other)[0]


def test_a_table_that_is_none() -> None:
    with pytest.raises(ValueError, match="CPUID"):
        cpuid.unpack(b"x")


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
