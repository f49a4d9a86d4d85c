"""The executables are well-formed ELF, and disassemblers can read them."""

from __future__ import annotations

import io
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from crumble_ir import compile_text, elf
from crumble_ir.__main__ import OBJDUMP
from crumble_ir.__main__ import main as command
from crumble_ir.backend import Code, Fixup
from crumble_ir.errors import IrError
from crumble_ir.riscv64 import Riscv64
from framework.compiled import ARCHES, HEAD

pytestmark = pytest.mark.parametrize("arch", ARCHES)

SOURCE = (
    HEAD
    + """
table = static(array[u64, 1000])
initial = static(u32, 0x12345678)

def work(a: u64, b: i32) -> u64:
    for i in range(10):
        table[i] = a // (u64(b) + 1)
    assert table[1] < 100, "large"
    return table[2] + initial

def main(stack: ptr[u64]) -> i32:
    print(f"result {work(stack[0], -3)}")
    return 0
"""
)


def test_headers_and_segments(arch: str) -> None:
    file = ELFFile(io.BytesIO(compile_text(SOURCE, arch)))
    assert file.header.e_type == "ET_EXEC"
    assert (
        file.get_machine_arch() == {"amd64": "x64", "arm64": "AArch64", "riscv64": "RISC-V"}[arch]
    )
    loads = [segment for segment in file.iter_segments() if segment.header.p_type == "PT_LOAD"]
    assert [segment.header.p_flags for segment in loads] == [5, 4, 6]
    for segment in loads:
        header = segment.header
        assert header.p_filesz <= header.p_memsz
        assert header.p_vaddr % elf.PAGE == header.p_offset % elf.PAGE
    for one, two in itertools.pairwise(loads):
        end = one.header.p_vaddr + one.header.p_memsz
        assert end // elf.PAGE < two.header.p_vaddr // elf.PAGE + 1
        assert -(-end // elf.PAGE) <= two.header.p_vaddr // elf.PAGE
    text = file.get_section_by_name(".text")
    assert text.header.sh_addr <= file.header.e_entry < text.header.sh_addr + text.header.sh_size
    stack = [s for s in file.iter_segments() if s.header.p_type == "PT_GNU_STACK"]
    assert stack[0].header.p_flags == 6


def test_symbols_and_contents(arch: str) -> None:
    file = ELFFile(io.BytesIO(compile_text(SOURCE, arch)))
    symbols = {symbol.name: symbol for symbol in file.get_section_by_name(".symtab").iter_symbols()}
    assert symbols["_start"].entry.st_value == file.header.e_entry
    assert symbols["table"].entry.st_size == 8000
    names = [name for name in symbols if name.endswith((".work", ".main"))]
    assert len(names) == 2
    data = file.get_section_by_name(".data")
    at = symbols["initial"].entry.st_value - data.header.sh_addr
    assert data.data()[at : at + 4] == b"\x78\x56\x34\x12"
    assert b"large\0" in file.get_section_by_name(".rodata").data()
    for symbol in symbols.values():
        if symbol.name:
            section = file.get_section(symbol.entry.st_shndx)
            end = symbol.entry.st_value + symbol.entry.st_size
            assert end <= section.header.sh_addr + section.header.sh_size


def test_the_same_source_gives_the_same_bytes(arch: str) -> None:
    assert compile_text(SOURCE, arch) == compile_text(SOURCE, arch)


def test_objdump_knows_every_instruction(arch: str, tmp_path: Path) -> None:
    tool = OBJDUMP[arch]
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    path = tmp_path / "program"
    path.write_bytes(compile_text(SOURCE, arch))
    done = subprocess.run([tool, "-d", path], capture_output=True, text=True, check=True)
    assert ".work>:" in done.stdout
    assert "(bad)" not in done.stdout
    assert ".word" not in done.stdout.replace("<string", "")
    assert ".insn" not in done.stdout


def test_the_command(arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "program.py", tmp_path / "out"
    source.write_text(SOURCE)
    assert command([str(source), "--arch", arch, "-o", str(out), "--dump-ir"]) == 0
    assert out.read_bytes()[:4] == b"\x7fELF"
    printed = capsys.readouterr().out
    assert "func " in printed and "branch" in printed
    source.write_text("x = \n")
    assert command([str(source), "--arch", arch]) == 1
    assert capsys.readouterr().err.startswith(f"{source}:1: ")


def test_what_is_out_of_reach_is_refused(arch: str) -> None:
    far = Code("far", bytearray(4 << 20))
    near = Code("near", bytearray(8), [Fixup(0, "jump", "end")])
    with pytest.raises(IrError, match="out of reach"):
        elf.link([near, far, Code("end", bytearray(4))], [], Riscv64)
