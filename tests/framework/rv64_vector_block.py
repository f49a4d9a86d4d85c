"""Random vector instructions on floats and memory, and which kinds how often. See rv64_vector.py."""

from __future__ import annotations

from collections.abc import Callable

from framework.rv64_vector_base import (
    BASE_REG,
    FS,
    FVF,
    FVV,
    INDEX_MASK,
    IVI,
    IVX,
    MVV,
    STRIDE,
    TMP,
    word,
)
from framework.rv64_vector_integer import Integers

_FLOAT = {0x00: "vf", 0x02: "vf", 0x04: "vf", 0x06: "vf", 0x08: "vf", 0x09: "vf", 0x0A: "vf", 0x20: "vf", 0x21: "f",
          0x24: "vf", 0x27: "f", **dict.fromkeys(range(40, 48), "vf")}  # fmt: skip
_FLOAT_WIDE = [0x30, 0x32, 0x38, 0x3C, 0x3D, 0x3E, 0x3F]


class VectorBlock(Integers):
    """A few instructions under a few vtypes."""

    def floating(self) -> None:
        if not self.floats():
            return
        funct6 = self.rng.choice(list(_FLOAT))
        vm = self.vm()
        other, funct3 = self.float_form() if _FLOAT[funct6] == "vf" else (self.rng.choice(FS), FVF)
        self.emit(
            word(funct6, vm, self.group(self.lmul), other, funct3, self.group(self.lmul, masked=vm))
        )

    def floating_unary(self) -> None:
        if not self.floats():
            return
        vm = self.vm()
        vs2, vd = self.group(self.lmul), self.group(self.lmul, masked=vm)
        if self.rng.random() < 0.5:
            self.emit(word(0x13, vm, vs2, self.rng.choice((0, 4, 5, 16)), FVV, vd))
        else:
            self.emit(word(0x12, vm, vs2, self.rng.choice((0, 1, 2, 3)), FVV, vd))

    def floating_wide(self) -> None:
        if self.sew != 2 or self.lmul == 3:
            return
        vm = self.vm()
        if self.rng.random() < 0.5:
            vd = self.group(self.lmul + 1, masked=vm)
            taken = (vd, self.lmul + 1)
            other, funct3 = (
                (self.group(self.lmul, taken), FVV)
                if self.rng.random() < 0.5
                else (self.rng.choice(FS), FVF)
            )
            if self.rng.random() < 0.25:
                self.emit(
                    word(
                        self.rng.choice((0x34, 0x36)),
                        vm,
                        self.group(self.lmul + 1),
                        other,
                        funct3,
                        vd,
                    )
                )
            else:
                self.emit(
                    word(
                        self.rng.choice(_FLOAT_WIDE),
                        vm,
                        self.group(self.lmul, taken),
                        other,
                        funct3,
                        vd,
                    )
                )
        elif self.rng.random() < 0.5:
            vd = self.group(self.lmul + 1, masked=vm)
            which = self.rng.choice((8, 9, 10, 11, 12))
            self.emit(word(0x12, vm, self.group(self.lmul, (vd, self.lmul + 1)), which, FVV, vd))
        else:
            vd = self.group(self.lmul, masked=vm)
            which = self.rng.choice((16, 17, 18, 19, 20))
            self.emit(word(0x12, vm, self.group(self.lmul + 1, (vd, self.lmul)), which, FVV, vd))

    def rounding(self) -> None:
        self.out.emit("csrrwi", TMP, "frm", self.rng.randrange(5))
        self.emit(0x00A << 20 | self.rng.randrange(4) << 15 | 5 << 12 | TMP << 7 | 0x73)  # vxrm

    # ---- Memory

    def memory(self) -> None:
        kind = self.rng.choice(
            ("unit", "unit", "strided", "indexed", "segment", "whole", "mask", "first")
        )
        store = self.rng.random() < 0.5
        eew = self.rng.randrange(4)
        emul = self.lmul + eew - self.sew
        vm = self.vm()
        low = 0x27 if store else 0x07
        width = (0, 5, 6, 7)[eew]
        self.out.li(BASE_REG, self.scratch + 1024 + self.rng.randrange(64))
        if kind == "whole":
            count = self.rng.choice((1, 2, 4, 8))
            reg = self.rng.randrange(0, 32, count)
            self.emit(
                (count - 1) << 29
                | 1 << 25
                | 8 << 20
                | BASE_REG << 15
                | (0 if store else width) << 12
                | reg << 7
                | low
            )
            return
        if kind == "mask":
            self.emit(1 << 25 | 11 << 20 | BASE_REG << 15 | self.group(0) << 7 | low)
            return
        if kind == "indexed":
            self.indexed(store, vm, eew, emul)
            return
        if not -3 <= emul <= 3:
            return
        size = 1 << max(emul, 0)
        fields = self.rng.randrange(1, 8 // size + 1) if kind == "segment" else 1
        first = 0 if vm or store else size
        starts = list(range(first, 33 - fields * size, size))
        if not starts:
            return
        reg = self.rng.choice(starts)
        mop, rs2 = 0, 0
        if kind == "first" and not store:
            rs2 = 16
        elif kind == "strided" or (kind == "segment" and self.rng.random() < 0.5):
            mop, rs2 = 2, STRIDE
            self.out.emit(
                "addi",
                STRIDE,
                0,
                self.rng.choice((0, 1, 8, -8, 1 << eew, self.rng.randrange(-8, 17)))
                if fields == 1 or not store
                else fields << eew,
            )
        self.emit(
            (fields - 1) << 29
            | mop << 26
            | vm << 25
            | rs2 << 20
            | BASE_REG << 15
            | width << 12
            | reg << 7
            | low
        )

    def indexed(self, store: bool, vm: int, eew: int, emul: int) -> None:
        if not -3 <= emul <= 3:
            return
        size = 1 << max(self.lmul, 0)
        fields = self.rng.randrange(1, 8 // size + 1)
        first = 0 if vm or store else size
        starts = list(range(first, 33 - fields * size, size))
        if not starts:
            return
        reg = self.rng.choice(starts)
        need = [(reg + at * size, self.lmul) for at in range(fields)]
        try:
            index = self.group(emul, *need)
        except IndexError:
            return
        sew, lmul = self.sew, self.lmul
        self.set_type(eew, emul)
        self.out.emit("addi", INDEX_MASK, 0, 0x1F8)
        self.emit(word(0x09, 1, index, INDEX_MASK, IVX, index))
        if store:  # to places apart: in what order they are stored is not said
            self.emit(word(0x14, 1, 0, 17, MVV, index), word(0x25, 1, index, 3, IVI, index))
            if (self.vl << 3) + 64 > 1024 or (eew == 0 and self.vl > 31) or fields << sew > 8:
                self.set_type(sew, lmul)
                return
        self.set_type(sew, lmul)
        ordered = self.rng.choice((1, 3))
        self.emit((fields - 1) << 29 | ordered << 26 | vm << 25 | index << 20 | BASE_REG << 15 | (0, 5, 6, 7)[eew] << 12 | reg << 7 | (0x27 if store else 0x07))  # fmt: skip

    KINDS: tuple[tuple[Callable[..., None], int], ...] = (
        (Integers.integer, 16), (Integers.compare, 8), (Integers.carry, 3), (Integers.merge, 4), (Integers.multiply, 10), (Integers.widening, 8), (Integers.narrowing, 6), (Integers.extend, 4),
        (Integers.mask, 8), (Integers.reduction, 6), (Integers.permute, 12), (Integers.scalar, 4), (floating, 14), (floating_unary, 6), (floating_wide, 6),
        (rounding, 3), (memory, 20),
    )  # fmt: skip

    def make(self, units: int) -> None:
        makers, weights = zip(*self.KINDS, strict=True)
        self.configure()
        for _ in range(units):
            if self.rng.random() < 0.3:
                self.configure()
            self.rng.choices(makers, weights)[0](self)
