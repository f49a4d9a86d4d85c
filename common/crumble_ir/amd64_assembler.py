"""Encodings of the x86-64 instructions the back end uses (Intel SDM volume 2), 64-bit unless said."""

from __future__ import annotations

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 = range(16)

# The /digit of group 1 and of the plain opcodes: op r/m, r is digit * 8 + 1.
GROUP1 = {"add": 0, "or": 1, "and": 4, "sub": 5, "xor": 6, "cmp": 7}
SHIFTS = {"shl": 4, "shr": 5, "sar": 7}
CONDITIONS = {
    "eq": 4, "ne": 5, "ltu": 2, "geu": 3, "leu": 6, "gtu": 7, "lts": 12, "ges": 13, "les": 14,
    "gts": 15,
}  # fmt: skip


def _rex(wide: int, reg: int, rm: int, *, always: bool = False) -> bytes:
    value = 0x40 | wide << 3 | (reg >> 3) << 2 | rm >> 3
    return bytes([value]) if value != 0x40 or always else b""


def _direct(reg: int, rm: int) -> bytes:
    return bytes([0xC0 | (reg & 7) << 3 | rm & 7])


def _memory(reg: int, base: int, offset: int) -> bytes:
    """ModRM, SIB and displacement of [base + offset]."""
    low = (reg & 7) << 3 | base & 7
    sib = b"\x24" if base & 7 == RSP else b""
    if offset == 0 and base & 7 != RBP:
        return bytes([low]) + sib
    if fits8(offset):
        return bytes([0x40 | low]) + sib + offset.to_bytes(1, "little", signed=True)
    return bytes([0x80 | low]) + sib + offset.to_bytes(4, "little", signed=True)


def fits8(value: int) -> bool:
    """Whether a sign-extended byte holds `value`."""
    return -128 <= value < 128


def fits32(value: int) -> bool:
    """Whether a sign-extended 32-bit immediate holds `value`."""
    return -(1 << 31) <= value < 1 << 31


def mov(target: int, source: int) -> bytes:
    """target = source."""
    return _rex(1, source, target) + b"\x89" + _direct(source, target)


def mov_constant(target: int, value: int) -> bytes:
    """target = value, in the shortest form; does not touch the flags."""
    if 0 <= value < 1 << 32:
        return _rex(0, 0, target) + bytes([0xB8 | target & 7]) + value.to_bytes(4, "little")
    if fits32(value):
        data = value.to_bytes(4, "little", signed=True)
        return _rex(1, 0, target) + b"\xc7" + _direct(0, target) + data
    data = (value & ((1 << 64) - 1)).to_bytes(8, "little")
    return _rex(1, 0, target) + bytes([0xB8 | target & 7]) + data


def alu(name: str, target: int, source: int) -> bytes:
    """target = target name source (cmp: only flags)."""
    return _rex(1, source, target) + bytes([GROUP1[name] << 3 | 1]) + _direct(source, target)


def alu_constant(name: str, target: int, value: int) -> bytes:
    """target = target name value, which fits 32 bits."""
    digit = GROUP1[name]
    short = fits8(value)
    data = value.to_bytes(1 if short else 4, "little", signed=True)
    return _rex(1, 0, target) + (b"\x83" if short else b"\x81") + _direct(digit, target) + data


def imul(target: int, source: int) -> bytes:
    """target *= source."""
    return _rex(1, target, source) + b"\x0f\xaf" + _direct(target, source)


def imul_constant(target: int, source: int, value: int) -> bytes:
    """target = source * value, which fits 32 bits."""
    data = value.to_bytes(4, "little", signed=True)
    return _rex(1, target, source) + b"\x69" + _direct(target, source) + data


def shift(name: str, target: int, count: int) -> bytes:
    """target shifted by a constant."""
    return _rex(1, 0, target) + b"\xc1" + _direct(SHIFTS[name], target) + bytes([count])


