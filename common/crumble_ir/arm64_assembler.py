"""Encodings of the A64 instructions the back end uses (Arm ARM DDI 0487, chapter C6); 64-bit forms."""

from __future__ import annotations

X0, X1, X2, X3, X4, X5, X6, X7, X8, X9, X10, X11, X12, X13, X14, X15 = range(16)
X16, X17, X18, X19, X20, X21, X22, X23, X24, X25, X26, X27, X28, X29, LR = range(16, 31)
# Number 31 is the stack pointer as a base, of add_extended() and of immediates, elsewhere zero.
SP = ZERO = 31

OP = {
    "add": 0x8B000000, "sub": 0xCB000000, "and": 0x8A000000, "or": 0xAA000000, "xor": 0xCA000000,
    "mul": 0x9B007C00, "divu": 0x9AC00800, "divs": 0x9AC00C00, "shl": 0x9AC02000,
    "shr": 0x9AC02400, "sar": 0x9AC02800,
}  # fmt: skip
LOGICAL = {"and": 0x92000000, "or": 0xB2000000, "xor": 0xD2000000}
CONDITIONS = {
    "eq": 0, "ne": 1, "geu": 2, "ltu": 3, "gtu": 8, "leu": 9, "ges": 10, "lts": 11, "gts": 12,
    "les": 13,
}  # fmt: skip
# (log2 of the size, opcode of the scaled form).
_LOADS = {
    "u8": (0, 0x39400000), "u16": (1, 0x79400000), "u32": (2, 0xB9400000), "u64": (3, 0xF9400000),
    "i8": (0, 0x39800000), "i16": (1, 0x79800000), "i32": (2, 0xB9800000), "i64": (3, 0xF9400000),
}  # fmt: skip
_STORES = {"8": 0x39000000, "16": 0x79000000, "32": 0xB9000000, "64": 0xF9000000}
_SHIFTS = {"8": 0, "16": 1, "32": 2, "64": 3}
_UNSCALED = 1 << 24
_MASK = (1 << 64) - 1


def _word(value: int) -> bytes:
    return value.to_bytes(4, "little")


def op(name: str, rd: int, rn: int, rm: int) -> bytes:
    """rd = rn name rm; shift counts are taken modulo 64."""
    return _word(OP[name] | rm << 16 | rn << 5 | rd)


def msub(rd: int, rn: int, rm: int, ra: int) -> bytes:
    """rd = ra - rn * rm."""
    return _word(0x9B008000 | rm << 16 | ra << 10 | rn << 5 | rd)


def add_extended(rd: int, rn: int, rm: int) -> bytes:
    """rd = rn + rm, where rd and rn may be the stack pointer."""
    return _word(0x8B206000 | rm << 16 | rn << 5 | rd)


def fits_add(value: int) -> bool:
    """Whether add_constant() and compare_constant() take `value`: 12 bits, or 12 above 12 zeros."""
    value = abs(value)
    return value < 1 << 12 or (value < 1 << 24 and value & 0xFFF == 0)


def _add_immediate(opcode: int, rd: int, rn: int, value: int) -> bytes:
    """opcode is of the addition; a negative value subtracts."""
    size = abs(value)
    field = size if size < 1 << 12 else size >> 12 | 1 << 12
    return _word(opcode | (value < 0) << 30 | field << 10 | rn << 5 | rd)


def add_constant(rd: int, rn: int, value: int) -> bytes:
    """rd = rn + value; both may be the stack pointer."""
    return _add_immediate(0x91000000, rd, rn, value)


def compare_constant(rn: int, value: int) -> bytes:
    """Sets the flags of rn - value. Comparing with 0 must subtract, or the carry would be wrong."""
    return _add_immediate(0xB1000000, ZERO, rn, -value) if value else _word(0xF100001F | rn << 5)


def compare(rn: int, rm: int) -> bytes:
    """Sets the flags of rn - rm."""
    return _word(0xEB00001F | rm << 16 | rn << 5)


