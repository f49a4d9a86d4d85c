"""The test assembler's tables, row by row against binutils' disassembler."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from framework.rv64_asm import Assembler, encode
from framework.rv64_asm_c import encode_c, every_word
from framework.rv64_opcodes import FORMS

ASSEMBLER = "riscv64-linux-gnu-as"
OBJDUMP = "riscv64-linux-gnu-objdump"
needs_binutils = pytest.mark.skipif(
    shutil.which(OBJDUMP) is None, reason=f"{OBJDUMP} (binutils-riscv64-linux-gnu) is not installed"
)
X = [*["zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7"], *(f"s{n}" for n in range(2, 12)), "t3", "t4", "t5", "t6"]  # fmt: skip
F = [*(f"ft{n}" for n in range(8)), "fs0", "fs1", *(f"fa{n}" for n in range(8)), *(f"fs{n}" for n in range(2, 12)), "ft8", "ft9", "ft10", "ft11"]  # fmt: skip
OPERANDS = {
    "r": (5, 6, 7), "unary": (5, 6), "i": (5, 6, -7), "load": (5, 6, -8), "store": (5, 6, -8),
    "shift": (5, 6, 7), "branch": (5, 6, 0), "u": (5, 0xFEDCB), "j": (5, 0), "lr": (5, 6),
    "amo": (5, 6, 7), "fp2": (5, 6, 7), "fp1": (5, 6), "fma": (5, 6, 7, 8), "csr": (5, "fcsr", 6),
    "fixed": (), "cache": (6,), "fence": (), "vma": (5, 6),
}  # fmt: skip


def disassemble(words: list[int], tmp_path: Path) -> list[str]:
    """Mnemonic and operands an instruction, as binutils prints them without aliases."""
    source, binary = tmp_path / "code.s", tmp_path / "code.o"
    arch = "rv64gc_zicsr_zifencei_zba_zbb_zbs_zicbom_zicboz"
    source.write_text("".join(f".insn {word:#x}\n" for word in words))
    subprocess.run([ASSEMBLER, f"-march={arch}", "-o", binary, source], check=True)
    done = subprocess.run(
        [OBJDUMP, "-M", "no-aliases", "-d", binary], capture_output=True, text=True, check=True
    )
    lines = [line.split("\t") for line in done.stdout.splitlines() if line.startswith(" ")]
    return [" ".join(fields[2:]).strip() for fields in lines]


@needs_binutils
def test_every_word_is_what_binutils_calls_it(tmp_path: Path) -> None:
    names = list(FORMS)
    # binutils knows the exact conversions with rm 0 only.
    exact = {name: {"rm": 0} for name in ("fcvt.d.w", "fcvt.d.wu", "fcvt.d.s")}
    words = [encode(name, *OPERANDS[FORMS[name].kind], **exact.get(name, {})) for name in names]
    lines = disassemble(words, tmp_path)
    assert len(lines) == len(names)
    for name, line in zip(names, lines, strict=True):
        assert line.split()[0] == name, line
        if FORMS[name].kind in ("r", "unary", "shift", "fp2", "fp1", "fma"):
            given = [str(value) for value in OPERANDS[FORMS[name].kind]]
            shown = [operand for operand in line.split()[1].split(",") if operand != "dyn"]
            numbers = [
                str(X.index(operand) if operand in X else F.index(operand) if operand in F else int(operand, 16))
                for operand in shown
            ]  # fmt: skip
            assert numbers in (given, ["0", *given[1:]], given[1:]), line


@needs_binutils
def test_every_halfword_is_what_binutils_calls_it(tmp_path: Path) -> None:
    known = every_word()
    words = [word for word in range(1 << 16) if word & 3 != 3]
    # Shifts by 0 are RV128's in binutils and hints here; it shows two reserved words by name.
    other = {"c.slli64": "c.slli", "c.srli64": "c.srli", "c.srai64": "c.srai"}
    reserved = {0x0000, 0x6101}
    for word, line in zip(words, disassemble(words, tmp_path), strict=True):
        name = line.split()[0]
        if word in known:
            assert known[word][0] == other.get(name, name), f"{word:#06x}"
        else:
            assert name == ".2byte" or word in reserved, f"{word:#06x}"


def test_li_makes_any_constant() -> None:
    for value in (0, 1, -1, 2047, 2048, 0x7FFFFFFF, 0x80000000, 0x123456789ABCDEF0, 1 << 63):
        assembler = Assembler()
        assembler.li(5, value)
        assert run_constant(assembler.code()) == value & ((1 << 64) - 1)


def run_constant(code: bytes) -> int:
    """Interprets what `li` emits: lui, addi, addiw and slli on one register."""
    mask = (1 << 64) - 1
    register = 0
    for (word,) in struct.iter_unpack("<I", code):
        immediate = (word >> 20) - (0x1000 if word >> 31 else 0)
        if word & 0x7F == 0x37:
            register = (word & 0xFFFFF000) - (1 << 32 if word >> 31 else 0)
        elif word & 0x7F == 0x1B:
            total = register + immediate & 0xFFFFFFFF
            register = total - (1 << 32 if total >> 31 else 0)
        elif word >> 12 & 7 == 1:
            register <<= immediate
        else:
            register = (register if word >> 15 & 31 else 0) + immediate
        register &= mask
    return register


def test_labels_reach_forwards_and_backwards() -> None:
    assembler = Assembler(0x1000)
    assembler.to("jal", 0, label="end")
    assembler.label("loop")
    assembler.emit("c.addi", 5, -1)
    assembler.emit("c.mv", 6, 5)
    assembler.to("bne", 5, 0, label="loop")
    assembler.label("end")
    assembler.to("la", 7, label="loop")
    words = struct.unpack("<IHHIII", assembler.code())
    assert words[0] == encode("jal", 0, 12)
    assert words[3] == encode("bne", 5, 0, -4)
    assert words[4:] == (encode("auipc", 7, 0), encode("addi", 7, 7, -8))


def test_what_does_not_fit_is_refused() -> None:
    for name, operands in (("addi", (1, 2, 2048)), ("beq", (1, 2, 3)), ("add", (32, 1, 2))):
        with pytest.raises(ValueError, match="fit"):
            encode(name, *operands)
    for name, operands in (("c.lw", (1, 8, 0)), ("c.addi16sp", (0,)), ("c.lui", (2, 0x1000))):
        with pytest.raises(ValueError, match="encoded"):
            encode_c(name, *operands)
