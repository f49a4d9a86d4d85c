"""What debuggers get from a hart: breakpoints, watchpoints, single steps, the trace."""

from __future__ import annotations

import struct

import pytest

from crumble_native import rv64
from crumble_native.rv64 import Debug
from framework.rv64_asm import Assembler, encode
from framework.rv64_board import A0, A1, A2, CODE, DATA, DONE, T0, Board

LOOP = CODE + 8


@pytest.fixture
def board() -> Board:
    """A loop that counts a0 to 10 and stores it at DATA each time round."""
    found = Board()
    asm = Assembler(CODE)
    asm.emit("addi", A0, 0, 0)
    asm.emit("addi", T0, 0, 10)
    asm.label("loop")
    asm.emit("addi", A0, A0, 1)
    asm.emit("sd", A0, A1, 0)
    asm.emit("ld", A2, A1, 0)
    asm.to("bne", A0, T0, label="loop")
    Board.finish(asm)
    found.load(asm)
    found.start(x={A1: DATA})
    return found


def stop(board: Board, wanted: Debug | None = None) -> tuple[int, int, int]:
    """Why and where it stopped, and a0."""
    if wanted is not None:
        board.hart.set_debug(wanted)
    found = board.run()
    assert found.reason == rv64.EXIT_DEBUG, found
    state = board.hart.get_state()
    return found.data, state.pc, state.x[A0]


def test_steps_are_one_instruction(board: Board) -> None:
    wanted = Debug(step=True)
    places = [stop(board, wanted if at == 0 else None)[1] for at in range(7)]
    assert places == [CODE + 4, LOOP, LOOP + 4, LOOP + 8, LOOP + 12, LOOP, LOOP + 4]
    assert board.hart.get_state().instret == 7


def test_a_step_goes_into_a_trap(board: Board) -> None:
    board.memory.write(CODE, struct.pack("<I", encode("ecall")))
    board.memory.write(CODE, struct.pack("<I", 0))
    assert stop(board, Debug(step=True))[1] == board.hart.get_state().stvec


def test_a_breakpoint_stops_each_time_before_its_instruction(board: Board) -> None:
    wanted = Debug(breakpoints=(LOOP + 4,))
    found = [stop(board, wanted if at == 0 else None) for at in range(3)]
    assert found == [(rv64.STOP_BREAK, LOOP + 4, count) for count in (1, 2, 3)]
    board.hart.set_debug(Debug())
    assert board.result() == 10


def test_debugging_counts_instructions_as_running_does(board: Board) -> None:
    board.result()
    expected = board.hart.get_state().instret
    board.start(x={A1: DATA}, instret=0)
    board.hart.set_debug(Debug(trace=4))
    board.result()
    assert board.hart.get_state().instret == expected


@pytest.mark.parametrize(
    ("kind", "places"),
    [(rv64.WATCH_WRITE, [LOOP + 8, LOOP + 8]), (rv64.WATCH_READ, [LOOP + 12, LOOP + 12]),
     (rv64.WATCH_READ | rv64.WATCH_WRITE, [LOOP + 8, LOOP + 12])],
)  # fmt: skip
def test_a_watchpoint_stops_behind_the_access(board: Board, kind: int, places: list[int]) -> None:
    wanted = Debug(watchpoints=((DATA + 4, 2, kind),))
    found = [stop(board, wanted if at == 0 else None) for at in range(2)]
    assert [(why, pc) for why, pc, _ in found] == [(rv64.STOP_WATCH, pc) for pc in places]


def test_what_lies_beside_a_watchpoint_is_not_watched(board: Board) -> None:
    board.hart.set_debug(Debug(watchpoints=((DATA + 8, 8, 3), (DATA - 8, 8, 3))))
    assert board.result() == 10


def test_a_hot_block_stops_as_well(board: Board) -> None:
    """Code that was decoded, and maybe translated, before anybody debugged."""
    board.result()
    board.start(x={A1: DATA})
    assert stop(board, Debug(breakpoints=(LOOP,))) == (rv64.STOP_BREAK, LOOP, 0)


def test_the_trace_has_the_last_instructions(board: Board) -> None:
    board.hart.set_debug(Debug(trace=6))
    found = board.run()
    assert (found.reason, found.gpa) == (rv64.EXIT_MMIO_WRITE, DONE)
    trace = board.hart.trace()
    assert len(trace) == 6
    end = trace[-1]
    assert end == (trace[-2][0] + 4, encode("sd", A0, 31, 0), 1)
    board.hart.set_debug(Debug())
    assert board.hart.trace() == []


def test_more_than_there_is_room_for_is_refused(board: Board) -> None:
    many = tuple(range(0, 2 * rv64.MAX_BREAKPOINTS + 2, 2))
    for wanted in (
        Debug(breakpoints=many),
        Debug(trace=rv64.MAX_TRACE + 1),
        Debug(watchpoints=((0, 0, 1),)),
    ):
        with pytest.raises(ValueError, match=r"breakpoints|debugged"):
            board.hart.set_debug(wanted)
