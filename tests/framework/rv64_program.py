"""The program around random instruction streams, for two CPUs to run.

A `Program` is many blocks. Each loads every register from its record, runs its stream, and stores every
register into its result; so a difference is found in the block where it happened. Everything is made
from one seed. At its end the program calls write(1, results and scratch buffers) and exit(0), as Linux
numbers them; a CPU without Linux stops at the first ecall, where the results lie in memory.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from framework.rv64_asm import Assembler
from framework.rv64_stream import POOL_SIZE, SCRATCH_SIZE, SP, Block
from framework.rv64_values import float_register, integer

BASE = 0x4000_0000
RECORD_SIZE = 512  # x1..x31, f0..f31, fcsr
ECALL_EXIT, ECALL_WRITE = 93, 64


@dataclass
class Layout:
    """Where things are, for `blocks` blocks; code comes first."""

    blocks: int
    code_size: int

    def __post_init__(self) -> None:
        self.records = BASE + (self.code_size + 4095 & ~4095)
        self.pools = self.records + self.blocks * RECORD_SIZE
        self.results = self.pools + self.blocks * POOL_SIZE
        # Not a multiple of a page: some blocks' scratch buffers lie across two pages.
        self.scratch = (self.results + self.blocks * RECORD_SIZE + 4095 & ~4095) + 512 + 64
        self.results_end = self.scratch + self.blocks * SCRATCH_SIZE
        self.counter = self.results_end + 7 & ~7
        self.end = self.counter + 4096 & ~4095


class Program:
    """`blocks` random blocks from `seed`, run `repeats` times over; see `elf` and `outcome`."""

    def __init__(self, seed: int, blocks: int, units: int = 24, repeats: int = 1) -> None:
        self.seed, self.blocks, self.units, self.repeats = seed, blocks, units, repeats
        self.layout = Layout(blocks, blocks * (units * 40 + 600) + 4096)
        self.starts: list[int] = []
        self.code = self._assemble()
        rng = random.Random(seed ^ 0x5EED)
        self.data = b"".join(
            [self._record(rng, number) for number in range(blocks)]
            + [struct.pack("<Q", float_register(rng)) for _ in range(blocks * POOL_SIZE // 8)]
        )
        self.scratch = b"".join(
            struct.pack("<Q", rng.choice((float_register, integer))(rng))
            for _ in range(blocks * SCRATCH_SIZE // 8)
        )

    def _assemble(self) -> bytes:
        out = Assembler(BASE)
        layout = self.layout
        out.label("again")
        self._makers = []
        for number in range(self.blocks):
            self.starts.append(out.here)
            rng = random.Random(self.seed * 1_000_003 + number)
            scratch = layout.scratch + number * SCRATCH_SIZE
            maker = Block(rng, out, number, scratch, layout.pools + number * POOL_SIZE)
            self._makers.append(maker)
            self._load_all(maker)
            maker.stream(self.units)
            self._store_all(maker)
        self.starts.append(out.here)
        self._finish(out)
        code = out.code()
        assert len(code) <= layout.records - BASE
        return code

    def _load_all(self, block: Block) -> None:
        record = self.layout.records + block.number * RECORD_SIZE
        block.point(block.base, record)
        other = 1 if block.base != 1 else 3
        block.out.emit("lw", other, block.base, RECORD_SIZE - 8)
        block.out.emit("csrrw", 0, "fcsr", other)
        for register in range(32):
            block.out.emit("fld", register, block.base, (31 + register) * 8)
        for register in range(1, 32):
            if register != block.base:
                block.out.emit("ld", register, block.base, (register - 1) * 8)

    def _store_all(self, block: Block) -> None:
        result = self.layout.results + block.number * RECORD_SIZE
        block.point(block.base, result)
        for register in range(32):
            block.out.emit("fsd", register, block.base, (31 + register) * 8)
        for register in range(1, 32):
            if register != block.base:
                block.out.emit("sd", register, block.base, (register - 1) * 8)
        other = 1 if block.base != 1 else 3
        block.out.emit("csrrs", other, "fcsr", 0)
        block.out.emit("sd", other, block.base, RECORD_SIZE - 8)

    def _finish(self, out: Assembler) -> None:
        """Counts the repeats in memory, then write(1, results, ...) and exit(0)."""
        layout = self.layout
        out.li(5, layout.counter)
        out.emit("ld", 6, 5, 0)
        out.emit("addi", 6, 6, 1)
        out.emit("sd", 6, 5, 0)
        out.li(7, self.repeats)
        out.to("beq", 6, 7, label="end")
        out.to("la", 8, label="again")
        out.emit("jalr", 0, 8, 0)
        out.label("end")
        out.li(11, layout.results)
        out.li(12, layout.results_end)
        out.label("more")
        out.emit("sub", 12, 12, 11)
        out.li(10, 1)
        out.li(17, ECALL_WRITE)
        out.emit("ecall")
        out.emit("add", 11, 11, 10)
        out.li(12, layout.results_end)
        out.to("bne", 11, 12, label="more")
        out.li(10, 0)
        out.li(17, ECALL_EXIT)
        out.emit("ecall")

    def _record(self, rng: random.Random, number: int) -> bytes:
        block = self._makers[number]
        registers = [integer(rng) for _ in range(32)]
        registers[SP] = block.scratch + 16 * rng.randrange(8) + 256
        registers[block.near] = block.scratch + 512 + 8 * rng.randrange(-4, 5)
        registers[block.rough] = block.scratch + 512 + rng.randrange(0, 240)
        floats = [float_register(rng) for _ in range(32)]
        fcsr = rng.randrange(5) << 5 | rng.getrandbits(5)
        return struct.pack("<64Q", *registers[1:], *floats, fcsr)

    def image(self) -> bytes:
        """Everything from BASE to the layout's end."""
        layout = self.layout
        image = bytearray(layout.end - BASE)
        image[: len(self.code)] = self.code
        image[layout.records - BASE : layout.results - BASE] = self.data
        image[layout.scratch - BASE : layout.results_end - BASE] = self.scratch
        return bytes(image)

    def elf(self) -> bytes:
        """The image as a static executable of one segment."""
        image = self.image()
        ident = b"\x7fELF\x02\x01\x01" + bytes(9)
        header = struct.pack("<HHIQQQIHHHHHH", 2, 243, 1, BASE, 64, 0, 5, 64, 56, 1, 0, 0, 0)
        segment = struct.pack("<IIQQQQQQ", 1, 7, 4096, BASE, BASE, len(image), len(image), 4096)
        return (ident + header + segment).ljust(4096, b"\0") + image

    def block_at(self, pc: int) -> int:
        """Which block an address belongs to; -1 for none."""
        inside = [n for n in range(self.blocks) if self.starts[n] <= pc < self.starts[n + 1]]
        return inside[0] if inside else -1
