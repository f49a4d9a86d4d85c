"""Runs random programs on the soft CPU's engines and under qemu-riscv64, by the million blocks.

    make fuzz-cpu BLOCKS=1000000 [SEED=1]

The invariant: after the same blocks from the same state every x and f register, fcsr, all memory, and for
blocks that trap the pc and why, are the same on both of our engines and on QEMU; and our engines have counted
the same instructions. Blocks use rv64gc, Zba, Zbb, Zbs and Zfh, rewrite their own code, and trap: accesses
outside memory and across its end, misaligned atomics, illegal instructions, CSRs and rounding modes, jumps
outside memory. One program in eight has what QEMU 7.2 does not know (Zicond, Zfa, Zcb): there the engines are
compared with each other only. Programs are made by rv64_blocks/*.c, since they are many.
"""

from __future__ import annotations

import argparse
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path

from crumble_native import rv64
from crumble_native.memory import Memory
from framework.rv64_asm_c import FORMS_C
from framework.rv64_engine import EAGER, HOT, INTERPRETER, engine
from framework.rv64_more import MORE
from framework.rv64_opcodes import FORMS

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent / "build" / "fuzz-cpu"
QEMU = ("qemu-riscv64", "-cpu", "rv64,Zfh=true")

# As in rv64_blocks/blocks.h.
DATA_BASE, CODE_BASE = 0x4000_0000, 0x5000_0000
RECORD_SIZE, SCRATCH_SIZE = 68 * 8, 1024
RECORD, RESULT, ROUND, NEXT, END, RESULTS = range(0, 48, 8)
SIGILL, SIGTRAP, SIGBUS, SIGSEGV = 4, 5, 7, 11
SIGNALS = {1: SIGSEGV, 2: SIGILL, 3: SIGTRAP, 4: SIGBUS, 5: SIGSEGV, 6: SIGBUS, 7: SIGSEGV}
ECALL = 8
NAMES = [*(f"x{n}" for n in range(1, 32)), *(f"f{n}" for n in range(32)), "fcsr", "pc", "signal"]

RD, RS1, RS2, RS3, RM = 31 << 7, 31 << 15, 31 << 20, 31 << 27, 7 << 12
OPERANDS = {
    "r": RD | RS1 | RS2, "unary": RD | RS1, "i": RD | RS1 | 0xFFF << 20, "u": RD | 0xFFFFF << 12,
    "fp1": RD | RS1 | RM, "fp2": RD | RS1 | RS2 | RM, "fma": RD | RS1 | RS2 | RS3 | RM,
    "load": RD | RS1, "store": RS1 | RS2, "branch": RS1 | RS2, "amo": RD | RS1 | RS2,
}  # fmt: skip
SETS = {"load": "LOAD", "store": "STORE", "branch": "BRANCH", "amo": "AMO"}
COMPRESSED = (
    "c.addi4spn c.addi c.addiw c.li c.lui c.srli c.srai c.andi c.sub c.xor c.or c.and c.subw c.addw c.slli "
    "c.mv c.add c.fld c.lw c.ld c.fsd c.sw c.sd c.fldsp c.lwsp c.ldsp c.fsdsp c.swsp c.sdsp"
).split()
ZCB = """
8000 0060 qp memory
8400 0020 qp memory
8440 0020 qp memory
8800 0060 qp memory store
8c00 0020 qp memory store
9c41 0000 pq
9c61 0000 p
9c65 0000 p
9c69 0000 p
9c6d 0000 p
9c71 0000 p
9c75 0000 p
"""


# ---- The generator


def writes_float(name: str) -> bool:
    """True when rd is an f register."""
    to_integer = ("fle", "flt", "feq", "fclass", "fmv.x", "fcvt.w", "fcvt.l", "fcvtmod", "fence")
    return name.startswith("f") and not name.startswith(to_integer)


def _forms() -> Iterator[tuple[str, str, int, int, int]]:
    """Set, name, match, operands and level of every instruction that streams may have."""
    for name, form in FORMS.items():
        if name in ("jalr", "fence.i", "sc.w", "sc.d") or form.kind not in (*OPERANDS, "shift"):
            continue
        word = form.kind == "shift" and name.rstrip("i")[-1] == "w" and name != "slli.uw"
        operands = OPERANDS.get(form.kind, RD | RS1 | (31 if word else 63) << 20)
        kind = SETS.get(form.kind, "FLOATING" if name[0] == "f" else "INTEGER")
        yield kind, name, form.match, operands, 0
    for name, row in MORE.items():
        if name.startswith(("wrs", "mop")):
            continue
        half = name.endswith(".h") or ".h." in name or name in ("flh", "fsh")
        zfa = name.startswith(("fminm", "fmaxm", "fleq", "fltq", "fli", "fround", "fcvtmod"))
        kind = {"flh": "LOAD", "fsh": "STORE"}.get(
            name, "FLOATING" if name[0] == "f" else "INTEGER"
        )
        operands = ~row.mask & 0xFFFFFFFF
        yield kind, name, row.match, operands, 1 if half and not zfa else 2