def shift_cl(name: str, target: int) -> bytes:
    """target shifted by cl modulo 64."""
    return _rex(1, 0, target) + b"\xd3" + _direct(SHIFTS[name], target)


def divide(divisor: int, *, signed: bool) -> bytes:
    """rax, rdx = quotient, remainder of rdx:rax by divisor."""
    return _rex(1, 0, divisor) + b"\xf7" + _direct(7 if signed else 6, divisor)


def neg(target: int) -> bytes:
    """target = -target."""
    return _rex(1, 0, target) + b"\xf7" + _direct(3, target)


CQO = b"\x48\x99"
RET = b"\xc3"
SYSCALL = b"\x0f\x05"
UD2 = b"\x0f\x0b"


def zero(target: int) -> bytes:
    """target = 0; destroys the flags."""
    return _rex(0, target, target) + b"\x31" + _direct(target, target)


def extend(kind: str, target: int, source: int) -> bytes:
    """target = the low bits of source as `kind`."""
    if kind == "u32":
        return _rex(0, source, target) + b"\x89" + _direct(source, target)
    opcode = {
        "u8": b"\x0f\xb6",
        "u16": b"\x0f\xb7",
        "i8": b"\x0f\xbe",
        "i16": b"\x0f\xbf",
        "i32": b"\x63",
    }
    return _rex(1, target, source) + opcode[kind] + _direct(target, source)


def load(kind: str, target: int, base: int, offset: int) -> bytes:
    """target = kind at [base + offset], extended to 64 bits."""
    wide = 0 if kind == "u32" else 1
    opcode = {
        "u8": b"\x0f\xb6", "u16": b"\x0f\xb7", "u32": b"\x8b", "u64": b"\x8b", "i64": b"\x8b",
        "i8": b"\x0f\xbe", "i16": b"\x0f\xbf", "i32": b"\x63",
    }  # fmt: skip
    return _rex(wide, target, base) + opcode[kind] + _memory(target, base, offset)


def store(size: int, source: int, base: int, offset: int) -> bytes:
    """The low `size` bytes of source to [base + offset]."""
    prefix = b"\x66" if size == 2 else b""
    # Without a REX prefix byte registers 4 to 7 would mean ah to bh.
    rex = _rex(size == 8, source, base, always=size == 1 and 4 <= source < 8)
    return prefix + rex + (b"\x88" if size == 1 else b"\x89") + _memory(source, base, offset)


def lea(target: int, base: int, offset: int) -> bytes:
    """target = base + offset."""
    return _rex(1, target, base) + b"\x8d" + _memory(target, base, offset)


def lea_sum(target: int, base: int, index: int) -> bytes:
    """target = base + index (index is not rsp)."""
    rex = 0x48 | (target >> 3) << 2 | (index >> 3) << 1 | base >> 3
    sib = (index & 7) << 3 | base & 7
    if base & 7 == RBP:
        return bytes([rex, 0x8D, 0x44 | (target & 7) << 3, sib, 0])
    return bytes([rex, 0x8D, 0x04 | (target & 7) << 3, sib])


def lea_rip(target: int) -> bytes:
    """target = rip + a 32-bit hole at the end."""
    return _rex(1, target, 0) + b"\x8d" + bytes([(target & 7) << 3 | 5]) + bytes(4)


def set_if(condition: str, target: int) -> bytes:
    """target = 1 if the flags say so, else 0."""
    byte = _rex(0, 0, target, always=True) + bytes([0x0F, 0x90 | CONDITIONS[condition]])
    return byte + _direct(0, target) + extend("u8", target, target)


def jump_if(condition: str) -> bytes:
    """A conditional jump with a 32-bit hole at its end."""
    return bytes([0x0F, 0x80 | CONDITIONS[condition]]) + bytes(4)


JUMP = b"\xe9" + bytes(4)
CALL = b"\xe8" + bytes(4)
