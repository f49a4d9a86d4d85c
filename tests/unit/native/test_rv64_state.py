"""State that is read and set back, what is refused, the PLIC's image, time, and SBI's base calls."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_native import rv64
from crumble_native.memory import Memory
from framework.rv64_asm import Assembler
from framework.rv64_board import A0, A1, A6, A7, CODE, SIZE, T0, Board

MASK = (1 << 64) - 1
word = st.integers(0, MASK)


def test_a_new_hart_is_in_supervisor_mode_with_everything_off() -> None:
    board = Board(harts=2)
    state = board.hart.get_state()
    assert (state.privilege, state.satp, state.sie, state.hsm) == (1, 0, 0, 0)
    assert state.x == [0] * 32
    assert board.machine.hart(1).get_state().hsm == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(word, min_size=63, max_size=63), st.integers(0, 255), st.integers(0, 1))
def test_state_round_trip(words: list[int], fcsr: int, bit: int) -> None:
    """Whatever set_state takes, get_state gives back."""
    board = Board()
    state = dataclasses.replace(
        board.hart.get_state(),
        x=[0, *words[:31]],
        f=words[31:],
        pc=words[0] & ~1,
        fcsr=fcsr,
        privilege=bit,
        sstatus=2 << 32 | 0xC6122 * bit,
        sie=0x222 * bit,
        sip=2 * bit,
        stvec=words[1] & ~2,
        sscratch=words[2],
        sepc=words[3] & ~1,
        scause=words[4],
        stval=words[5],
        satp=(8 + bit) << 60 | words[6] >> 4,
        scounteren=7 * bit,
        senvcfg=0xF1 * bit,
        stimecmp=words[7],
        instret=words[8],
        waiting=bit,
    )
    board.hart.set_state(state)
    assert board.hart.get_state() == state


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pc", 1),
        ("fcsr", 256),
        ("privilege", 2),
        ("privilege", 3),
        ("sstatus", 1 << 15),
        ("sie", 1),
        ("sip", 1 << 9),
        ("stvec", 2),
        ("sepc", 1),
        ("senvcfg", 1 << 63),
        ("satp", 10 << 60),
        ("satp", 1),
        ("hsm", 2),
        ("waiting", 2),
        ("pc", -2),
        ("pc", 1 << 64),
    ],
)
def test_impossible_state_is_refused(field: str, value: int) -> None:
    board = Board()
    state = board.hart.get_state()
    setattr(state, field, value)
    with pytest.raises(ValueError, match="not a hart state"):
        board.hart.set_state(state)
    state = board.hart.get_state()
    state.x[0] = 1
    with pytest.raises(ValueError, match="not a hart state"):
        board.hart.set_state(state)


def test_a_program_goes_on_in_another_machine() -> None:
    first = Board()
    asm = Assembler(CODE)
    asm.label("loop")
    asm.emit("addi", A0, A0, 1)
    asm.to("bne", A0, A1, label="loop")
    first.finish(asm)
    first.load(asm)
    first.start(x={A0: 0, A1: 300_000_000})
    assert first.run(timeout=0.05).reason == rv64.EXIT_CANCELED
    state = first.hart.get_state()
    assert 0 < state.x[A0] < 300_000_000
    second = Board()
    second.ram[:] = first.ram[:]
    state.x[A1] = state.x[A0] + 10
    second.hart.set_state(state)
    assert second.result() == state.x[A0] + 10


def test_plic_image_round_trip_and_refusals() -> None:
    board = Board()
    asm = Assembler(CODE)
    for address, value in ((0x0C00_0010, 5), (0x0C00_2000, 1 << 4), (0x0C20_0000, 2)):
        asm.li(T0, address)
        asm.li(A0, value)
        asm.emit("sw", A0, T0, 0)
    board.finish(asm)
    board.load(asm)
    board.machine.set_line(4, True)
    board.start()
    board.result()
    image = board.machine.get_plic()
    other = Board()
    other.machine.set_plic(image)
    assert other.machine.get_plic() == image
    with pytest.raises(ValueError, match="PLIC state"):
        other.machine.set_plic(image[:-1])
    for bad in (bytes(4096), b"\xff" * 4096, image[:8] + b"\xff" + image[9:]):
        with pytest.raises(ValueError, match="PLIC state"):
            other.machine.set_plic(bad)
    assert other.machine.get_plic() == image


def test_time_starts_at_zero_and_can_be_set() -> None:
    machine = Board().machine
    assert machine.time < 100_000_000
    machine.time = 1 << 50
    assert 0 <= machine.time - (1 << 50) < 100_000_000


@pytest.mark.parametrize(
    ("harts", "mode", "timebase"),
    [(0, 0, 1), (17, 0, 1), (1, 2, 1), (2, 1, 1), (1, 0, 0), (1, 0, 10**9 + 1)],
)
def test_impossible_machines_are_refused(harts: int, mode: int, timebase: int) -> None:
    with pytest.raises(ValueError, match="machine"):
        rv64.Machine(Board().memory, harts, mode=mode, timebase=timebase)


def test_a_machine_needs_memory() -> None:
    with pytest.raises(ValueError, match="machine"):
        rv64.Machine(Memory())


def call(extension: int, function: int, *arguments: int, harts: int = 1) -> tuple[int, int]:
    """An SBI call's error and value."""
    board = Board(harts=harts)
    asm = Assembler(CODE)
    for register, value in ((A7, extension), (A6, function), *enumerate(arguments, A0)):
        asm.li(register, value)
    asm.emit("ecall")
    board.finish(asm)
    board.load(asm)
    board.start()
    error = board.result()
    return error - (1 << 64) if error >> 63 else error, board.hart.get_state().x[A1]


