"""Encodings, checked against objdump for every register and awkward offset."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from crumble_ir import amd64_assembler as x86
from crumble_ir import arm64_assembler as a64
from crumble_ir import riscv64_assembler as rv

X86 = [
    "rax",
    "rcx",
    "rdx",
    "rbx",
    "rsp",
    "rbp",
    "rsi",
    "rdi",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
]
X86_32 = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"] + [f"r{n}d" for n in range(8, 16)]
X86_16 = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"] + [f"r{n}w" for n in range(8, 16)]
X86_8 = ["al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil"] + [f"r{n}b" for n in range(8, 16)]
RV = [
    "zero",
    "ra",
    "sp",
    "gp",
    "tp",
    "t0",
    "t1",
    "t2",
    "s0",
    "s1",
    "a0",
    "a1",
    "a2",
    "a3",
    "a4",
    "a5",
    "a6",
    "a7",
    "s2",
    "s3",
    "s4",
    "s5",
    "s6",
    "s7",
    "s8",
    "s9",
    "s10",
    "s11",
    "t3",
    "t4",
    "t5",
    "t6",
]
A64 = [f"x{n}" for n in range(31)] + ["xzr"]
OFFSETS = [0, 8, 127, -128, 128, 0x12345, -0x12345]


def disassemble(code: bytes, tmp_path: Path, *words: str) -> list[str]:
    if not shutil.which(words[0]):
        pytest.skip(f"{words[0]} is not installed")
    path = tmp_path / "code"
    path.write_bytes(code)
    done = subprocess.run(
        [*words, "-D", "-b", "binary", path], capture_output=True, text=True, check=True
    )
    lines = re.findall(r"^ *[0-9a-f]+:\t[0-9a-f ]+\t(.*)$", done.stdout, re.MULTILINE)
    return [re.sub(r"\s+", " ", re.sub(r"\s*(# |<|//).*", "", line)).strip() for line in lines]


def check_x86(pairs: list[tuple[bytes, str]], tmp_path: Path) -> None:
    words = ("objdump", "-m", "i386:x86-64", "-M", "intel", "-w")
    got = disassemble(b"".join(code for code, _ in pairs), tmp_path, *words)
    assert got == [text for _, text in pairs]


def check_rv(pairs: list[tuple[bytes, str]], tmp_path: Path) -> None:
    words = ("riscv64-linux-gnu-objdump", "-m", "riscv:rv64", "-M", "no-aliases")
    got = disassemble(b"".join(code for code, _ in pairs), tmp_path, *words)
    assert got == [text for _, text in pairs]


def check_a64(pairs: list[tuple[bytes, str]], tmp_path: Path) -> None:
    words = ("aarch64-linux-gnu-objdump", "-m", "aarch64", "-M", "no-aliases")
    got = disassemble(b"".join(code for code, _ in pairs), tmp_path, *words)
    got = [text.replace(", ", ",") for text in got]
    assert [text for text in got if text] == [text for _, text in pairs]


def at(base: str, offset: int) -> str:
    sign = "-" if offset < 0 else "+"
    # rbp and r13 have no form without a displacement; objdump shows their zero.
    bare = offset == 0 and base not in ("rbp", "r13")
    return f"[{base}]" if bare else f"[{base}{sign}{abs(offset):#x}]"


def test_x86_memory(tmp_path: Path) -> None:
    pairs = []
    loads = {
        "u8": ("movzx {64}", "BYTE"), "u16": ("movzx {64}", "WORD"), "u32": ("mov {32}", "DWORD"),
        "u64": ("mov {64}", "QWORD"), "i8": ("movsx {64}", "BYTE"), "i16": ("movsx {64}", "WORD"),
        "i32": ("movsxd {64}", "DWORD"),
    }  # fmt: skip
    for base in range(16):
        for reg in range(16):
            offset = OFFSETS[(base + reg) % len(OFFSETS)]
            where = at(X86[base], offset)
            for kind, (form, width) in loads.items():
                text = form.replace("{64}", X86[reg]).replace("{32}", X86_32[reg])
                pairs.append((x86.load(kind, reg, base, offset), f"{text},{width} PTR {where}"))
            for size, names, width in (
                (1, X86_8, "BYTE"), (2, X86_16, "WORD"), (4, X86_32, "DWORD"), (8, X86, "QWORD"),
            ):  # fmt: skip
                text = f"mov {width} PTR {where},{names[reg]}"
                pairs.append((x86.store(size, reg, base, offset), text))
            pairs.append((x86.lea(reg, base, offset), f"lea {X86[reg]},{where}"))
    check_x86(pairs, tmp_path)


def test_x86_registers(tmp_path: Path) -> None:
    pairs: list[tuple[bytes, str]] = []
    for a in range(16):
        for b in range(16):
            one, two = X86[a], X86[b]
            pairs.append((x86.mov(a, b), f"mov {one},{two}"))
            pairs += [(x86.alu(name, a, b), f"{name} {one},{two}") for name in x86.GROUP1]
            pairs.append((x86.imul(a, b), f"imul {one},{two}"))
            pairs.append((x86.imul_constant(a, b, -1000), f"imul {one},{two},0xfffffffffffffc18"))
            pairs.append((x86.extend("u8", a, b), f"movzx {one},{X86_8[b]}"))
            pairs.append((x86.extend("i16", a, b), f"movsx {one},{X86_16[b]}"))
            pairs.append((x86.extend("i32", a, b), f"movsxd {one},{X86_32[b]}"))
            pairs.append((x86.extend("u32", a, b), f"mov {X86_32[a]},{X86_32[b]}"))
            if b != x86.RSP:
                zero = "+0x0" if X86[a] in ("rbp", "r13") else ""
                pairs.append((x86.lea_sum(1, a, b), f"lea rcx,[{one}+{two}*1{zero}]"))
        pairs += [
            (x86.alu_constant("cmp", a, 5), f"cmp {X86[a]},0x5"),
            (x86.alu_constant("and", a, -1), f"and {X86[a]},0xffffffffffffffff"),
            (x86.shift("sar", a, 63), f"sar {X86[a]},0x3f"),
            (x86.shift_cl("shl", a), f"shl {X86[a]},cl"),
            (x86.divide(a, signed=True), f"idiv {X86[a]}"),
            (x86.divide(a, signed=False), f"div {X86[a]}"),
            (x86.neg(a), f"neg {X86[a]}"),
            (x86.zero(a), f"xor {X86_32[a]},{X86_32[a]}"),
            (x86.mov_constant(a, 5), f"mov {X86_32[a]},0x5"),
            (x86.mov_constant(a, -5), f"mov {X86[a]},0xfffffffffffffffb"),
            (x86.mov_constant(a, 1 << 40), f"movabs {X86[a]},0x10000000000"),
        ]
    check_x86(pairs, tmp_path)


def test_x86_conditions(tmp_path: Path) -> None:
    names = {
        "eq": "e", "ne": "ne", "ltu": "b", "leu": "be", "gtu": "a", "geu": "ae", "lts": "l",
        "les": "le", "gts": "g", "ges": "ge",
    }  # fmt: skip
    pairs = []
    for condition, name in names.items():
        code = x86.set_if(condition, x86.RSI)
        pairs += [(code[:4], f"set{name} sil"), (code[4:], "movzx rsi,sil")]
    check_x86(pairs, tmp_path)


def test_riscv_instructions(tmp_path: Path) -> None:
    names = {"shl": "sll", "shr": "srl", "sar": "sra", "divs": "div", "rems": "rem"}
    pairs: list[tuple[bytes, str]] = []
    for a in range(32):
        b, c = (a * 7 + 3) % 32, (a * 11 + 5) % 32
        one, two, three = RV[a], RV[b], RV[c]
        pairs += [(rv.op(op, a, b, c), f"{names.get(op, op)} {one},{two},{three}") for op in rv.OP]
        pairs += [
            (rv.addi(a, b, -2048), f"addi {one},{two},-2048"),
            (rv.addiw(a, b, 2047), f"addiw {one},{two},2047"),
            (rv.op_imm("shl", a, b, 63), f"slli {one},{two},0x3f"),
            (rv.op_imm("sar", a, b, 40), f"srai {one},{two},0x28"),
            (rv.op_imm("shr", a, b, 1), f"srli {one},{two},0x1"),
            (rv.op_imm("sltu", a, b, 1), f"sltiu {one},{two},1"),
            (rv.lui(a, 0xFFFFF), f"lui {one},0xfffff"),
            (rv.jalr(a, b, -4), f"jalr {one},-4({two})"),
        ]
        for kind, name in {"i8": "lb", "u8": "lbu", "i16": "lh", "u32": "lwu", "u64": "ld"}.items():
            pairs.append((rv.load(kind, a, b, -7), f"{name} {one},-7({two})"))
        for kind, name in {"u8": "sb", "i16": "sh", "u32": "sw", "u64": "sd"}.items():
            pairs.append((rv.store(kind, a, b, 2047), f"{name} {one},2047({two})"))
    pairs.append((rv.ECALL, "ecall"))
    check_rv(pairs, tmp_path)


@pytest.mark.parametrize("distance", [-4096, -2, 2, 8, 4094, 0x7FE, -0x800])
def test_riscv_branch_distances(distance: int, tmp_path: Path) -> None:
    word = int.from_bytes(rv.branch("ltu", 10, 11), "little") | rv.branch_distance(distance)
    check_rv([(word.to_bytes(4, "little"), f"bltu a0,a1,{distance & (1 << 64) - 1:#x}")], tmp_path)


@pytest.mark.parametrize("distance", [-(1 << 20), -2, 4, 0x800, 0xFF000, (1 << 20) - 2])
def test_riscv_jump_distances(distance: int, tmp_path: Path) -> None:
    word = int.from_bytes(rv.jal(1), "little") | rv.jump_distance(distance)
    check_rv([(word.to_bytes(4, "little"), f"jal ra,{distance & (1 << 64) - 1:#x}")], tmp_path)


def stack(number: int) -> str:
    return "sp" if number == 31 else A64[number]


def test_arm64_registers(tmp_path: Path) -> None:
    names = {
        "or": "orr", "xor": "eor", "divu": "udiv", "divs": "sdiv", "shl": "lslv", "shr": "lsrv",
        "sar": "asrv",
    }  # fmt: skip
    pairs: list[tuple[bytes, str]] = []
    for a in range(32):
        b, c = (a * 7 + 3) % 32, (a * 11 + 5) % 32
        one, two, three = A64[a], A64[b], A64[c]
        uxtx = "" if 31 in (a, b) else ",uxtx"  # the preferred form
        for op in a64.OP:
            last = ",xzr" if op == "mul" else ""
            name = {"mul": "madd"}.get(op, names.get(op, op))
            pairs.append((a64.op(op, a, b, c), f"{name} {one},{two},{three}{last}"))
        pairs += [
            (a64.msub(a, b, c, 9), f"msub {one},{two},{three},x9"),
            (a64.add_extended(a, b, c), f"add {stack(a)},{stack(b)},{three}{uxtx}"),
            (a64.compare(b, c), f"subs xzr,{two},{three}"),
            (a64.mov(a, b), f"orr {one},xzr,{two}"),
            (a64.add_constant(a, b, 4095), f"add {stack(a)},{stack(b)},#0xfff"),
            (a64.add_constant(a, b, -0xFFF000), f"sub {stack(a)},{stack(b)},#0xfff,lsl #12"),
            (a64.compare_constant(b, 7), f"subs xzr,{stack(b)},#0x7"),
            (a64.compare_constant(b, 0), f"subs xzr,{stack(b)},#0x0"),
            (a64.compare_constant(b, -7), f"adds xzr,{stack(b)},#0x7"),
            (a64.shift("shl", a, b, 63), f"ubfm {one},{two},#1,#0"),
            (a64.shift("shl", a, b, 0), f"ubfm {one},{two},#0,#63"),
            (a64.shift("shr", a, b, 40), f"ubfm {one},{two},#40,#63"),
            (a64.shift("sar", a, b, 1), f"sbfm {one},{two},#1,#63"),
            (a64.extend("u32", a, b), f"ubfm {one},{two},#0,#31"),
            (a64.extend("i8", a, b), f"sbfm {one},{two},#0,#7"),
            (a64.set_if("ltu", a), f"csinc {one},xzr,xzr,cs"),
        ]
        for kind, name in {"u8": "ldrb", "i16": "ldrsh", "i32": "ldrsw", "u64": "ldr"}.items():
            far = 4095 << {"u8": 0, "i16": 1, "i32": 2, "u64": 3}[kind]
            into = f"w{a}" if kind == "u8" and a < 31 else "wzr" if kind == "u8" else one
            pairs.append((a64.load(kind, a, b, far), f"{name} {into},[{stack(b)},#{far}]"))
            name = name.replace("ldr", "ldur")
            pairs.append((a64.load(kind, a, b, -7), f"{name} {into},[{stack(b)},#-7]"))
        pairs.append((a64.store("u64", a, b, 8), f"str {one},[{stack(b)},#8]"))
        pairs.append((a64.store("i64", a, b, 255), f"stur {one},[{stack(b)},#255]"))
    pairs.append((a64.SVC, "svc #0x0"))
    check_a64(pairs, tmp_path)


def test_arm64_constants(tmp_path: Path) -> None:
    """Each sequence of moves makes the number, and each bitmask that there is disassembles to it."""
    pairs: list[tuple[bytes, str]] = []
    ones = [(1 << n) - 1 for n in (1, 2, 7, 31, 33, 63)]
    values = [0xFF, ~0xFF, 0x00FF00FF00FF00FF, 0x5555555555555555, 1 << 63, 0xF00000000000000F]
    for value in [*ones, *values, *(~one for one in ones)]:
        field = a64.bitmask(value)
        assert field is not None, hex(value)
        text = f"{value & (1 << 64) - 1:#x}"
        pairs.append((a64.logical_constant("xor", 1, 2, field), f"eor x1,x2,#{text}"))
    for value in (0, -1, 5, 0xFF00FF, 0x1234):
        assert (a64.bitmask(value) is None) == (value in (0, -1, 5, 0xFF00FF, 0x1234))
    pairs += [
        (a64.constant(3, 0), "movz x3,#0x0"),
        (a64.constant(3, -1), "movn x3,#0x0"),
        (a64.constant(3, -0x10001), "movn x3,#0x1,lsl #16"),
        (a64.constant(3, 0x5000000000000), "movz x3,#0x5,lsl #48"),
    ]
    check_a64(pairs, tmp_path)


@pytest.mark.parametrize("distance", [-(1 << 20), -4, 4, 0x8000, (1 << 20) - 4])
def test_arm64_distances(distance: int, tmp_path: Path) -> None:
    def add(code: bytes, distance: int) -> bytes:
        return (int.from_bytes(code, "little") | distance).to_bytes(4, "little")

    text = f"{distance & (1 << 64) - 1:#x}"
    check_a64(
        [(add(a64.branch_if("ges"), a64.branch_distance(distance)), f"b.ge {text}")], tmp_path
    )
    check_a64([(add(a64.BL, a64.jump_distance(distance)), f"bl {text}")], tmp_path)
    check_a64([(add(a64.adr(5), a64.adr_distance(distance)), f"adr x5,{text}")], tmp_path)
