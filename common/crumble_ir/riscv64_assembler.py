"""Encodings of the RV64IM instructions the back end uses (RISC-V unprivileged ISA, chapter 34)."""

from __future__ import annotations

ZERO, RA, SP, GP, TP, T0, T1, T2, S0, S1 = range(10)
A0, A1, A2, A3, A4, A5, A6, A7 = range(10, 18)
S2, S3, S4, S5, S6, S7, S8, S9, S10, S11 = range(18, 28)
T3, T4, T5, T6 = range(28, 32)

# funct3, funct7 of OP instructions.
OP = {
    "add": (0, 0), "sub": (0, 0x20), "shl": (1, 0), "slt": (2, 0), "sltu": (3, 0), "xor": (4, 0),
    "shr": (5, 0), "sar": (5, 0x20), "or": (6, 0), "and": (7, 0), "mul": (0, 1), "divs": (4, 1),
    "divu": (5, 1), "rems": (6, 1), "remu": (7, 1),
}  # fmt: skip
BRANCHES = {"eq": 0, "ne": 1, "lts": 4, "ges": 5, "ltu": 6, "geu": 7}
_LOADS = {"i8": 0, "i16": 1, "i32": 2, "i64": 3, "u64": 3, "u8": 4, "u16": 5, "u32": 6}
_STORES = {"8": 0, "16": 1, "32": 2, "64": 3}


def _word(value: int) -> bytes:
    return (value & 0xFFFF_FFFF).to_bytes(4, "little")


def fits12(value: int) -> bool:
    """Whether an I-type immediate holds `value`."""
    return -2048 <= value < 2048


def op(name: str, rd: int, rs1: int, rs2: int) -> bytes:
    """rd = rs1 name rs2."""
    funct3, funct7 = OP[name]
    return _word(funct7 << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | 0x33)


def op_imm(name: str, rd: int, rs1: int, value: int) -> bytes:
    """rd = rs1 name value; value fits 12 bits (6 for shifts)."""
    funct3, funct7 = OP[name]
    immediate = (funct7 << 5 | value) if name in ("shl", "shr", "sar") else value & 0xFFF
    return _word(immediate << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | 0x13)


def addi(rd: int, rs1: int, value: int) -> bytes:
    """rd = rs1 + value."""
    return op_imm("add", rd, rs1, value)


def addiw(rd: int, rs1: int, value: int) -> bytes:
    """rd = low 32 bits of rs1 + value, sign-extended."""
    return _word((value & 0xFFF) << 20 | rs1 << 15 | rd << 7 | 0x1B)


def lui(rd: int, value: int) -> bytes:
    """rd = value << 12, sign-extended from 32 bits."""
    return _word((value & 0xFFFFF) << 12 | rd << 7 | 0x37)


def auipc(rd: int) -> bytes:
    """rd = pc + a hole << 12."""
    return _word(rd << 7 | 0x17)


def load(kind: str, rd: int, base: int, offset: int) -> bytes:
    """rd = kind at [base + offset]."""
    return _word((offset & 0xFFF) << 20 | base << 15 | _LOADS[kind] << 12 | rd << 7 | 0x03)


def store(kind: str, source: int, base: int, offset: int) -> bytes:
    """[base + offset] = source."""
    high, low = (offset >> 5) & 0x7F, offset & 0x1F
    funct3 = _STORES[kind[1:]]
    return _word(high << 25 | source << 20 | base << 15 | funct3 << 12 | low << 7 | 0x23)


def branch(name: str, rs1: int, rs2: int) -> bytes:
    """A conditional branch with a hole for its distance."""
    return _word(rs2 << 20 | rs1 << 15 | BRANCHES[name] << 12 | 0x63)


def jal(rd: int) -> bytes:
    """A jump with a hole for its distance; rd = return address."""
    return _word(rd << 7 | 0x6F)


def jalr(rd: int, rs1: int, offset: int) -> bytes:
    """Jumps to rs1 + offset."""
    return _word((offset & 0xFFF) << 20 | rs1 << 15 | rd << 7 | 0x67)


ECALL = _word(0x73)
UNIMP = _word(0xC0001073)


def branch_distance(distance: int) -> int:
    """The bits of a B-type distance."""
    value = distance & 0x1FFF
    return (
        (value >> 12 & 1) << 31 | (value >> 5 & 0x3F) << 25
        | (value >> 1 & 0xF) << 8 | (value >> 11 & 1) << 7
    )  # fmt: skip


def jump_distance(distance: int) -> int:
    """The bits of a J-type distance."""
    value = distance & 0x1FFFFF
    return (
        (value >> 20 & 1) << 31 | (value >> 1 & 0x3FF) << 21
        | (value >> 11 & 1) << 20 | (value >> 12 & 0xFF) << 12
    )  # fmt: skip


def split(value: int) -> tuple[int, int]:
    """(high 20, low 12) so that (high << 12) + sign-extended low is `value`."""
    low = (value & 0xFFF) - ((value & 0x800) << 1)
    return (value - low) >> 12 & 0xFFFFF, low


def constant(rd: int, value: int) -> bytes:
    """rd = a 64-bit value: lui/addiw for 32 bits, then shifts of 12 and additions."""
    if fits12(value):
        return addi(rd, ZERO, value)
    if -(1 << 31) <= value < 1 << 31:
        high, low = split(value)
        return lui(rd, high) + (addiw(rd, rd, low) if low else b"")
    low = (value & 0xFFF) - ((value & 0x800) << 1)
    rest, shift = (value - low) >> 12, 12
    while rest & 1 == 0:
        rest, shift = rest >> 1, shift + 1
    rest = rest - (1 << 64) if rest >= 1 << 63 else rest
    code = constant(rd, rest) + op_imm("shl", rd, rd, shift)
    return code + (addi(rd, rd, low) if low else b"")
