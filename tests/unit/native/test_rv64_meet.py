"""A deterministic hart is met at the same instructions, whatever else is asked of it meanwhile."""

from crumble_native import rv64
from framework.rv64_asm import Assembler
from framework.rv64_board import CODE, T0, Board

NEVER = (1 << 64) - 1
SLICE = 10_000


def counting(*, waits: bool = False) -> Board:
    """A loop that counts in t0, or a WFI that nothing ends."""
    board = Board(deterministic=True)
    asm = Assembler(CODE)
    asm.label("again")
    asm.emit("addi", T0, T0, 1)
    if waits:
        asm.emit("wfi")
    asm.to("jal", 0, label="again")
    board.load(asm)
    board.start()
    return board


def test_it_is_met_at_the_first_slice_with_so_many_instructions() -> None:
    found = []
    for canceled in (0, 5):
        board = counting()
        for _ in range(canceled):
            board.hart.cancel()
            assert board.hart.run().reason == rv64.EXIT_CANCELED
        stops = []
        for wanted in (25_000, 0, 25_000, 100_000):
            board.hart.meet(wanted)
            stop = board.hart.run()
            assert (stop.reason, stop.data) == (rv64.EXIT_MEET, 0)
            assert stop.extra == board.hart.instret == board.hart.get_state().instret
            assert stop.extra >= wanted
            stops.append((stop.extra, board.hart.get_state().x[T0]))
        found.append(stops)
    assert found[0] == found[1]
    counts = [count for count, _ in found[0]]
    assert counts == sorted(set(counts))
    assert counts[0] - 25_000 <= SLICE


def test_where_nothing_goes_on_it_is_met_at_once() -> None:
    board = counting(waits=True)
    board.hart.meet(NEVER - 1)
    stop = board.hart.run()
    assert (stop.reason, stop.data) == (rv64.EXIT_MEET, 1)
    assert stop.extra == board.hart.instret < 10
    assert board.hart.get_state().waiting == 1


def test_a_meeting_can_be_taken_back() -> None:
    board = counting(waits=True)
    board.hart.meet(0)
    board.hart.meet(NEVER)
    board.hart.cancel()
    assert board.hart.run().reason == rv64.EXIT_CANCELED
