"""The runner of the official tests, on two executables of our own."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from framework.riscv_tests import RAM, load, run
from framework.rv64_asm import Assembler


def elf(result: int, number: int = 93) -> bytes:
    """Ends as a test does, with `result` in a0."""
    asm = Assembler(RAM)
    asm.li(10, result)
    asm.li(17, number)
    asm.emit("ecall")
    code = asm.code()
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", 2, 243, 1, RAM, 64, 0, 5, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 7, 120, RAM, RAM, len(code), len(code), 4096)
    return ident + header + segment + code


def test_a_test_passes_or_says_which_case_failed() -> None:
    assert run(elf(0)) == ""
    assert run(elf(2 * 7 | 1)) == "case 7 failed"
    assert run(elf(0, number=1)).startswith("trap 8 at 0x8000")


def test_what_is_no_executable_is_refused() -> None:
    with pytest.raises(ValueError, match="ELF"):
        load(b"#!/bin/sh\n" * 20, None)  # type: ignore[arg-type]  # nothing is loaded


def test_a_directory_fails_with_its_tests(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "framework.riscv_tests", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name, result, status in (("good", 0, 0), ("bad", 5, 1)):
        (tmp_path / name).write_bytes(elf(result))
        done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == status, done.stdout
    assert "bad on the interpreter: case 2 failed" in done.stdout
    assert "bad on the translator: case 2 failed" in done.stdout
