"""A bare SYSTEM-mode machine for hand-assembled programs.

RAM at RAM; programs end by storing to DONE (`Board.finish`), which is no RAM and so an exit. Traps a
test did not ask for end at TRAP_VECTOR, which leaves scause, stval and sepc in a0, a1 and a2.
"""

from __future__ import annotations

import mmap
import struct
import threading

from crumble_native import rv64
from crumble_native.memory import Memory
from framework.rv64_asm import Assembler

RAM = 0x8000_0000
DONE = 0x10_0000
TRAP_VECTOR = RAM + 0x1000
CODE = RAM + 0x2000
DATA = RAM + 0x10_0000
TABLES = RAM + 0x20_0000
SIZE = 4 << 20
# Registers by the ABI's names.
ZERO, RA, SP, GP, TP, T0, T1, T2, S0, S1, A0, A1, A2, A3, A4, A5, A6, A7 = range(18)
T3, T4, T5, T6 = 28, 29, 30, 31
V, R, W, X, U, G, A, D = (1 << bit for bit in range(8))
FULL = V | R | W | X | A | D
VA = 0x40_0000_0000 - 0x5000  # high in the low half of Sv39, in no superpage
SUM, MXR, SPP, SPIE, SIE = 1 << 18, 1 << 19, 1 << 8, 1 << 5, 1 << 1
FS_DIRTY = 3 << 13


class Board:
    """The machine. `hart` is hart 0."""

    def __init__(
        self, harts: int = 1, memory: Memory | None = None, *, deterministic: bool = False
    ) -> None:
        self.ram = mmap.mmap(-1, SIZE)
        self.memory = memory or Memory()
        if memory is None:
            self.memory.add(RAM, self.ram)
        self.machine = rv64.Machine(self.memory, harts, deterministic=deterministic)
        self.hart = self.machine.hart(0)
        self._next_table = TABLES
        self._install_vector()

    def _install_vector(self) -> None:
        asm = Assembler(TRAP_VECTOR)
        for register, csr in ((A0, "scause"), (A1, "stval"), (A2, "sepc")):
            asm.emit("csrrs", register, csr, 0)
        self.finish(asm)
        self.load(asm)

    @staticmethod
    def finish(asm: Assembler, register: int = A0) -> None:
        """Ends the program with `register` as the exit's data. Clobbers t6."""
        asm.li(T6, DONE)
        asm.emit("sd", register, T6, 0)

    def load(self, asm: Assembler) -> None:
        """Puts a program where it was assembled for."""
        self.memory.write(asm.base, asm.code())

    def word(self, gpa: int) -> int:
        """The 64-bit word at a guest-physical address."""
        found: int = struct.unpack("<Q", self.memory.read(gpa, 8))[0]
        return found

    def set_word(self, gpa: int, value: int) -> None:
        """Stores a 64-bit word."""
        self.memory.write(gpa, struct.pack("<Q", value & (1 << 64) - 1))

    def start(self, pc: int = CODE, x: dict[int, int] | None = None, **fields: int) -> None:
        """Sets registers and other fields of the state; the trap vector is ours unless given."""
        state = self.hart.get_state()
        state.pc, state.stvec = pc, TRAP_VECTOR
        for number, value in (x or {}).items():
            state.x[number] = value & (1 << 64) - 1
        for name, value in fields.items():
            setattr(state, name, value)
        self.hart.set_state(state)

    def run(self, answer: int = 0, timeout: float = 20) -> rv64.Exit:
        """Runs hart 0 to its next exit, CANCELED after `timeout` seconds at the latest."""
        timer = threading.Timer(timeout, self.hart.cancel)
        timer.start()
        try:
            return self.hart.run(answer)
        finally:
            timer.cancel()

    def result(self) -> int:
        """Runs to the program's `finish`; gives its value."""
        stop = self.run()
        assert (stop.reason, stop.gpa) == (rv64.EXIT_MMIO_WRITE, DONE), stop
        return stop.data

    def trap(self) -> tuple[int, int, int]:
        """Runs into a trap; gives scause, stval and sepc."""
        cause = self.result()
        x = self.hart.get_state().x
        assert cause == x[A0]
        return cause, x[A1], x[A2]

    # ---- Page tables

    def new_table(self) -> int:
        """An empty page for a table."""
        self._next_table += 0x1000
        return self._next_table - 0x1000

    def map(
        self, root: int, va: int, pa: int, flags: int, *, levels: int = 3, leaf: int = 0
    ) -> int:
        """Maps a page (or, with leaf > 0, a superpage); gives the address of its entry."""
        table = root
        for level in range(levels - 1, leaf, -1):
            entry = table + (va >> 12 + 9 * level & 511) * 8
            if not self.word(entry):
                self.set_word(entry, self.new_table() >> 12 << 10 | V)
            table = self.word(entry) >> 10 << 12
        entry = table + (va >> 12 + 9 * leaf & 511) * 8
        self.set_word(entry, pa >> 12 << 10 | flags)
        return entry

    def identity(self, *, levels: int = 3) -> int:
        """A root that maps RAM and DONE onto themselves for S-mode."""
        root = self.new_table()
        for pa in range(RAM, RAM + SIZE, 1 << 21):
            self.map(root, pa, pa, V | R | W | X | A | D | G, levels=levels, leaf=1)
        self.map(root, DONE, DONE, V | R | W | A | D | G, levels=levels)
        return root

    @staticmethod
    def satp(root: int, *, levels: int = 3, asid: int = 0) -> int:
        """The register's value for a root table."""
        return (levels + 5) << 60 | asid << 44 | root >> 12
