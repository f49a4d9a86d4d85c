"""What random vector instructions are made of: words, types, registers. See rv64_vector.py."""

from __future__ import annotations

import random
import struct

from framework.rv64_asm import Assembler

XS, FS = range(16, 24), range(16, 24)
IVV, FVV, MVV, IVI, IVX, FVF, MVX = range(7)
TMP, RECORD, BASE_REG, STRIDE, INDEX_MASK, AVL = 5, 6, 7, 8, 9, 25


def word(funct6: int, vm: int, vs2: int, vs1: int, funct3: int, vd: int) -> int:
    """An OP-V instruction."""
    return funct6 << 26 | vm << 25 | vs2 << 20 | (vs1 & 31) << 15 | funct3 << 12 | vd << 7 | 0x57


def vtype(sew: int, lmul: int) -> int:
    """The immediate of vsetvli; tails and masked elements undisturbed."""
    return sew << 3 | lmul & 7


class Operands:
    """A stream under a vtype, and registers that fit it."""

    def __init__(self, rng: random.Random, out: Assembler, scratch: int, vlenb: int) -> None:
        self.rng, self.out, self.scratch, self.vlenb = rng, out, scratch, vlenb
        self.sew = self.lmul = self.vl = 0

    # ---- Operands

    def emit(self, *words: int) -> None:
        for one in words:
            self.out.raw(struct.pack("<I", one & 0xFFFFFFFF))

    def configure(self, least_sew: int = 0, most_sew: int = 3, most_lmul: int = 3) -> None:
        """A new vtype and vl."""
        self.sew = self.rng.randrange(least_sew, most_sew + 1)
        self.lmul = self.rng.randrange(max(-3, self.sew - 3), most_lmul + 1)
        most = (
            self.vlenb << self.lmul - self.sew
            if self.lmul >= self.sew
            else self.vlenb >> self.sew - self.lmul
        )
        self.vl = self.rng.choice(
            (most, most, self.rng.randrange(most + 1), self.rng.randrange(most + 1))
        )
        self.set_type(self.sew, self.lmul)

    def set_type(self, sew: int, lmul: int) -> None:
        self.out.emit("addi", AVL, 0, self.vl)
        self.emit(vtype(sew, lmul) << 20 | AVL << 15 | 7 << 12 | TMP << 7 | 0x57)

    def group(self, emul: int, *apart: tuple[int, int], masked: int = 1) -> int:
        """A register for 2^emul registers, apart from those given, and not v0 when masked."""
        size = 1 << max(emul, 0)
        free = [
            reg for reg in range(0 if masked else size, 32, size)
            if all(reg + size <= other or other + (1 << max(e, 0)) <= reg for other, e in apart)
        ]  # fmt: skip
        return self.rng.choice(free)

    def vm(self) -> int:
        return self.rng.choice((0, 1))

    def operand(self, form: str) -> tuple[int, int]:
        """Its field, and the register group it takes."""
        if form == "v":
            reg = self.group(self.lmul)
            return reg, reg
        if form == "i":
            return self.rng.randrange(32), -1
        return self.rng.choice(XS), -1

    # ---- Kinds

    def floats(self) -> bool:
        return self.sew >= 2

    def float_form(self) -> tuple[int, int]:
        if self.rng.random() < 0.5:
            return self.group(self.lmul), FVV
        return self.rng.choice(FS), FVF