EXTENSIONS = [0x10, 0x54494D45, 0x735049, 0x52464E43, 0x48534D, 0x53525354, 0x4442434E]


def test_sbi_base() -> None:
    assert call(0x10, 0) == (0, 2 << 24)
    for extension in EXTENSIONS:
        assert call(0x10, 3, extension) == (0, 1)
        assert call(extension, 99)[0] == -2
    assert call(0x10, 3, 0x504D55) == (0, 0)
    assert call(0x504D55, 0)[0] == -2


@pytest.mark.parametrize("extension", [0x735049, 0x52464E43])
def test_sbi_refuses_harts_that_do_not_exist(extension: int) -> None:
    assert call(extension, 0, 2, 0)[0] == -3
    assert call(extension, 0, 1, 5)[0] == -3
    assert call(extension, 0, 1, MASK - 1)[0] == -3
    assert call(extension, 0, 0, MASK)[0] == 0


def test_sbi_hart_state() -> None:
    assert call(0x48534D, 2, 0) == (0, 0)
    assert call(0x48534D, 2, 1, harts=2) == (0, 1)
    assert call(0x48534D, 2, 1)[0] == -3
    assert call(0x48534D, 0, 1, 0, 0, harts=2)[0] == -5
    assert call(0x48534D, 0, 0, CODE, 0)[0] == -6
    assert call(0x48534D, 3, 5)[0] == -3


def test_sbi_stop_is_an_exit() -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.li(A7, 0x48534D)
    asm.li(A6, 1)
    asm.emit("ecall")
    board.load(asm)
    board.start()
    assert board.run().reason == rv64.EXIT_STOPPED
    assert board.hart.get_state().hsm == 1
    assert board.run(timeout=0.02).reason == rv64.EXIT_CANCELED


def test_memory_is_given_back_its_missing_page_state() -> None:
    board = Board()
    with pytest.raises(ValueError, match="guest memory"):
        rv64.Machine(board.memory)
    board.machine.close()
    rv64.Machine(board.memory).close()
    board.memory.write(CODE, b"x")
    assert board.memory.read(CODE, 1) == b"x"
    assert len(board.ram) == SIZE
