"""The soft CPU's translator: what it leaves to others, what happens where it may not be, how soon it looks up."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable

import pytest

from crumble_native import rv64
from framework.rv64_asm import Assembler, encode
from framework.rv64_board import A0, A1, A2, CODE, DATA, FS_DIRTY, RA, S0, S1, T0, T1, T2, Board
from framework.rv64_engine import EAGER, HOT, INTERPRETER, engine
from framework.rv64_more import encode_more

needs_translator = pytest.mark.skipif(
    rv64.translator_state() != rv64.TRANSLATOR_ON, reason="no translator on this host"
)
STIE = 1 << 5
SLICE = 10_000

# Loads everything, then has the kernel refuse what maps executable memory (mmap is 9 on x86-64).
DENIED = """
import ctypes, json, struct
from crumble_native import rv64
from crumble_vmm.hypervisor.soft.machine import SoftHypervisor
from framework.rv64_board import A0, CODE, Board
from framework.rv64_asm import Assembler
steps = [(0x20, 0, 0, 0), (0x15, 0, 3, 9), (0x20, 0, 0, 32), (0x45, 0, 1, 4), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)]
filters = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
program = struct.pack("<HxxxxxxQ", len(steps), ctypes.addressof(filters))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
board = Board()
asm = Assembler(CODE)
asm.li(A0, 5000)
asm.label("loop")
asm.emit("addi", A0, A0, -1)
asm.to("bne", A0, 0, label="loop")
board.finish(asm)
board.load(asm)
board.start()
probe = SoftHypervisor().probe()
print(json.dumps([board.result(), board.hart.fallbacks(), rv64.translator_state(), probe.usable, probe.reason]))
"""


@needs_translator
def test_a_host_that_forbids_executable_memory_interprets_and_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DENIED],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result, fallbacks, state, usable, reason = json.loads(done.stdout)
    assert (result, fallbacks, state, usable) == (0, {}, rv64.TRANSLATOR_FORBIDDEN, True)
    assert "forbids executable memory" in reason


def test_the_translator_can_be_turned_off() -> None:
    with engine(INTERPRETER):
        assert rv64.translator_state() == rv64.TRANSLATOR_OFF
        board = Board()
    load_mixture(board)
    assert board.hart.fallbacks() == {}


MIXTURE = (
    encode("amomin.w", T0, A1, A2), encode("amomax.d", T0, A1, A2), encode("amominu.d", T0, A1, A2),
    encode("amomaxu.w", T0, A1, A2), encode("amoadd.d", T0, A1, A2), encode("lr.w", T0, A1), encode("sc.w", T0, A1, A2),
    encode_more("flh", 1, A1), struct.unpack("<I", struct.pack("<I", 0x1027 | 1 << 20 | A1 << 15))[0],
    encode_more("czero.eqz", T0, A1, A2), encode("fadd.d", 1, 2, 3),
)  # fmt: skip


def load_mixture(board: Board) -> int:
    asm = Assembler(CODE)
    asm.li(S0, 100)
    asm.label("loop")
    for word in MIXTURE:
        asm.raw(struct.pack("<I", word))
    asm.emit("addi", S0, S0, -1)
    asm.to("bne", S0, 0, label="loop")
    asm.emit("csrrs", A0, "instret", 0)
    board.finish(asm)
    board.load(asm)
    board.start(x={A1: DATA, A2: 77}, sstatus=FS_DIRTY)
    return board.result()


@needs_translator
def test_common_operations_are_not_left_to_the_interpreter() -> None:
    with engine(EAGER):
        board = Board()
    load_mixture(board)
    left = {name: counts[1] for name, counts in board.hart.fallbacks().items() if counts[1]}
    # The first atomic finds no entry in the TLB; and blocks are left once before they are translated.
    assert sum(left.values()) <= 4, left


def test_engines_count_the_same_instructions() -> None:
    found = set()
    for name in (INTERPRETER, HOT, EAGER):
        with engine(name):
            found.add(load_mixture(Board()))
    assert len(found) == 1


def test_clearing_a_page_looks_it_up_once() -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.label("loop")
    asm.emit("cbo.zero", A1)
    asm.emit("addi", A1, A1, 64)
    asm.to("bltu", A1, A2, label="loop")
    board.finish(asm, A1)
    board.load(asm)
    board.memory.write(DATA - 8, b"\1" * (16 + 4 * 4096))
    board.start(x={A1: DATA, A2: DATA + 4 * 4096})
    board.result()
    assert bytes(board.memory.read(DATA - 8, 16 + 4 * 4096)) == (
        b"\1" * 8 + bytes(4 * 4096) + b"\1" * 8
    )
    assert board.hart.counters()["tlb_fills"] < 12


# Blocks of loads that translate to much code: more than the cache holds, of few operations.
BLOCKS, LOADS = 9000, 60


def run_much_code(name: str) -> tuple[int, int]:
    with engine(name):
        board = Board()
    body = struct.pack("<I", encode("ld", T1, T2, 0)) * LOADS
    body += struct.pack("<II", encode("addi", A0, A0, 1), encode("jalr", 0, RA, 0))
    asm = Assembler(CODE)
    asm.label("outer")
    asm.emit("addi", T0, A1, 0)
    asm.label("loop")
    asm.emit("jalr", RA, T0, 0)
    asm.emit("addi", T0, T0, len(body))
    asm.to("bltu", T0, A2, label="loop")
    asm.emit("addi", S0, S0, -1)
    asm.to("bne", S0, 0, label="outer")
    board.finish(asm)
    board.load(asm)
    board.memory.write(DATA, body * BLOCKS)
    board.start(x={A1: DATA, A2: DATA + len(body) * BLOCKS, S0: 2, T2: CODE})
    return board.result(), board.hart.counters()["block_flushes"]


@needs_translator
def test_translated_code_is_evicted_when_there_is_too_much() -> None:
    assert run_much_code(INTERPRETER) == (2 * BLOCKS, 0)
    result, flushes = run_much_code(EAGER)
    assert result == 2 * BLOCKS
    assert flushes > 0


def spin_in_place(asm: Assembler) -> None:
    asm.label("spin")
    asm.to("jal", 0, label="spin")


def spin_over_pages(asm: Assembler) -> None:
    asm.label("spin")
    asm.to("la", T0, label="far")
    asm.emit("jalr", 0, T0, 0)
    asm.raw(bytes(8192))
    asm.label("far")
    asm.to("jal", 0, label="spin")


def spin_by_calls(asm: Assembler) -> None:
    asm.label("spin")
    asm.to("jal", RA, label="function")
    asm.to("jal", 0, label="spin")
    asm.label("function")
    asm.emit("addi", T1, T1, 1)
    asm.emit("jalr", 0, RA, 0)


@pytest.mark.parametrize("name", [INTERPRETER, HOT, EAGER])
@pytest.mark.parametrize("spin", [spin_in_place, spin_over_pages, spin_by_calls])
def test_a_due_interrupt_is_taken_within_a_slice(
    name: str, spin: Callable[[Assembler], None]
) -> None:
    """From the moment the guest has seen that its timer is due, instructions count until the trap."""
    with engine(name):
        board = Board()
    handler = Assembler(DATA)
    handler.emit("csrrs", A0, "instret", 0)
    handler.emit("sub", A0, A0, S1)
    board.finish(handler)
    board.load(handler)
    asm = Assembler(CODE)
    asm.emit("csrrs", S0, "time", 0)
    asm.emit("addi", S0, S0, 2000)
    asm.emit("csrrw", 0, "stimecmp", S0)
    asm.label("wait")
    asm.emit("csrrs", T0, "time", 0)
    asm.to("bltu", T0, S0, label="wait")
    asm.emit("csrrs", S1, "instret", 0)
    asm.emit("csrrsi", 0, "sstatus", 2)
    spin(asm)
    board.load(asm)
    board.start(sie=STIE, stvec=DATA)
    assert board.result() <= SLICE + 100
