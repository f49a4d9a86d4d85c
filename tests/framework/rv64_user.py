"""One hart of the soft CPU in USER mode, for tests of single instructions."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field

from crumble_native import rv64
from crumble_native.memory import Memory
from framework.rv64_asm import encode

BASE = 0x4000_0000
CAUSE_ILLEGAL, CAUSE_BREAKPOINT, CAUSE_ECALL_FROM_U = 2, 3, 8
FENCE_I = struct.pack("<I", encode("fence.i"))
ECALL = struct.pack("<I", encode("ecall"))


@dataclass
class Outcome:
    """How a snippet ended: the trap's cause and the registers then."""

    cause: int
    tval: int
    pc: int
    fcsr: int
    x: list[int] = field(repr=False)
    f: list[int] = field(repr=False)


class UserHart:
    """Snippets are installed once, each at an address of its own, and run with any registers."""

    def __init__(self, size: int = 1 << 20, vlen: int = 128) -> None:
        self.ram = mmap.mmap(-1, size)
        self._memory = Memory()
        self._memory.add(BASE, self.ram)
        self._machine = rv64.Machine(self._memory, harts=1, mode=rv64.USER, vlen=vlen)
        self.hart = self._machine.hart(0)
        self._next = 0

    def install(self, *words: int, halfwords: bool = False) -> int:
        """Puts instructions and an ecall into memory; gives their address."""
        code = b"".join(struct.pack("<H" if halfwords else "<I", word) for word in words)
        address = BASE + self._next
        self.ram[self._next : self._next + len(code) + 4] = code + ECALL
        self._next += len(code) + 7 & ~3
        return address

    def run(
        self,
        address: int,
        *,
        x: dict[int, int] | None = None,
        f: dict[int, int] | None = None,
        fcsr: int = 0,
    ) -> Outcome:
        """Runs from `address` until a trap. Registers that are not given are zero."""
        state = self.hart.get_state()
        for number in range(32):
            state.x[number] = (x or {}).get(number, 0)
            state.f[number] = (f or {}).get(number, 0)
        state.pc, state.fcsr = address, fcsr
        self.hart.set_state(state)
        stop = self.hart.run()
        assert stop.reason == rv64.EXIT_TRAP, stop
        state = self.hart.get_state()
        return Outcome(stop.data, stop.extra, state.pc, state.fcsr, list(state.x), list(state.f))
