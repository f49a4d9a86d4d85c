"""Several harts: started, interrupted and fenced by each other; what one stores, the other sees."""

import threading

import pytest

from crumble_native import rv64
from framework.rv64_asm import Assembler
from framework.rv64_board import (
    A0,
    A1,
    A2,
    A3,
    A6,
    A7,
    CODE,
    DATA,
    RAM,
    S0,
    S1,
    T0,
    T1,
    Board,
)

SSIE = 1 << 1


def second_hart(board: Board) -> threading.Thread:
    """Runs hart 1 in a thread until it is canceled."""

    def loop() -> None:
        while board.machine.hart(1).run().reason != rv64.EXIT_CANCELED:
            pass

    thread = threading.Thread(target=loop)
    thread.start()
    return thread


def sbi(asm: Assembler, extension: int, function: int, *arguments: int) -> None:
    """An SBI call with constant arguments."""
    for register, value in ((A7, extension), (A6, function), *enumerate(arguments, A0)):
        asm.li(register, value)
    asm.emit("ecall")


HSM, IPI, RFENCE = 0x48534D, 0x735049, 0x52464E43


def test_second_hart_is_started_interrupted_and_fenced() -> None:
    board = Board(harts=2)
    asm = Assembler(CODE)
    asm.li(S0, DATA)
    sbi(asm, HSM, 2, 1)
    asm.emit("sd", A1, S0, 0)  # status: stopped
    sbi(asm, HSM, 0, 1, CODE + 0x800, 42)
    asm.label("started")
    asm.emit("ld", T0, S0, 8)
    asm.to("beq", T0, 0, label="started")
    sbi(asm, RFENCE, 1, 2, 0, 0, -1)
    sbi(asm, RFENCE, 0, -1, -1)
    sbi(asm, IPI, 0, 2, 0)
    asm.label("interrupted")
    asm.emit("ld", T0, S0, 16)
    asm.to("beq", T0, 0, label="interrupted")
    sbi(asm, HSM, 0, 1, CODE, 0)
    asm.emit("sd", A0, S0, 24)  # already available
    board.finish(asm, T0)
    board.load(asm)
    other = Assembler(CODE + 0x800)
    other.li(S0, DATA)
    other.emit("csrrwi", 0, "sie", 2)
    other.emit("slli", A0, A0, 8)
    other.emit("add", A0, A0, A1)
    other.emit("sd", A0, S0, 8)
    other.emit("wfi")
    other.emit("csrrs", T0, "sip", 0)
    other.emit("sd", T0, S0, 16)
    other.label("loop")
    other.to("jal", 0, label="loop")
    board.load(other)
    board.start()
    thread = second_hart(board)
    assert board.result() == SSIE
    board.machine.hart(1).cancel()
    thread.join()
    assert board.word(DATA) == 1
    assert board.word(DATA + 8) == 0x100 + 42
    assert board.word(DATA + 24) == -6 & (1 << 64) - 1


def test_a_hart_is_started_before_its_thread_runs() -> None:
    board = Board(harts=2)
    asm = Assembler(CODE)
    sbi(asm, HSM, 0, 1, CODE + 0x800, 42)
    board.finish(asm, A0)
    board.load(asm)
    other = Assembler(CODE + 0x800)
    other.emit("slli", A0, A0, 8)
    other.emit("add", A0, A0, A1)
    board.finish(other, A0)
    board.load(other)
    board.start()
    assert board.result() == 0
    assert board.machine.hart(1).get_state().pc == CODE + 0x800  # as a capture would see it
    assert board.machine.hart(1).run().data == 0x100 + 42


def test_harts_agree_on_atomics() -> None:
    board = Board(harts=2)
    asm = Assembler(CODE)
    asm.li(S0, DATA)
    asm.li(S1, 20_000)
    asm.emit("addi", A2, 0, 1)
    asm.label("loop")
    asm.emit("amoadd.d", 0, S0, A2)
    asm.label("retry")
    asm.emit("lr.d", T0, A3)
    asm.emit("addi", T0, T0, 1)
    asm.emit("sc.d", T1, A3, T0)
    asm.to("bne", T1, 0, label="retry")
    asm.emit("addi", S1, S1, -1)
    asm.to("bne", S1, 0, label="loop")
    asm.emit("addi", T0, 0, 1)
    asm.emit("amoadd.d", 0, A1, T0)
    asm.label("join")
    asm.emit("ld", T0, A1, 0)
    asm.emit("addi", T0, T0, -2)
    asm.to("bne", T0, 0, label="join")
    board.finish(asm)
    board.load(asm)
    where = {A1: DATA + 64, A3: DATA + 8}
    board.start(x=where)
    state = board.hart.get_state()
    board.machine.hart(1).set_state(state)

    def run_other() -> None:
        assert board.machine.hart(1).run().reason == rv64.EXIT_MMIO_WRITE

    thread = threading.Thread(target=run_other)
    thread.start()
    board.result()
    thread.join()
    assert (board.word(DATA), board.word(DATA + 8)) == (40_000, 40_000)


@pytest.mark.parametrize("stores", [1, 600])
def test_code_written_by_one_hart_runs_on_another_after_a_remote_fence(stores: int) -> None:
    """Hart 0 patches a function hart 1 keeps calling; after each RFENCE it must see the new one.

    So many stores that the page is no longer kept as code change nothing.
    """
    board = Board(harts=2)
    function, result, turn = RAM + 0x9000, DATA, DATA + 8
    caller = Assembler(CODE + 0x800)
    caller.li(S0, function)
    caller.li(S1, result)
    caller.label("loop")
    caller.emit("jalr", 1, S0, 0)
    caller.emit("sd", A0, S1, 0)
    caller.to("jal", 0, label="loop")
    board.load(caller)
    patcher = Assembler(CODE)
    patcher.li(S0, function)
    patcher.li(S1, result)
    patcher.li(A3, 0x8082_4501)  # c.li a0, 0; c.jr ra
    patcher.label("next")
    patcher.emit("addi", A3, A3, 4)  # the immediate
    patcher.li(T0, stores)
    patcher.label("store")
    patcher.emit("sw", A3, S0, 0)
    patcher.emit("addi", T0, T0, -1)
    patcher.to("bne", T0, 0, label="store")
    sbi(patcher, RFENCE, 0, 2, 0)
    patcher.emit("sd", 0, S1, 0)
    patcher.emit("srli", A1, A3, 2)
    patcher.emit("andi", A1, A1, 31)
    # The call under way when the fence came may still store the old value: look twice.
    for step in ("first", "second"):
        patcher.emit("sd", 0, S1, 0)
        patcher.label(step)
        patcher.emit("ld", A2, S1, 0)
        patcher.to("beq", A2, 0, label=step)
    patcher.to("bne", A1, A2, label="wrong")
    patcher.emit("addi", A2, A2, -31)
    patcher.to("bne", A2, 0, label="next")
    patcher.label("wrong")
    board.finish(patcher, A1)
    board.load(patcher)
    board.memory.write(function, (0x8082_4501).to_bytes(4, "little"))
    board.set_word(turn, 0)
    board.start()
    state = board.hart.get_state()
    state.pc = CODE + 0x800
    board.machine.hart(1).set_state(state)
    thread = second_hart(board)
    assert board.result() == 31
    board.machine.hart(1).cancel()
    thread.join()
    assert board.word(result) in (0, 31)
