"""Random vector programs, run on the soft CPU and under qemu-riscv64.

    PYTHONPATH=tests python -m framework.rv64_vector --programs 20 --seed 1

Invariant: after the same instructions from the same registers, all vector, x and f registers, the vector CSRs,
fcsr and memory are the same on both. Only what the specification defines is generated: groups are aligned, and
sources overlap destinations only where they may.
"""

from __future__ import annotations

import argparse
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from framework.rv64_asm import Assembler
from framework.rv64_values import float_register, integer
from framework.rv64_vector_base import FS, RECORD, TMP, XS
from framework.rv64_vector_block import VectorBlock

BASE = 0x4000_0000
SCRATCH = 4096


class VectorProgram:
    """Blocks between loads of all registers from a record, and stores of them to a result."""

    def __init__(self, seed: int, blocks: int, units: int = 4, vlen: int = 128) -> None:
        self.blocks, self.vlenb, rng = blocks, vlen // 8, random.Random(seed)
        self.record = 8 * (len(XS) + len(FS) + 6) + 32 * self.vlenb + 15 & ~15
        code_size = blocks * (units * 200 + 500) + 4096 & ~4095
        self.records = BASE + code_size
        self.results = self.records + blocks * self.record
        self.scratch = self.results + blocks * self.record
        self.end = self.scratch + blocks * SCRATCH
        out = Assembler(BASE)
        self.starts = []
        for number in range(blocks):
            self.starts.append(out.here)
            self._block(rng, out, number, units)
        out.li(11, self.results)
        out.li(12, self.end)
        out.label("more")
        out.emit("sub", 12, 12, 11)
        out.li(10, 1)
        out.li(17, 64)
        out.emit("ecall")
        out.emit("add", 11, 11, 10)
        out.li(12, self.end)
        out.to("bne", 11, 12, label="more")
        out.li(10, 0)
        out.li(17, 93)
        out.emit("ecall")
        self.code = out.code()
        assert len(self.code) <= code_size
        self.image = bytearray(self.end - BASE)
        self.image[: len(self.code)] = self.code
        for number in range(blocks):
            self._data(rng, number)

    def _data(self, rng: random.Random, number: int) -> None:
        words = (
            [rng.choice((integer(rng), rng.randrange(20))) for _ in XS]
            + [float_register(rng) for _ in FS]
            + [0] * 6
        )
        lanes = self._lanes(rng)
        at = self.records - BASE + number * self.record
        data = struct.pack(f"<{len(words)}Q", *words) + lanes
        self.image[at : at + len(data)] = data
        at = self.scratch - BASE + number * SCRATCH
        self.image[at : at + SCRATCH] = rng.randbytes(SCRATCH)

    def _lanes(self, rng: random.Random) -> bytes:
        out = b""
        for _ in range(32):
            kind = rng.randrange(4)
            if kind == 0:
                out += rng.randbytes(self.vlenb)
            elif kind == 1:
                out += b"".join(
                    struct.pack("<I", float_register(rng) & 0xFFFFFFFF)
                    for _ in range(self.vlenb // 4)
                )
            elif kind == 2:
                out += b"".join(
                    struct.pack("<Q", float_register(rng)) for _ in range(self.vlenb // 8)
                )
            else:
                width = rng.choice((1, 2, 4, 8))
                edges = (
                    0,
                    1,
                    (1 << 8 * width) - 1,
                    1 << 8 * width - 1,
                    (1 << 8 * width - 1) - 1,
                    rng.getrandbits(8 * width),
                )
                out += b"".join(
                    rng.choice(edges).to_bytes(width, "little") for _ in range(self.vlenb // width)
                )
        return out

    def _block(self, rng: random.Random, out: Assembler, number: int, units: int) -> None:
        out.li(RECORD, self.records + number * self.record)
        vectors = 8 * (len(XS) + len(FS) + 6)
        self._move_vectors(out, RECORD, vectors, 0x07)
        for at, register in enumerate(XS):
            out.emit("ld", register, RECORD, 8 * at)
        for at, register in enumerate(FS):
            out.emit("fld", register, RECORD, 8 * (len(XS) + at))
        out.emit("csrrwi", 0, "fcsr", 0)
        out.raw(struct.pack("<I", 0x00F << 20 | 5 << 12 | 0x73))  # vcsr = 0
        VectorBlock(rng, out, self.scratch + number * SCRATCH, self.vlenb).make(units)
        out.li(RECORD, self.results + number * self.record)
        for at, register in enumerate(XS):
            out.emit("sd", register, RECORD, 8 * at)
        for at, register in enumerate(FS):
            out.emit("fsd", register, RECORD, 8 * (len(XS) + at))
        for at, csr in enumerate((0x003, 0x008, 0x00F, 0xC20, 0xC21, 0xC22)):
            out.raw(struct.pack("<I", csr << 20 | 2 << 12 | TMP << 7 | 0x73))
            out.emit("sd", TMP, RECORD, 8 * (len(XS) + len(FS) + at))
        self._move_vectors(out, RECORD, vectors, 0x27)

    def _move_vectors(self, out: Assembler, base: int, offset: int, opcode: int) -> None:
        for group in range(4):
            out.emit("addi", TMP, base, offset + 8 * group * self.vlenb)
            out.raw(
                struct.pack("<I", 7 << 29 | 1 << 25 | 8 << 20 | TMP << 15 | 8 * group << 7 | opcode)
            )

    def elf(self) -> bytes:
        """A static executable of one segment."""
        ident = b"\x7fELF\x02\x01\x01" + bytes(9)
        header = struct.pack("<HHIQQQIHHHHHH", 2, 243, 1, BASE, 64, 0, 5, 64, 56, 1, 0, 0, 0)
        size = len(self.image)
        segment = struct.pack("<IIQQQQQQ", 1, 7, 4096, BASE, BASE, size, size, 4096)
        return (ident + header + segment).ljust(4096, b"\0") + self.image

    def block_at(self, address: int) -> int:
        """The block whose code an address is in."""
        return sum(start <= address for start in self.starts) - 1

    def names(self) -> list[str]:
        """Of a record's 64-bit words before the vectors."""
        return [
            *(f"x{n}" for n in XS),
            *(f"f{n}" for n in FS),
            "fcsr",
            "vstart",
            "vcsr",
            "vl",
            "vtype",
            "vlenb",
        ]


def run_qemu(program: VectorProgram) -> bytes:
    """Results and memory as QEMU leaves them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program"
        path.write_bytes(program.elf())
        path.chmod(0o700)
        cpu = f"rv64,v=true,vext_spec=v1.0,vlen={8 * program.vlenb}"
        done = subprocess.run(["qemu-riscv64", "-cpu", cpu, path], capture_output=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"qemu-riscv64 ended with {done.returncode}: {done.stderr.decode()}")
    return done.stdout


def run_soft(program: VectorProgram) -> bytes:
    """The same on our CPU."""
    import mmap

    from crumble_native import rv64
    from crumble_native.memory import Memory

    ram = mmap.mmap(-1, len(program.image) + 4095 & ~4095)
    ram[: len(program.image)] = bytes(program.image)
    memory = Memory()
    memory.add(BASE, ram)
    machine = rv64.Machine(memory, 1, mode=rv64.USER, vlen=8 * program.vlenb)
    hart = machine.hart(0)
    state = hart.get_state()
    state.pc = BASE
    hart.set_state(state)
    stop = hart.run()
    if stop.data != 8:
        pc = hart.get_state().pc
        (insn,) = struct.unpack_from("<I", ram, pc - BASE)
        raise RuntimeError(f"stopped at {pc:#x} {insn:08x} in block {program.block_at(pc)}: {stop}")
    return ram[program.results - BASE : program.end - BASE]


def differences(program: VectorProgram, ours: bytes, theirs: bytes) -> list[str]:
    """Where they differ, for a person."""
    found = []
    names = program.names()
    for number in range(program.blocks):
        at = number * program.record
        mine, other = ours[at : at + program.record], theirs[at : at + program.record]
        for index, name in enumerate(names):
            a, b = mine[8 * index : 8 * index + 8], other[8 * index : 8 * index + 8]
            if a != b:
                found.append(f"block {number} {name}: ours {a[::-1].hex()} qemu {b[::-1].hex()}")
        for register in range(32):
            at = 8 * len(names) + register * program.vlenb
            a, b = mine[at : at + program.vlenb], other[at : at + program.vlenb]
            if a != b:
                found.append(
                    f"block {number} v{register}: ours {a[::-1].hex()} qemu {b[::-1].hex()}"
                )
        at = program.scratch - program.results + number * SCRATCH
        if ours[at : at + SCRATCH] != theirs[at : at + SCRATCH]:
            found.append(f"block {number}: memory")
    return found


def check(seed: int, blocks: int, *, units: int = 4, vlen: int = 128) -> list[str]:
    """One program on both CPUs."""
    program = VectorProgram(seed, blocks, units, vlen)
    ours, theirs = run_soft(program), run_qemu(program)
    return differences(program, ours, theirs) if ours != theirs else []


def main() -> int:
    """Programs of 500 blocks until `--programs` are done or one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=10)
    parser.add_argument("--units", type=int, default=4)
    parser.add_argument("--vlen", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for seed in range(options.seed, options.seed + options.programs):
        found = check(seed, 500, units=options.units, vlen=options.vlen)
        if found:
            print(f"seed {seed} units {options.units}:", *found[:30], sep="\n  ")
            return 1
    print(f"{500 * options.programs} blocks agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