def bitmask(value: int) -> int | None:
    """N:immr:imms of a logical immediate: a rotated run of ones, repeated (DecodeBitMasks), or None."""
    value &= _MASK
    if value in (0, _MASK):
        return None
    size = 64
    while size > 2 and _repeats(value, size // 2):
        size //= 2
    element = value & (1 << size) - 1
    ones = element.bit_count()
    for rotation in range(size):
        if _rotate(element, rotation, size) == (1 << ones) - 1:
            # The size is written as the leading ones above the count; N says 64.
            imms = (~(2 * size - 1) & 0x3F) | ones - 1
            return int(size == 64) << 12 | rotation << 6 | imms
    return None


def _repeats(value: int, size: int) -> bool:
    return value == _rotate(value, size, 64)


def _rotate(value: int, count: int, size: int) -> int:
    """To the left, in `size` bits."""
    return (value << count | value >> size - count) & (1 << size) - 1


def logical_constant(name: str, rd: int, rn: int, field: int) -> bytes:
    """rd = rn name the value that bitmask() gave `field` for."""
    return _word(LOGICAL[name] | field << 10 | rn << 5 | rd)


def _bitfield(signed: bool, rd: int, rn: int, immr: int, imms: int) -> bytes:
    return _word((0x93400000 if signed else 0xD3400000) | immr << 16 | imms << 10 | rn << 5 | rd)


def shift(name: str, rd: int, rn: int, count: int) -> bytes:
    """rd = rn shifted by a constant."""
    if name == "shl":
        return _bitfield(False, rd, rn, -count % 64, 63 - count)
    return _bitfield(name == "sar", rd, rn, count, 63)


def extend(kind: str, rd: int, rn: int) -> bytes:
    """rd = the low bits of rn as `kind`."""
    return _bitfield(kind[0] == "i", rd, rn, 0, int(kind[1:]) - 1)


def mov(rd: int, rm: int) -> bytes:
    """rd = rm."""
    return op("or", rd, ZERO, rm)


def constant(rd: int, value: int) -> bytes:
    """rd = value, in one to four instructions."""
    parts = [value >> at & 0xFFFF for at in (0, 16, 32, 48)]
    background = 0xFFFF if parts.count(0xFFFF) > parts.count(0) else 0
    rest = [hw for hw in range(4) if parts[hw] != background] or [0]
    first = rest[0]
    opcode, low = (0x92800000, parts[first] ^ 0xFFFF) if background else (0xD2800000, parts[first])
    code = _word(opcode | first << 21 | low << 5 | rd)
    return code + b"".join(
        _word(0xF2800000 | hw << 21 | parts[hw] << 5 | rd) for hw in rest[1:]
    )  # fmt: skip


def fits_offset(kind: str, offset: int) -> bool:
    """Whether load() and store() of `kind` take `offset`."""
    scale = _SHIFTS[kind[1:]]
    return -256 <= offset < 256 or (offset % (1 << scale) == 0 and 0 <= offset >> scale < 4096)


def _memory(opcode: int, scale: int, rt: int, base: int, offset: int) -> bytes:
    if offset >= 0 and offset % (1 << scale) == 0:
        return _word(opcode | offset >> scale << 10 | base << 5 | rt)
    return _word(opcode & ~_UNSCALED | (offset & 0x1FF) << 12 | base << 5 | rt)


def load(kind: str, rt: int, base: int, offset: int) -> bytes:
    """rt = kind at [base + offset], extended to 64 bits."""
    scale, opcode = _LOADS[kind]
    return _memory(opcode, scale, rt, base, offset)


def store(kind: str, rt: int, base: int, offset: int) -> bytes:
    """[base + offset] = the low bits of rt."""
    return _memory(_STORES[kind[1:]], _SHIFTS[kind[1:]], rt, base, offset)


def set_if(condition: str, rd: int) -> bytes:
    """rd = 1 if the flags say so, else 0: cset."""
    return _word(0x9A9F07E0 | (CONDITIONS[condition] ^ 1) << 12 | rd)


def branch_if(condition: str) -> bytes:
    """A conditional branch with a hole for its distance."""
    return _word(0x54000000 | CONDITIONS[condition])


def adr(rd: int) -> bytes:
    """rd = pc + a hole of 21 bits."""
    return _word(0x10000000 | rd)


def move_high(rd: int) -> bytes:
    """rd = a hole of 16 bits << 16."""
    return _word(0xD2A00000 | rd)


B, BL = _word(0x14000000), _word(0x94000000)
RET = _word(0xD65F03C0)
SVC = _word(0xD4000001)
UDF = _word(0)


def branch_distance(distance: int) -> int:
    """The bits of a conditional branch's distance."""
    return (distance >> 2 & 0x7FFFF) << 5


def jump_distance(distance: int) -> int:
    """The bits of a jump's or call's distance."""
    return distance >> 2 & 0x3FFFFFF


def move_value(value: int) -> int:
    """The bits of a move's 16-bit constant."""
    return value << 5


def adr_distance(distance: int) -> int:
    """The bits of adr's distance."""
    return (distance & 3) << 29 | (distance >> 2 & 0x7FFFF) << 5
