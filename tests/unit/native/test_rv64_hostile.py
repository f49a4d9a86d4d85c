"""Hostile guests. Invariant: whatever a guest executes, the run loop comes back when it is canceled
or done, memory beside the guest's is untouched (the sanitizers watch), and the state is a legal one.
"""

import mmap
import random
import struct
import threading

import pytest

from crumble_native import rv64
from crumble_native.memory import Memory
from framework.rv64_asm import encode
from framework.rv64_board import CODE, RAM, SIZE, TABLES, Board

GUARD = 16 * 4096
PLIC = 0x0C00_0000
# Instructions that random words rarely hit, with registers that hold addresses and wild values.
PRIVILEGED = (
    encode("sret"), encode("wfi"), encode("ecall"), encode("ebreak"), encode("fence.i"),
    encode("sfence.vma", 0, 0), encode("sfence.vma", 5, 0), encode("sfence.vma", 5, 6),
    encode("csrrw", 5, "satp", 6), encode("csrrw", 5, "stvec", 7), encode("csrrw", 0, "sepc", 8),
    encode("csrrs", 5, "sstatus", 6), encode("csrrc", 5, "sstatus", 7), encode("csrrw", 0, "sie", 5),
    encode("csrrw", 0, "stimecmp", 6), encode("csrrw", 0, "sip", 5), encode("csrrw", 0, "fcsr", 5),
    encode("cbo.zero", 8), encode("sd", 5, 8, 0), encode("ld", 6, 8, 0), encode("jalr", 1, 8, 0),
    encode("sw", 5, 9, 0), encode("lw", 6, 9, 4), encode("amoadd.d", 5, 8, 6), encode("lr.d", 5, 8),
    encode("sc.d", 5, 8, 6),
)  # fmt: skip


class Guarded(Board):
    """A board whose RAM lies between two guard areas."""

    def __init__(self, harts: int = 1) -> None:
        self.mapping = mmap.mmap(-1, SIZE + 2 * GUARD)
        self.mapping[:GUARD] = self.mapping[GUARD + SIZE :] = b"\xa5" * GUARD
        memory = Memory()
        memory.add(RAM, self.mapping, offset=GUARD, size=SIZE)
        super().__init__(harts, memory)

    def check(self) -> None:
        """Nothing beside the guest's memory changed, and every hart's state can be set again."""
        assert self.mapping[:GUARD] == b"\xa5" * GUARD
        assert self.mapping[GUARD + SIZE :] == b"\xa5" * GUARD
        for index in range(len(self.machine._harts)):
            hart = self.machine.hart(index)
            hart.set_state(hart.get_state())


def soup(source: random.Random, size: int) -> bytes:
    """Random halfwords, random words, and privileged instructions."""
    parts: list[bytes] = []
    for _ in range(size // 2):  # enough, as each is at least two bytes
        choice = source.random()
        if choice < 0.4:
            parts.append(struct.pack("<I", source.choice(PRIVILEGED)))
        elif choice < 0.7:
            parts.append(struct.pack("<I", source.getrandbits(32) | 3))
        else:
            parts.append(source.randbytes(2))
    return b"".join(parts)[:size]


def wild(source: random.Random) -> int:
    """A register: an address of ours, one at an edge, or anything."""
    return source.choice(
        [
            RAM + source.randrange(SIZE),
            CODE + source.randrange(0x2000),
            RAM + SIZE - source.randrange(16),
            PLIC + source.randrange(0x400_0000),
            8 << 60 | TABLES >> 12,
            9 << 60 | TABLES >> 12,
            source.getrandbits(64),
            (1 << 64) - source.randrange(1, 4096),
        ]
    )


def serve(board: Board, index: int, until: threading.Event) -> None:
    """Runs a hart, answering every exit with junk, until told to stop."""
    answer = 0
    while not until.is_set():
        stop = board.machine.hart(index).run(answer)
        answer = 0xDEAD_BEEF_0BAD_F00D
        if stop.reason in (rv64.EXIT_CRASH, rv64.EXIT_RESET, rv64.EXIT_STOPPED):
            return


@pytest.mark.parametrize("seed", range(40))
def test_random_supervisor_programs(seed: int) -> None:
    source = random.Random(seed)
    board = Guarded(harts=1 + seed % 2)
    board.memory.write(RAM, soup(source, 0x8000))
    # Page tables of random entries that mostly point into RAM.
    entries = [
        (RAM + source.randrange(SIZE) >> 12) << 10
        | source.choice([1, 0xCF, 0xDF, source.getrandbits(8)])
        for _ in range(2048)
    ]
    board.memory.write(TABLES, struct.pack("<2048Q", *entries))
    for index in range(1 + seed % 2):
        state = board.machine.hart(index).get_state()
        state.x[1:] = [wild(source) for _ in range(31)]
        state.pc, state.stvec, state.hsm = CODE, RAM + 0x1000 + seed * 4, 0
        state.privilege, state.sstatus = 1 - seed // 3 % 2, source.getrandbits(64) & 0xC6122
        state.satp = 8 << 60 | TABLES >> 12 if seed % 3 == 0 else 0
        board.machine.hart(index).set_state(state)
    until = threading.Event()
    harts = range(1 + seed % 2)
    threads = [threading.Thread(target=serve, args=(board, index, until)) for index in harts]
    for thread in threads:
        thread.start()
    threads[0].join(0.03)
    until.set()
    for index, thread in enumerate(threads):
        board.machine.hart(index).cancel()
        thread.join(20)
        assert not thread.is_alive()
    board.check()


@pytest.mark.parametrize("seed", range(10))
def test_random_user_programs(seed: int) -> None:
    """In USER mode every run ends in a trap or in a cancel."""
    source = random.Random(seed)
    board = Guarded()
    board.machine.close()
    machine = rv64.Machine(board.memory, mode=rv64.USER)
    hart = machine.hart(0)
    for _ in range(40):
        board.memory.write(CODE, soup(source, 0x1000))
        state = hart.get_state()
        state.x[1:] = [wild(source) for _ in range(31)]
        state.pc = CODE
        hart.set_state(state)
        timer = threading.Timer(0.05, hart.cancel)
        timer.start()
        stop = hart.run()
        timer.cancel()
        timer.join()
        assert stop.reason in (rv64.EXIT_TRAP, rv64.EXIT_CANCELED)
        hart.cancel()
        assert hart.run().reason in (rv64.EXIT_TRAP, rv64.EXIT_CANCELED)
    assert board.mapping[:GUARD] == b"\xa5" * GUARD
    assert board.mapping[GUARD + SIZE :] == b"\xa5" * GUARD
