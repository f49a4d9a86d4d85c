"""Runs a directory of built official RISC-V tests on both engines: `make test-riscv DIR=...`.

The tests are not in this repository. Build those of riscv-tests' isa/rv64u* with the environment beside this file:

    riscv64-linux-gnu-gcc -march=rv64gcv_zba_zbb_zbs_zfh -nostdlib -static -Wl,-Ttext=0x80000000 -Wl,--build-id=none -Wl,--no-relax \\
        -I tests/framework/riscv_tests_env -I riscv-tests/isa/macros/scalar TEST.S -o DIR/NAME

A test ends with an ecall: a7 is 93, and a0 is 0 when it passed.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from pathlib import Path

from crumble_native import rv64
from crumble_native.memory import Memory

RAM, SIZE = 0x8000_0000, 8 << 20
ENGINES = {"interpreter": "0", "translator": "eager"}
_EXIT, _ECALL_FROM_U = 93, 8


def load(elf: bytes, ram: mmap.mmap) -> int:
    """Puts an executable's segments into RAM; gives its entry. ValueError when it is none for us."""
    if elf[:6] != b"\x7fELF\x02\x01" or len(elf) < 64:
        raise ValueError("not an ELF file of 64 bits")
    entry, offset = struct.unpack_from("<QQ", elf, 24)
    size, count = struct.unpack_from("<HH", elf, 54)
    for at in range(offset, offset + size * count, size):
        kind, _, start, va, _, length, _ = struct.unpack_from("<IIQQQQQ", elf, at)
        if kind != 1 or length == 0:
            continue
        place = max(va, RAM)  # the headers may lie below
        data = elf[start + place - va : start + length]
        if va + length > RAM + SIZE:
            raise ValueError(f"a segment at {va:#x} is outside memory")
        ram[place - RAM : place - RAM + len(data)] = data
    return int(entry)


def run(elf: bytes) -> str:
    """Why the test failed; empty when it passed."""
    ram = mmap.mmap(-1, SIZE)
    memory = Memory()
    memory.add(RAM, ram)
    machine = rv64.Machine(memory, 1, mode=rv64.USER)
    hart = machine.hart(0)
    state = hart.get_state()
    state.pc = load(elf, ram)
    hart.set_state(state)
    stop = hart.run()
    state = hart.get_state()
    if stop.data != _ECALL_FROM_U or state.x[17] != _EXIT:
        return f"trap {stop.data} at {state.pc:#x} (value {stop.extra:#x})"
    return f"case {state.x[10] >> 1} failed" if state.x[10] else ""


def main() -> int:
    """0 when every test passed on every engine."""
    files = sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_file())
    failed = 0
    for engine, value in ENGINES.items():
        os.environ["CRUMBLE_SOFT_JIT"] = value
        for path in files:
            if problem := run(path.read_bytes()):
                failed += 1
                print(f"{path.name} on the {engine}: {problem}")
    print(f"{len(files)} tests on {len(ENGINES)} engines, {failed} failed")
    return 1 if failed or not files else 0


if __name__ == "__main__":
    sys.exit(main())
