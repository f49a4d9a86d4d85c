"""What is pure of riscv64 on KVM: its registers' numbers, and the calls to firmware that KVM forwards."""

import mmap
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_native.memory import Memory
from crumble_vmm.hypervisor.kvm import riscv64_state, sbi
from crumble_vmm.hypervisor.kvm.sbi import DBCN, LEGACY_GET, LEGACY_PUT, Firmware

RAM, SIZE = 0x8000_0000, 1 << 16
ISA = 0x8030_0000_0700_0000
# KVM_RISCV_ISA_EXT_*: A 0, C 1, D 2, F 3, H 4, I 5, M 6, SSTC 8, SSAIA 14, ZICNTR 19, ZAWRS 61.
QEMU = dict.fromkeys((ISA + number for number in (0, 1, 2, 3, 4, 5, 6, 8, 14, 19, 61)), 1)


class Printed:
    def __init__(self) -> None:
        self.mapping = mmap.mmap(-1, SIZE)
        self.memory = Memory()
        self.memory.add(RAM, self.mapping)
        self.memory.write(RAM, b"hello")
        self.text = b""
        self.firmware = Firmware(self.memory, self.take)

    def take(self, data: bytes) -> None:
        self.text += data

    def call(self, extension: int, function: int = 0, *arguments: int) -> tuple[int, int]:
        return self.firmware.call([*arguments, *[0] * (6 - len(arguments)), function, extension])


@pytest.fixture
def printed() -> Iterator[Printed]:
    yield Printed()


def test_registers_are_numbered_as_in_the_kernels_header() -> None:
    assert riscv64_state.PC == 0x8030_0000_0200_0000
    assert riscv64_state.A0 == 0x8030_0000_0200_000A
    assert riscv64_state.FREQUENCY == 0x8030_0000_0400_0000
    assert riscv64_state.TIMER_STATE == 0x8030_0000_0400_0003
    assert riscv64_state.DEBUG_CONSOLE == 0x8030_0000_0800_0009


def test_a_guest_is_told_what_it_may_use() -> None:
    expected = ("i", "m", "a", "f", "d", "c", "sstc", "zawrs", "zicntr")
    assert riscv64_state.extensions(QEMU) == expected
    assert "sstc" not in riscv64_state.extensions({**QEMU, ISA + 8: 0})


def test_page_tables_and_cache_blocks() -> None:
    config = 0x8030_0000_0100_0000
    assert riscv64_state.mmu({config + 6: 10}) == "sv57"
    assert riscv64_state.mmu({}) == "sv39"  # kernels before 6.6 do not say
    assert riscv64_state.blocks({config + 1: 64, config + 5: 128}) == {"cbom": 64, "cboz": 128}
    assert riscv64_state.blocks({}) == {}


class Registers:
    """A vCPU as far as its registers go; KVM refuses to stop a timer that does not run."""

    def __init__(self, values: dict[int, int]) -> None:
        self.index, self.values, self.mp_state = 0, dict(values), bytes(4)
        self.written: list[int] = []

    def register_list(self) -> list[int]:
        return list(self.values)

    def get_register(self, number: int) -> bytes:
        if number not in self.values:
            raise OSError(2, "no such register")
        return self.values[number].to_bytes(8, "little")

    def set_register(self, number: int, data: bytes) -> None:
        if (number, data) == (riscv64_state.TIMER_STATE, bytes(8)):
            raise OSError(22, "the timer does not run")
        self.get_register(number)
        self.written.append(number)
        self.values[number] = int.from_bytes(data, "little")

    def get(self, _: int) -> bytes:
        return self.mp_state

    def set(self, _: int, data: bytes) -> None:
        self.mp_state = data


PC, TIME, COMPARE, TIMER = (
    riscv64_state.PC, riscv64_state.TIME, riscv64_state.COMPARE, riscv64_state.TIMER_STATE,
)  # fmt: skip


def cast(registers: Registers) -> Any:
    return registers


def test_a_state_goes_into_another_vcpu_but_for_the_time() -> None:
    source = Registers({PC: 8, TIME: 5, COMPARE: 9, TIMER: 0})
    target = Registers({PC: 8, TIME: 7, COMPARE: 1, TIMER: 1})
    source.mp_state = b"\1\0\0\0"
    riscv64_state.set_cpu(cast(target), riscv64_state.get_cpu(cast(source)))
    assert target.values == {PC: 8, TIME: 7, COMPARE: 9, TIMER: 1}
    assert (target.written, target.mp_state) == ([COMPARE], source.mp_state)


def test_a_vcpu_without_a_register_is_refused() -> None:
    state = riscv64_state.get_cpu(cast(Registers({PC: 8, ISA: 1})))
    with pytest.raises(ValueError, match="no such register"):
        riscv64_state.set_cpu(cast(Registers({PC: 8})), state)
    with pytest.raises(ValueError, match="vCPU 0"):
        riscv64_state.set_cpu(cast(Registers({})), {})


def test_a_timer_starts_again_when_the_time_is_set() -> None:
    first, second = Registers({TIME: 1, TIMER: 0}), Registers({TIME: 1, TIMER: 1})
    riscv64_state.set_time([cast(first), cast(second)], 100)
    assert (first.values[TIME], first.written, second.written) == (100, [TIME], [TIMER])


def test_the_debug_console_prints(printed: Printed) -> None:
    assert printed.call(DBCN, 0, 5, RAM) == (0, 5)
    assert printed.call(DBCN, 2, ord("!")) == (0, 0)
    assert printed.call(DBCN, 1, 5, RAM) == (0, 0)
    assert printed.call(LEGACY_PUT, 0, ord("?"), 77) == (0, 77)
    assert printed.call(LEGACY_GET) == (-1, 0)
    assert printed.text == b"hello!?"


def test_what_is_too_long_is_printed_in_parts(printed: Printed) -> None:
    assert printed.call(DBCN, 0, SIZE, RAM) == (0, sbi.MAX_PRINT)
    assert len(printed.text) == sbi.MAX_PRINT


@pytest.mark.parametrize(
    "arguments", [(5, RAM - 1), (5, RAM + SIZE - 4), (5, RAM, 1), (5, 2**64 - 1)]
)
def test_what_is_no_memory_is_not_printed(printed: Printed, arguments: tuple[int, ...]) -> None:
    assert printed.call(DBCN, 0, *arguments) == (sbi.INVALID_PARAM, 0)
    assert printed.text == b""


def test_there_is_nothing_else(printed: Printed) -> None:
    assert printed.call(DBCN, 3) == (sbi.NOT_SUPPORTED, 0)
    assert printed.call(0x0A00_0000) == (sbi.NOT_SUPPORTED, 0)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=8, max_size=8))
def test_every_call_has_an_answer(registers: list[int]) -> None:
    """Whatever a guest puts in its registers, it gets an error or no more than it asked for."""
    printed = Printed()
    for extension in (DBCN, registers[7]):
        error, _ = printed.firmware.call([*registers[:7], extension])
        assert error <= 0
