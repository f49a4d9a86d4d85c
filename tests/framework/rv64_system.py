"""Random kernels: the streams of rv64_stream.py with traps, CSRs, remapped pages and rewritten code.

    PYTHONPATH=tests python -m framework.rv64_system --kernels 100 --seed 1

The invariant: the interpreter and the translator take the same traps at the same instruction counts with
the same registers, and leave the same memory. qemu-riscv64 has no S-mode, so it is no peer here.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time

from crumble_native import rv64
from framework.rv64_asm import Assembler, encode
from framework.rv64_board import CODE, DATA, RAM, SIZE, TRAP_VECTOR, A, Board, D, G, R, U, V, W, X
from framework.rv64_engine import EAGER, HOT, INTERPRETER, engine
from framework.rv64_stream import AMOS, LOADS, STORES, Block
from framework.rv64_values import float_register, integer

PAGE = 4096
LOG, LOG_END = RAM + (3 << 20), RAM + SIZE
RECORD = 40 * 8
KERNEL_DATA = RAM + 0x1F_0000  # mapped at the top, so that the trap handler can reach it from x0
STARTS = RAM + 0x1E_0000
POOL = RAM + 0x1D_0000
# Virtual addresses that lui and addiw can make.
DATA_VA, POOL_VA, ALIAS_VA, WILD_VA = 0x4000_0000, 0x4800_0000, 0x5000_0000, 0x6000_0000
DATA_PAGES = 8
SAVED_T6, SAVED_T5, LOG_POINTER, COUNT, INDEX, LIMIT = (-8 * n for n in range(1, 7))
CSRS = (
    "sscratch",
    "sepc",
    "scause",
    "stval",
    "senvcfg",
    "instret",
    "sip",
    "sstatus",
    "satp",
    "fcsr",
)
PATCHES = ("addi", "xori", "slti", "addiw", "andi")


class KernelBlock(Block):
    """A stream that may also trap, change mappings and rewrite itself."""

    entries: list[int]  # of the data pages' and the wild pages' page table entries
    satp: int
    flags: int
    slots: list[tuple[str, int]]  # and the register they write: others may count a loop

    def two(self) -> tuple[int, int]:
        first, second = self.rng.sample([n for n in self.writable if n != 0], 2)
        return first, second

    def wild(self) -> None:
        """An access anywhere: other pages, ends of pages, addresses that cannot be."""
        base, register = self.two()
        where = self.rng.choice(
            (DATA_VA + PAGE * self.rng.randrange(DATA_PAGES), WILD_VA, WILD_VA + PAGE, 0x7000_0000,
             ALIAS_VA, 1 << 40, RAM, KERNEL_DATA)
        )  # fmt: skip
        self.out.li(base, where + self.rng.choice((0, 8, 64, 100, 4088, 4089, 4092, 4095)))
        name = self.rng.choice((*LOADS, *LOADS, *AMOS, "cbo.zero", "sd", "sh"))
        if name == "cbo.zero" and where not in (RAM, KERNEL_DATA, ALIAS_VA):
            self.out.emit(name, base)
        elif name not in LOADS and where in (RAM, KERNEL_DATA, ALIAS_VA):
            self.out.emit("ld", register, base, 0)
        elif name in AMOS:
            self.out.emit(name, register, base, register)
        else:
            self.out.emit(name, register, base, 0)

    def elsewhere(self) -> None:
        """Also pages that are shared, read only or away, or just flushed."""
        if self.rng.random() < 0.5:
            super().elsewhere()
            return
        other = self.rng.choice(self.near_writable)
        page = self.rng.choice(
            (DATA_VA + PAGE * self.rng.randrange(DATA_PAGES), WILD_VA, WILD_VA + PAGE)
        )
        self.point(other, page + 8 * self.rng.randrange(512))
        name = self.rng.choice((*LOADS, *STORES))
        register = self.source() if name in STORES else self.destination(name)
        self.out.emit(name, register, other, 0)

    def remap(self) -> None:
        """Another entry for a page, and the fence for it."""
        base, value = self.two()
        which = self.rng.randrange(len(self.entries))
        flags = self.rng.choice(
            (V | R | W | A | D, V | R | W, V | R | A, 0, V | X | A, V | R | W | A | D)
        )
        page = DATA + PAGE * self.rng.randrange(DATA_PAGES)
        self.out.li(base, self.entries[which])
        self.out.li(value, page >> 12 << 10 | flags | self.flags & U)
        self.out.emit("sd", value, base, 0)
        wild = which >= DATA_PAGES
        va = WILD_VA + PAGE * (which - DATA_PAGES) if wild else DATA_VA + PAGE * which
        self.out.li(base, va)
        self.out.emit("sfence.vma", self.rng.choice((base, base, 0)), 0)

    def rewrite(self) -> None:
        """Another instruction for a slot, by its own address or its alias, and fence.i."""
        if not self.slots:
            return
        base, value = self.two()
        label, rd = self.rng.choice(self.slots)
        self.out.to("la", base, label=label)
        if self.rng.random() < 0.5:
            self.out.li(value, ALIAS_VA - CODE & (1 << 64) - 1)
            self.out.emit("add", base, base, value)
        word = encode(self.rng.choice(PATCHES), rd, rd, self.rng.randrange(-2048, 2048))
        self.out.li(value, word)
        self.out.emit("sw", value, base, 0)
        self.out.emit("fence.i")

    def slot(self) -> None:
        """What `rewrite` rewrites."""
        label = self.new_label()
        self.out.label(label)
        rd = self.rng.choice([n for n in self.writable if n != 0])
        self.out.emit("addi", rd, rd, 1)
        self.slots.append((label, rd))

    def system_register(self) -> None:
        register, other = self.two()
        choice = self.rng.randrange(6)
        if choice == 0:
            self.out.li(register, self.rng.choice((1 << 18, 1 << 19, 3 << 13, 1 << 13)))
            self.out.emit(self.rng.choice(("csrrs", "csrrc", "csrrs")), other, "sstatus", register)
        elif choice == 1:
            self.out.li(register, self.satp | self.rng.randrange(3) << 44)
            self.out.emit("csrrw", other, "satp", register)
        elif choice == 2:
            self.out.emit(
                "csrrw", other, self.rng.choice(("sscratch", "scause", "stval")), register
            )
        else:
            self.out.emit("csrrs", register, self.rng.choice(CSRS), 0)

    def trap(self) -> None:
        choice = self.rng.randrange(4)
        if choice == 0:
            self.out.raw(b"\0\0")
        elif choice == 1:
            self.out.emit("ebreak")
        elif choice == 2 and 17 in self.writable:
            self.out.emit("addi", 17, 0, 0x7F)  # no such SBI extension
            self.out.emit("ecall")
        else:
            self.out.emit("sfence.vma", 0, self.rng.choice((0, self.source())))

    WEIGHTS = (
        *((maker, weight) for maker, weight in Block.WEIGHTS), (wild, 6), (remap, 2), (rewrite, 3),
        (slot, 6), (system_register, 4), (trap, 2),
    )  # fmt: skip


def handler() -> Assembler:
    """Logs what the trap was and the registers, and goes on at another block, LIMIT times."""
    out = Assembler(TRAP_VECTOR)
    out.emit("sd", 31, 0, SAVED_T6)
    out.emit("sd", 30, 0, SAVED_T5)
    out.emit("ld", 31, 0, LOG_POINTER)
    for register in range(1, 30):
        out.emit("sd", register, 31, 8 * register)
    for at, csr in enumerate(("scause", "stval", "sepc", "instret", "sstatus"), 32):
        out.emit("csrrs", 30, csr, 0)
        out.emit("sd", 30, 31, 8 * at)
    for at, saved in ((30, SAVED_T5), (31, SAVED_T6)):
        out.emit("ld", 30, 0, saved)
        out.emit("sd", 30, 31, 8 * at)
    out.emit("addi", 31, 31, RECORD)
    out.emit("sd", 31, 0, LOG_POINTER)
    out.emit("ld", 30, 0, COUNT)
    out.emit("addi", 30, 30, -1)
    out.emit("sd", 30, 0, COUNT)
    out.to("beq", 30, 0, label="end")
    out.emit("ld", 31, 0, INDEX)
    out.emit("addi", 31, 31, 7)
    out.emit("ld", 30, 0, LIMIT)
    out.emit("remu", 31, 31, 30)
    out.emit("sd", 31, 0, INDEX)
    out.emit("slli", 31, 31, 3)
    out.li(30, STARTS)
    out.emit("add", 30, 30, 31)
    out.emit("ld", 30, 30, 0)
    out.emit("csrrw", 0, "sepc", 30)
    out.emit("ld", 30, 0, SAVED_T5)
    out.emit("ld", 31, 0, SAVED_T6)
    out.emit("sret")
    out.label("end")
    Board.finish(out)
    return out


class Kernel:
    """`blocks` blocks from a seed, in S-mode or (odd seeds) U-mode; `run` gives all that is left."""

    def __init__(self, seed: int, blocks: int = 23, units: int = 20, traps: int = 3000) -> None:
        self.seed, self.blocks, self.units, self.traps = seed, blocks, units, traps
        self.user = U if seed % 2 else 0

    def _map(self, board: Board) -> tuple[int, list[int]]:
        root = board.identity()
        page = V | R | W | A | D | self.user
        entries = [
            board.map(root, DATA_VA + PAGE * n, DATA + PAGE * n, page) for n in range(DATA_PAGES)
        ]
        entries += [
            board.map(root, WILD_VA, DATA, V | R | A | self.user),
            board.map(root, WILD_VA + PAGE, DATA + PAGE, 0),
        ]
        board.map(root, POOL_VA, POOL, page)
        board.map(root, -PAGE & (1 << 64) - 1, KERNEL_DATA, V | R | W | A | D | G)
        for n in range(48):
            board.map(root, ALIAS_VA + PAGE * n, CODE + PAGE * n, page | X)
        return root, entries

    def _assemble(self, board: Board, satp: int, entries: list[int]) -> list[int]:
        out = Assembler(CODE)
        starts, slots = [], list[tuple[str, int]]()
        for number in range(self.blocks):
            rng = random.Random(self.seed * 1_000_003 + number)
            out.raw(b"\x01\x00" * rng.randrange(3))  # c.nop
            starts.append(out.here + (ALIAS_VA - CODE if self.user else 0))
            block = KernelBlock(rng, out, number, DATA_VA + 700 * number, POOL_VA)
            block.entries, block.satp, block.flags, block.slots = entries, satp, self.user, slots
            for register, offset in (
                (2, 256),
                (block.near, 512),
                (block.rough, 512 + rng.randrange(240)),
            ):
                block.point(register, (block.scratch + 15 & ~15) + offset)
            block.stream(self.units)
            out.emit("ebreak")
        board.load(out)
        return starts

    def run(self, name: str) -> tuple[bytes, object] | None:
        """RAM and the hart's state after the last trap, on an engine; None when it never comes there: what stores
        by registers of another block may rewrite any code.
        """
        with engine(name):
            board = Board()
        rng = random.Random(self.seed)
        for offset in range(0, PAGE * DATA_PAGES, 8):
            board.set_word(DATA + offset, rng.choice((integer, float_register))(rng))
        for offset in range(0, PAGE, 8):
            board.set_word(POOL + offset, float_register(rng))
        root, entries = self._map(board)
        starts = self._assemble(board, board.satp(root), entries)
        for n, start in enumerate(starts):
            board.set_word(STARTS + 8 * n, start)
        top = KERNEL_DATA + PAGE
        board.set_word(top + LOG_POINTER, LOG)
        board.set_word(top + COUNT, min(self.traps, (LOG_END - LOG) // RECORD - 1))
        board.set_word(top + LIMIT, len(starts))
        board.load(handler())
        board.start(starts[0], {n: integer(rng) for n in range(1, 32)}, satp=board.satp(root),
                    sstatus=3 << 13, privilege=0 if self.user else 1)  # fmt: skip
        if board.run().reason == rv64.EXIT_CANCELED:
            return None
        return bytes(board.ram), board.hart.get_state()


def describe(seed: int, name: str, ours: bytes, theirs: bytes) -> str:
    """The first difference: of which trap's record, or where in memory."""
    log = LOG - RAM
    for at in [*range(log, len(ours), 8), *range(0, log, 8)]:
        if ours[at : at + 8] != theirs[at : at + 8]:
            where = f"{at + RAM:#x}"
            if at >= log:
                where = f"trap {(at - log) // RECORD} word {(at - log) % RECORD // 8}"
                base = log + (at - log) // RECORD * RECORD
                words = [
                    int.from_bytes(theirs[base + 8 * n : base + 8 * n + 8], "little")
                    for n in (32, 33, 34, 35)
                ]
                where += f" (cause, tval, pc, instret {[hex(word) for word in words]})"
            mine, other = (int.from_bytes(side[at : at + 8], "little") for side in (ours, theirs))
            return f"seed {seed} {name}: {where}: {mine:#x}, interpreter {other:#x}"
    return f"seed {seed} {name}: final state"


def check(seed: int, **options: int) -> list[str]:
    """One kernel on every engine; what differs from the interpreter."""
    kernel = Kernel(seed, **options)
    reference = kernel.run(INTERPRETER)
    found = []
    for name in (HOT, EAGER) if reference is not None else ():
        ours = kernel.run(name)
        if ours is None:
            found.append(f"seed {seed} {name}: does not end")
        elif ours != reference:
            found.append(describe(seed, name, ours[0], reference[0]))
    return found


def main() -> int:
    """Runs kernels until `--kernels` are done or one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=int, default=100)
    parser.add_argument("--units", type=int, default=20, help="things done in a block")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "little"))
    options = parser.parse_args()
    started = time.monotonic()
    for seed in range(options.seed, options.seed + options.kernels):
        if found := check(seed, units=options.units):
            print("\n".join(found))
            return 1
    print(
        f"{options.kernels} kernels from seed {options.seed} agree, {time.monotonic() - started:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
