"""Instructions that binutils and QEMU of our tests do not all know: Zicond, Zawrs, Zimop, Svinval, Zfh, Zfa, Zcb.

`encode_more("czero.eqz", 1, 2, 3)` gives the word: registers in assembly order (rd, rs1, rs2, rs3).
"""

from __future__ import annotations

from typing import NamedTuple

from framework.rv64_asm import encode


class Row(NamedTuple):
    """The bits of a word that are fixed; `rounds`: bits 14 to 12 are a rounding mode."""

    match: int
    mask: int
    rounds: bool


# name funct7 rs2 rs1 funct3 opcode; - is an operand, m a rounding mode
_ROWS = """
czero.eqz 07 - - 5 33
czero.nez 07 - - 7 33
fminm.s 14 - - 2 53
fmaxm.s 14 - - 3 53
fminm.d 15 - - 2 53
fmaxm.d 15 - - 3 53
fminm.h 16 - - 2 53
fmaxm.h 16 - - 3 53
fleq.s 50 - - 4 53
fltq.s 50 - - 5 53
fleq.d 51 - - 4 53
fltq.d 51 - - 5 53
fleq.h 52 - - 4 53
fltq.h 52 - - 5 53
fli.s 78 1 - 0 53
fli.d 79 1 - 0 53
fli.h 7a 1 - 0 53
fround.s 20 4 - m 53
froundnx.s 20 5 - m 53
fround.d 21 4 - m 53
froundnx.d 21 5 - m 53
fround.h 22 4 - m 53
froundnx.h 22 5 - m 53
fcvtmod.w.d 61 8 - 1 53
fadd.h 02 - - m 53
fsub.h 06 - - m 53
fmul.h 0a - - m 53
fdiv.h 0e - - m 53
fsqrt.h 2e 0 - m 53
fsgnj.h 12 - - 0 53
fsgnjn.h 12 - - 1 53
fsgnjx.h 12 - - 2 53
fmin.h 16 - - 0 53
fmax.h 16 - - 1 53
feq.h 52 - - 2 53
flt.h 52 - - 1 53
fle.h 52 - - 0 53
fclass.h 72 0 - 1 53
fmv.x.h 72 0 - 0 53
fmv.h.x 7a 0 - 0 53
fcvt.s.h 20 2 - m 53
fcvt.h.s 22 0 - m 53
fcvt.d.h 21 2 - m 53
fcvt.h.d 22 1 - m 53
fcvt.w.h 62 0 - m 53
fcvt.wu.h 62 1 - m 53
fcvt.l.h 62 2 - m 53
fcvt.lu.h 62 3 - m 53
fcvt.h.w 6a 0 - m 53
fcvt.h.wu 6a 1 - m 53
fcvt.h.l 6a 2 - m 53
fcvt.h.lu 6a 3 - m 53
"""


def _row(line: str) -> tuple[str, Row]:
    name, funct7, rs2, rs1, funct3, opcode = line.split()
    match, mask = int(opcode, 16) | int(funct7, 16) << 25, 0xFE00007F
    for text, shift, width in ((rs2, 20, 31), (rs1, 15, 31), (funct3, 12, 7)):
        if text not in "-m":
            match, mask = match | int(text, 16) << shift, mask | width << shift
    return name, Row(match, mask, funct3 == "m")


MORE = dict(_row(line) for line in _ROWS.strip().splitlines())
MORE |= {
    f"f{name}.h": Row(0x04000043 | at << 2, 0x0600007F, True)
    for at, name in enumerate(("madd", "msub", "nmsub", "nmadd"))
}
MORE |= {"flh": Row(0x1007, 0x707F, False), "fsh": Row(0x1027, 0x707F, False)}
MORE |= {
    "wrs.nto": Row(0x00D00073, 0xFFFFFFFF, False),
    "wrs.sto": Row(0x01D00073, 0xFFFFFFFF, False),
}
MORE |= {"mop.r": Row(0x81C04073, 0xB3C0707F, False), "mop.rr": Row(0x82004073, 0xB200707F, False)}
SUPERVISOR = {"sinval.vma": 0x16000073, "sfence.w.inval": 0x18000073, "sfence.inval.ir": 0x18100073}
_TAKES_FUNCT3 = {"mop.r", "mop.rr", "flh", "fsh"}


def encode_more(
    name: str, rd: int = 0, rs1: int = 0, rs2: int = 0, rs3: int = 0, rm: int = 7
) -> int:
    """The word. Operands that the instruction does not have are left out."""
    row = MORE[name]
    operands = rd << 7 | rs1 << 15 | rs2 << 20 | rs3 << 27 | (rm << 12 if row.rounds else 0)
    return row.match | operands & ~row.mask


def legal_more(word: int) -> bool:
    """Whether user mode executes the word because it is one of these."""
    return any(
        word & row.mask == row.match and not (row.rounds and word >> 12 & 7 in (5, 6))
        for row in MORE.values()
    )


def expand_more(half: int) -> int | None:
    """The 32-bit word that a halfword of Zcb or Zcmop stands for."""
    low, high = 8 + (half >> 2 & 7), 8 + (half >> 7 & 7)
    byte, word = half >> 6 & 1 | half >> 4 & 2, half >> 4 & 2
    memory = {
        0x8000: lambda: encode("lbu", low, high, byte),
        0x8400: lambda: encode("lh" if half >> 6 & 1 else "lhu", low, high, word),
        0x8800: lambda: encode("sb", low, high, byte),
        0x8C00: lambda: None if half >> 6 & 1 else encode("sh", low, high, word),
    }
    if half & 0xFC03 in memory:
        return memory[half & 0xFC03]()
    if half & 0xF8FF == 0x6081:
        return encode("addi", 0, 0, 0)
    if half & 0xFC63 == 0x9C41:
        return encode("mul", high, high, low)
    if half & 0xFC63 != 0x9C61:
        return None
    unary = {
        0: lambda: encode("andi", high, high, 255), 1: lambda: encode("sext.b", high, high),
        2: lambda: encode("zext.h", high, high), 3: lambda: encode("sext.h", high, high),
        4: lambda: encode("add.uw", high, high, 0), 5: lambda: encode("xori", high, high, -1),
    }.get(half >> 2 & 7)  # fmt: skip
    return unary() if unary else None
