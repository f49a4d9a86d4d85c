"""What only KVM has: ports, the ways in which it refuses."""

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crumble_native import kvm
from crumble_vmm.hypervisor.base import ExitReason
from framework.quest import DONE, KVM, Access, Quest
from framework.quest_guests import CODE, END, MMIO, RESULTS, X86Guest


@pytest.fixture
def quest() -> Iterator[Quest]:
    with Quest(KVM) as made:
        yield made


@pytest.mark.parametrize(
    ("code", "size"), [(b"\xee", 1), (b"\x66\xef", 2), (b"\xef", 4)], ids=["8", "16", "32"]
)
def test_port_writes_of_all_widths(quest: Quest, code: bytes, size: int) -> None:
    set_up = b"\x66\xba\xf8\x03" + b"\xb8\x44\x33\x22\x11"  # mov dx, 0x3f8; mov eax, 0x11223344
    assert quest.run(quest.guest().raw(set_up + code).end()) == DONE
    value = 0x1122_3344 & (1 << 8 * size) - 1
    assert quest.ports == [Access("write", 0x3F8, size, value)]


@pytest.mark.parametrize(
    ("code", "size"), [(b"\xec", 1), (b"\x66\xed", 2), (b"\xed", 4)], ids=["8", "16", "32"]
)
def test_port_reads_of_all_widths(quest: Quest, code: bytes, size: int) -> None:
    quest.answers[0x64] = 0x8765_4321
    # xor eax, eax; mov dx, 0x64; in; mov [RESULTS], eax
    guest = quest.guest().raw(b"\x31\xc0\x66\xba\x64\x00" + code)
    guest.raw(b"\x89\x04\x25" + RESULTS.to_bytes(4, "little")).end()
    assert quest.run(guest) == DONE
    assert quest.value() == 0x8765_4321 & (1 << 8 * size) - 1


def test_a_string_of_port_writes_comes_one_by_one(quest: Quest) -> None:
    quest.memory.write(RESULTS, b"quest")
    # mov esi, RESULTS; mov ecx, 5; mov dx, 0x3f8; rep outsb
    guest = quest.guest().raw(b"\xbe" + RESULTS.to_bytes(4, "little"))
    guest.raw(b"\xb9\x05\x00\x00\x00\x66\xba\xf8\x03\xf3\x6e").end()
    assert quest.run(guest) == DONE
    assert bytes(access.value for access in quest.ports) == b"quest"


def test_a_string_of_port_reads(quest: Quest) -> None:
    quest.answers[0x64] = 0x7E
    # mov edi, RESULTS; mov ecx, 5; mov dx, 0x64; rep insb
    guest = quest.guest().raw(b"\xbf" + RESULTS.to_bytes(4, "little"))
    guest.raw(b"\xb9\x05\x00\x00\x00\x66\xba\x64\x00\xf3\x6c").end()
    assert quest.run(guest) == DONE
    assert quest.memory.read(RESULTS, 6) == b"~~~~~\0"


def test_a_triple_fault_is_told_from_other_ends(quest: Quest) -> None:
    stop = quest.run(quest.guest().crash())
    assert stop.reason is ExitReason.TRIPLE_FAULT
    assert f"at {CODE:#x}" in stop.detail


def test_an_instruction_that_is_not_emulated_is_named(quest: Quest) -> None:
    code = b"\x48\x0f\xc7\x0c\x25" + MMIO.to_bytes(4, "little")  # cmpxchg16b [MMIO]
    stop = quest.run(quest.guest().raw(code).end())
    assert stop.reason is ExitReason.EMULATION
    assert f"({code.hex(' ')}" in stop.detail and f"at {CODE:#x}" in stop.detail


def test_a_kernel_is_entered_by_pvh(quest: Quest) -> None:
    # 32-bit code: mov [RESULTS], ebx; mov eax, cr0; mov [RESULTS + 8], eax; mov dword [END], 1
    code = b"\x89\x1d" + RESULTS.to_bytes(4, "little") + b"\x0f\x20\xc0\xa3"
    code += (RESULTS + 8).to_bytes(4, "little") + b"\xc7\x05" + END.to_bytes(4, "little")
    quest.memory.write(CODE, code + b"\1\0\0\0")
    quest.cpu.set_entry(CODE, (0x7000,))
    assert quest.go_on() == DONE
    assert quest.value() == 0x7000
    assert quest.value(1) & 0x8000_0001 == 1  # protected, not paged


def test_firmwares_registers_are_the_same_in_each_cpu() -> None:
    with Quest(KVM, cpus=2) as made:
        cpus: list[Any] = list(made.cpus)
        first, second = (cpu.vcpu.get_msrs([0x2FF]) for cpu in cpus)
        assert first == second == {0x2FF: 0x806}  # on, write-back


def test_no_group_takes_what_is_not_its_size(quest: Quest) -> None:
    vcpu = quest.vcpu
    for group, size in kvm.SIZES.items():
        for wrong in (0, size - 1, size + 1):
            with pytest.raises(OSError, match="Invalid argument"):
                vcpu.set(group, bytes(wrong))
    for data in (b"", b"\xff" * 8, b"\1\0\0\0\0\0\0\0", bytes(9)):
        for group in (kvm.MSRS, kvm.CPUID):
            with pytest.raises(OSError, match="Invalid argument"):
                vcpu.set(group, data)
    with pytest.raises(OSError, match="Invalid argument"):
        vcpu.set(99, b"")


def test_msrs(quest: Quest) -> None:
    vcpu = quest.vcpu
    vcpu.set_msrs({0xC000_0082: 0x1234, 0xC000_0081: 0x10_0008_0000_0000})  # LSTAR, STAR
    assert vcpu.get_msrs([0xC000_0082]) == {0xC000_0082: 0x1234}
    with pytest.raises(OSError, match="MSR 0xc0000080"):
        vcpu.set_msrs({0xC000_0080: 1 << 63})  # EFER has no such bit


def test_a_machine_leaves_nothing_behind() -> None:
    gc.collect()  # of other tests' machines
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with Quest(KVM, cpus=2) as made:
            assert made.run(made.guest().end()) == DONE
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(("level", "times"), [(True, 3), (False, 1)], ids=["level", "edge"])
def test_an_interrupt_comes_again_while_its_level_is_high(
    quest: Quest, *, level: bool, times: int
) -> None:
    """The end of a level interrupt reaches the IOAPIC, which looks at the line; an edge is over."""
    guest = quest.guest()
    assert isinstance(guest, X86Guest)
    quest.load(guest.rest_with_handler(KVM.line, MMIO, level=level))
    bus = quest.mmio
    write = bus.write

    def fall(address: int, size: int, value: int) -> None:
        write(address, size, value)
        if address == MMIO and len(quest.accesses) == times:
            quest.vm.set_line(KVM.line, False)
            threading.Timer(0.1, quest.cpu.cancel).start()

    bus.write = fall
    threading.Timer(0.05, lambda: quest.vm.set_line(KVM.line, True)).start()
    assert quest.go_on().reason is ExitReason.CANCELED
    assert quest.accesses == [Access("write", MMIO, 4, 1)] * times