def _compressed() -> Iterator[str]:
    for name in COMPRESSED:
        form = FORMS_C[name]
        bits = sum(1 << part.at - at for part in form.immediate for at in range(len(part.bits)))
        kind = name[2:]
        memory = (
            kind.startswith(("f", "l", "s")) and kind.endswith(("w", "d", "sp")) and kind != "subw"
        )
        yield _short(form.match, bits, 0, "".join(form.registers), memory,
                     memory and kind.lstrip("f")[0] == "s", kind[0] == "f", kind.endswith("sp"), form.nonzero)  # fmt: skip
    for line in ZCB.strip().splitlines():
        match, bits, registers, *words = line.split()
        yield _short(
            int(match, 16), int(bits, 16), 2, registers, "memory" in words, "store" in words
        )


def _short(match: int, bits: int, level: int, registers: str, *flags: bool) -> str:
    values = ", ".join(str(int(flag)) for flag in (*flags, *[False] * (5 - len(flags))))
    return f'{{{match:#x}, {bits:#x}, {level}, {values}, "{registers}"}},'


def forms_h() -> str:
    """The header of tables that the generator includes."""
    order = ["INTEGER", "FLOATING", "LOAD", "STORE", "BRANCH", "AMO"]
    rows = sorted(_forms(), key=lambda row: order.index(row[0]))
    lines = ["static const form forms[] = {"]
    for kind, name, match, operands, level in rows:
        floats = int(writes_float(name))
        lines.append(f"{{{match:#x}, {operands:#x}, SET_{kind}, {level}, {floats}}}, // {name}")
    first = [sum(order.index(row[0]) < at for row in rows) for at in range(len(order) + 1)]
    lines += ["};", f"static const uint32_t first_form[] = {{{', '.join(map(str, first))}}};"]
    short = list(_compressed())
    lines += ["static const short_form short_forms[] = {", *short, "};"]
    return "\n".join([*lines, f"#define N_SHORT_FORMS {len(short)}", ""])


def build() -> Path:
    """Compiles the generator, when it changed."""
    BUILD.mkdir(parents=True, exist_ok=True)
    program, header = BUILD / "generate", BUILD / "forms.h"
    sources = sorted((HERE / "rv64_blocks").glob("*.[ch]"))
    text = forms_h()
    newest = max(path.stat().st_mtime for path in sources)
    if program.exists() and program.stat().st_mtime > newest and header.read_text() == text:
        return program
    header.write_text(text)
    flags = [
        "-std=c11",
        "-D_GNU_SOURCE",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Wno-parentheses",
        "-Wno-unused-parameter",
        "-Werror",
        f"-I{BUILD}",
    ]
    made = BUILD / f"generate.{os.getpid()}"
    subprocess.run(
        ["cc", *flags, "-o", made, *[path for path in sources if path.suffix == ".c"]], check=True
    )
    made.rename(program)
    return program


# ---- Programs and runs


def have_qemu() -> bool:
    """Whether there is a peer to compare with."""
    return shutil.which(QEMU[0]) is not None


@dataclass(frozen=True)
class Batch:
    """One program: `blocks` blocks of `units` things done, all of them run `rounds` times."""

    seed: int
    blocks: int = 4096
    units: int = 16
    rounds: int = 2
    level: int = 1
    traps: int = 10
    rewrites: int = 6

    @property
    def engines(self) -> tuple[str, ...]:
        return (EAGER,) if self.rounds < 16 else (HOT,)

    @contextmanager
    def program(self) -> Iterator[Path]:
        """The ELF file, for as long as it is needed."""
        with tempfile.TemporaryDirectory(prefix="fuzz-cpu-") as folder:
            path = Path(folder) / "program"
            words = map(str, astuple(self))
            subprocess.run([build(), *words, path], check=True)
            yield path


@dataclass
class Outcome:
    """What a run left: results and scratch buffers, and what only our CPU tells."""

    results: bytes
    data: bytes = field(default=b"", repr=False)
    code: bytes = field(default=b"", repr=False)
    traps: list[tuple[int, int, int]] = field(default_factory=list, repr=False)  # cause, tval, pc
    instret: int = 0


