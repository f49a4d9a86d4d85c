"""Runs random programs on the soft CPU and under qemu-riscv64, and finds the blocks that differ.

    PYTHONPATH=tests python -m framework.rv64_differential --blocks 100000 --seed 1

The invariant: after the same stream from the same state, every x and f register, fcsr and every byte of
memory that the stream could reach are the same on both.
"""

from __future__ import annotations

import argparse
import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from crumble_native import rv64
from crumble_native.memory import Memory
from framework.rv64_engine import EAGER, HOT, INTERPRETER, engine
from framework.rv64_program import BASE, RECORD_SIZE, Program
from framework.rv64_stream import SCRATCH_SIZE

QEMU = "qemu-riscv64"
NAMES = [*(f"x{n}" for n in range(1, 32)), *(f"f{n}" for n in range(32)), "fcsr"]
CAUSE_ECALL_FROM_U = 8


class CpuStoppedError(Exception):
    """The CPU trapped before the program's end; the message says where."""


def have_qemu() -> bool:
    """Whether there is a peer to compare with."""
    return shutil.which(QEMU) is not None


def run_qemu(program: Program) -> bytes:
    """Results and scratch buffers as QEMU leaves them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program"
        path.write_bytes(program.elf())
        path.chmod(0o700)
        done = subprocess.run([QEMU, path], capture_output=True, check=False)
    if done.returncode != 0:
        raise CpuStoppedError(f"{QEMU} ended with {done.returncode}: {done.stderr.decode()}")
    return done.stdout


def run_soft(program: Program, name: str) -> bytes:
    """The same from an engine of our CPU, in USER mode."""
    image = program.image()
    ram = mmap.mmap(-1, len(image))
    ram[:] = image
    memory = Memory()
    memory.add(BASE, ram)
    with engine(name):
        machine = rv64.Machine(memory, harts=1, mode=rv64.USER)
    hart = machine.hart(0)
    state = hart.get_state()
    state.pc = BASE
    hart.set_state(state)
    stop = hart.run()
    if stop.reason != rv64.EXIT_TRAP or stop.data != CAUSE_ECALL_FROM_U:
        pc = hart.get_state().pc
        raise CpuStoppedError(
            f"the soft CPU stopped at {pc:#x}, block {program.block_at(pc)}: {stop}"
        )
    return ram[program.layout.results - BASE : program.layout.results_end - BASE]


@dataclass(frozen=True)
class Difference:
    """Where two runs differ: a register or a scratch byte of one block."""

    block: int
    where: str
    ours: int
    theirs: int

    def __str__(self) -> str:
        return f"block {self.block} {self.where}: ours {self.ours:#x}, qemu {self.theirs:#x}"


def compare(program: Program, ours: bytes, theirs: bytes) -> list[Difference]:
    """Every register, then every scratch byte, that differs."""
    found = []
    for block in range(program.blocks):
        at = block * RECORD_SIZE
        pair = [struct.unpack_from("<64Q", side, at) for side in (ours, theirs)]
        for name, mine, other in zip(NAMES, *pair, strict=True):
            if mine != other:
                found.append(Difference(block, name, mine, other))
        at = program.layout.scratch - program.layout.results + block * SCRATCH_SIZE
        for offset in range(SCRATCH_SIZE):
            if ours[at + offset] != theirs[at + offset]:
                where = f"scratch+{offset:#x}"
                found.append(Difference(block, where, ours[at + offset], theirs[at + offset]))
    return found


def check(seed: int, blocks: int, *, units: int = 24, repeats: int = 1) -> list[Difference]:
    """One program on QEMU and both of our engines."""
    program = Program(seed, blocks, units, repeats)
    theirs = run_qemu(program)
    found = []
    for name in (INTERPRETER, EAGER if repeats == 1 else HOT):
        ours = run_soft(program, name)
        found += compare(program, ours, theirs) if ours != theirs else []
    return found


def main() -> int:
    """Runs programs of 500 blocks until `--blocks` are done or one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=10_000)
    parser.add_argument("--units", type=int, default=24, help="things done in a block")
    parser.add_argument("--repeats", type=int, default=0, help="0: alternate 1 and 40")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "little"))
    options = parser.parse_args()
    started, done, seed = time.monotonic(), 0, options.seed
    while done < options.blocks:
        repeats = options.repeats or (1 if seed % 2 else 40)
        found = check(seed, 500, units=options.units, repeats=repeats)
        if found:
            print(f"seed {seed} repeats {repeats} units {options.units}:")
            print("\n".join(f"  {difference}" for difference in found[:20]))
            return 1
        done, seed = done + 500, seed + 1
    print(f"{done} blocks from seed {options.seed} agree, {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