def _word(data: mmap.mmap, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


class Soft:
    """Our CPU in USER mode with a program in its memory."""

    def __init__(self, elf: bytes, name: str) -> None:
        memory, self.segments = Memory(), []
        for at in (64, 120):
            offset, address, _, size = (
                int.from_bytes(elf[at + 8 * n : at + 8 * n + 8], "little") for n in (1, 2, 3, 4)
            )
            ram = mmap.mmap(-1, size)
            ram[:] = elf[offset : offset + size]
            memory.add(address, ram)
            self.segments.append(ram)
        with engine(name):
            self.machine = rv64.Machine(memory, harts=1, mode=rv64.USER)
        self.hart = self.machine.hart(0)

    def run(self) -> Outcome:
        """From the first block to the end; traps are noted as Linux's signal handler would."""
        data, code = self.segments
        state = self.hart.get_state()
        state.pc = CODE_BASE
        traps = []
        while True:
            self.hart.set_state(state)
            stop = self.hart.run()
            if stop.reason != rv64.EXIT_TRAP:
                raise RuntimeError(f"the soft CPU stopped at {self.hart.get_state().pc:#x}: {stop}")
            if stop.data == ECALL:
                break
            state = self.hart.get_state()
            traps.append((stop.data, stop.extra, state.pc))
            at = _word(data, RESULT) - DATA_BASE
            words = (*state.x[1:], *state.f, state.fcsr, state.pc, SIGNALS[stop.data])
            data[at : at + 8 * len(words)] = b"".join(word.to_bytes(8, "little") for word in words)
            state.pc = _word(data, NEXT)
        results = data[_word(data, RESULTS) - DATA_BASE :]
        return Outcome(results, data[:], code[:], traps, self.hart.get_state().instret)


def run_qemu(path: Path) -> Outcome:
    """Results and scratch buffers as QEMU leaves them."""
    done = subprocess.run([*QEMU, str(path)], capture_output=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{QEMU[0]} ended with {done.returncode}: {done.stderr.decode()}")
    return Outcome(done.stdout)


def differences(batch: Batch, ours: bytes, theirs: bytes) -> Iterator[str]:
    """Which words of which blocks' results, and which scratch bytes, differ."""
    for block in range(batch.blocks):
        at = block * RECORD_SIZE
        if ours[at : at + RECORD_SIZE] != theirs[at : at + RECORD_SIZE]:
            for n, name in enumerate(NAMES):
                pair = [
                    int.from_bytes(side[at + 8 * n : at + 8 * n + 8], "little")
                    for side in (ours, theirs)
                ]
                if pair[0] != pair[1]:
                    yield f"block {block} {name}: {pair[0]:#x}, not {pair[1]:#x}"
    for at in range(batch.blocks * RECORD_SIZE, len(ours)):
        if ours[at] != theirs[at]:
            yield f"results+{at:#x} (scratch): {ours[at]:#x}, not {theirs[at]:#x}"


def check(batch: Batch) -> list[str]:
    """One program on QEMU (when it knows the instructions) and on our engines; what differs."""
    found: list[str] = []
    with batch.program() as path:
        peer = (
            subprocess.Popen([*QEMU, str(path)], stdout=subprocess.PIPE)
            if batch.level < 2
            else None
        )
        elf = path.read_bytes()
        reference = Soft(elf, INTERPRETER).run()
        for name in batch.engines:
            ours = Soft(elf, name).run()
            if ours == reference:
                continue
            found += [
                f"{name}: {text}" for text in differences(batch, ours.results, reference.results)
            ]
            same = zip(ours.traps, reference.traps, strict=False)
            first = next((pair for pair in same if pair[0] != pair[1]), None)
            found.append(
                f"{name}: instret {ours.instret}, not {reference.instret}; first trap that differs {first}"
            )
        if peer is not None:
            theirs = peer.communicate()[0]
            if peer.returncode != 0:
                found.append(f"{QEMU[0]} ended with {peer.returncode}")
            elif theirs != reference.results:
                found += [
                    f"interpreter: {text}" for text in differences(batch, reference.results, theirs)
                ]
    return [f"{batch}: {text}" for text in found]


def batch_of(seed: int) -> Batch:
    """What the seed's program is like: short and long blocks, run twice or until they are hot."""
    shape = (seed * 0x9E3779B1 >> 8) % 16
    return Batch(
        seed,
        blocks=8192 if shape % 4 == 1 else 4096,
        units=(3, 4, 6, 8, 12, 20)[seed % 6],
        rounds=20 if shape % 4 == 0 else 2,
        level=2 if shape % 8 == 3 else 1,
        traps=2 if shape % 4 == 0 else 5,
        rewrites=30 if seed % 8 == 5 else 0,  # QEMU translates whole pages again
    )


def main() -> int:
    """Runs programs until `--blocks` are done, or one differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first program; 0: any")
    options = parser.parse_args()
    first = options.seed or int.from_bytes(os.urandom(4), "little")
    started, done, runs, judged, seed = time.monotonic(), 0, 0, 0, first
    while done < options.blocks:
        batch = batch_of(seed)
        if found := check(batch):
            print(f"seed {seed}: {len(found)} differences", *found[:20], sep="\n  ", flush=True)
            return 1
        done, runs, seed = done + batch.blocks, runs + batch.blocks * batch.rounds, seed + 1
        judged += batch.blocks if batch.level < 2 else 0
        if (seed - first) % 20 == 0:
            print(f"{done} blocks, {time.monotonic() - started:.0f} s", flush=True)
    print(
        f"{done} blocks from seed {first} agree ({judged} with QEMU as the judge, {runs} runs of blocks an engine), "
        f"{time.monotonic() - started:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
