"""Random vector instructions on integers and masks. See rv64_vector.py."""

from __future__ import annotations

from framework.rv64_vector_base import (
    FS,
    FVF,
    FVV,
    IVI,
    IVV,
    IVX,
    MVV,
    MVX,
    XS,
    Operands,
    word,
)

# funct6 by the forms they have (v x i)
_INTEGER = {
    0x00: "vxi", 0x02: "vx", 0x03: "xi", 0x04: "vx", 0x05: "vx", 0x06: "vx", 0x07: "vx", 0x09: "vxi", 0x0A: "vxi",
    0x0B: "vxi", 0x20: "vxi", 0x21: "vxi", 0x22: "vx", 0x23: "vx", 0x25: "vxi", 0x27: "vx", 0x28: "vxi",
    0x29: "vxi", 0x2A: "vxi", 0x2B: "vxi",
}  # fmt: skip
_COMPARE = {
    0x18: "vxi",
    0x19: "vxi",
    0x1A: "vx",
    0x1B: "vx",
    0x1C: "vxi",
    0x1D: "vxi",
    0x1E: "xi",
    0x1F: "xi",
}
_CARRY = {0x10: "vxi", 0x12: "vx"}
_CARRY_OUT = {0x11: "vxi", 0x13: "vx"}
_NARROW = {0x2C: "vxi", 0x2D: "vxi", 0x2E: "vxi", 0x2F: "vxi"}
_MULTIPLY = [0x08, 0x09, 0x0A, 0x0B, *range(0x20, 0x28), 0x29, 0x2B, 0x2D, 0x2F]
_WIDE = [0x30, 0x31, 0x32, 0x33, 0x38, 0x3A, 0x3B, 0x3C, 0x3D, 0x3F]
_WIDE_W = [0x34, 0x35, 0x36, 0x37]
_FLOAT_COMPARE = {0x18: "vf", 0x19: "vf", 0x1B: "vf", 0x1C: "vf", 0x1D: "f", 0x1F: "f"}


class Integers(Operands):
    """One method a kind."""

    def integer(self) -> None:
        funct6 = self.rng.choice(list(_INTEGER))
        form = self.rng.choice(_INTEGER[funct6])
        vm = self.vm()
        self.emit(word(funct6, vm, self.group(self.lmul), self.operand(form)[0], {"v": IVV, "x": IVX, "i": IVI}[form], self.group(self.lmul, masked=vm)))  # fmt: skip

    def compare(self) -> None:
        table, three, scalar = self.rng.choice(((_COMPARE, IVV, IVX), (_CARRY_OUT, IVV, IVX), (_FLOAT_COMPARE, FVV, FVF)))  # fmt: skip
        if three == FVV and not self.floats():
            return
        funct6 = self.rng.choice(list(table))
        form = self.rng.choice(table[funct6])
        other, group = self.operand(form)
        vs2 = self.group(self.lmul)
        taken = [(vs2, self.lmul)] + ([(group, self.lmul)] if group >= 0 else [])
        vd = self.group(0, *taken)
        self.emit(word(funct6, self.vm(), vs2, other, {"v": three, "i": IVI}.get(form, scalar), vd))

    def carry(self) -> None:
        funct6 = self.rng.choice(list(_CARRY))
        form = self.rng.choice(_CARRY[funct6])
        self.emit(word(funct6, 0, self.group(self.lmul), self.operand(form)[0], {"v": IVV, "x": IVX, "i": IVI}[form], self.group(self.lmul, masked=0)))  # fmt: skip

    def merge(self) -> None:
        vm = self.vm()
        form = self.rng.choice("vxif" if self.floats() else "vxi")
        vs2 = 0 if vm else self.group(self.lmul)
        self.emit(word(0x17, vm, vs2, self.operand(form)[0], {"v": IVV, "x": IVX, "i": IVI, "f": FVF}[form], self.group(self.lmul, masked=vm)))  # fmt: skip

    def multiply(self) -> None:
        form, vm = self.rng.choice("vx"), self.vm()
        self.emit(word(self.rng.choice(_MULTIPLY), vm, self.group(self.lmul), self.operand(form)[0], MVV if form == "v" else MVX, self.group(self.lmul, masked=vm)))  # fmt: skip

    def widening(self) -> None:
        if self.sew == 3 or self.lmul == 3:
            return
        vm, form = self.vm(), self.rng.choice("vx")
        vd = self.group(self.lmul + 1, masked=vm)
        taken = (vd, self.lmul + 1)
        wide = self.rng.random() < 0.3
        funct6 = self.rng.choice(_WIDE_W if wide else [*_WIDE, 0x3E] if form == "x" else _WIDE)
        vs2 = self.group(self.lmul + 1) if wide else self.group(self.lmul, taken)
        other = self.group(self.lmul, taken) if form == "v" else self.rng.choice(XS)
        self.emit(word(funct6, vm, vs2, other, MVV if form == "v" else MVX, vd))

    def narrowing(self) -> None:
        if self.sew == 3 or self.lmul == 3:
            return
        vm, funct6 = self.vm(), self.rng.choice(list(_NARROW))
        form = self.rng.choice("vxi")
        vd = self.group(self.lmul, masked=vm)
        vs2 = self.group(self.lmul + 1, (vd, self.lmul))
        self.emit(
            word(funct6, vm, vs2, self.operand(form)[0], {"v": IVV, "x": IVX, "i": IVI}[form], vd)
        )

    def extend(self) -> None:
        down = self.rng.randrange(1, 4)
        if self.sew - down < 0 or self.lmul - down < -3:
            return
        vm = self.vm()
        vd = self.group(self.lmul, masked=vm)
        vs2 = self.group(self.lmul - down, (vd, self.lmul))
        self.emit(word(0x12, vm, vs2, (4 - down) * 2 + self.rng.randrange(2), MVV, vd))

    def mask(self) -> None:
        choice = self.rng.randrange(6)
        if choice <= 1:
            self.emit(
                word(
                    self.rng.randrange(0x18, 0x20),
                    1,
                    self.group(0),
                    self.group(0),
                    MVV,
                    self.group(0),
                )
            )
        elif choice == 2:
            self.emit(
                word(
                    0x10,
                    self.vm(),
                    self.group(0),
                    self.rng.choice((16, 17)),
                    MVV,
                    self.rng.choice(XS),
                )
            )
        elif choice == 3:
            vm, vs2 = self.vm(), self.group(0)
            self.emit(
                word(
                    0x14,
                    vm,
                    vs2,
                    self.rng.choice((1, 2, 3)),
                    MVV,
                    self.group(0, (vs2, 0), masked=vm),
                )
            )
        elif choice == 4:
            vm, vs2 = self.vm(), self.group(0)
            apart = [(vs2, 0)] if vm else [(vs2, 0), (0, 0)]
            self.emit(word(0x14, vm, vs2, 16, MVV, self.group(self.lmul, *apart, masked=vm)))
        else:
            vm = self.vm()
            self.emit(word(0x14, vm, 0, 17, MVV, self.group(self.lmul, masked=vm)))

    def reduction(self) -> None:
        vm, wide = self.vm(), self.rng.random() < 0.3
        if wide and self.sew == 3:
            return
        funct6 = self.rng.choice((0x30, 0x31)) if wide else self.rng.randrange(8)
        if self.floats() and self.rng.random() < 0.4:
            funct6 = self.rng.choice((0x03, 0x05, 0x07))
            if self.sew < 3 and self.rng.random() < 0.3:
                funct6 = 0x33
            self.emit(word(funct6, vm, self.group(self.lmul), self.group(0), FVV, self.group(0)))
            return
        self.emit(
            word(
                funct6,
                vm,
                self.group(self.lmul),
                self.group(0),
                IVV if wide else MVV,
                self.group(0),
            )
        )

    def permute(self) -> None:
        vm, choice = self.vm(), self.rng.randrange(9)
        vd = self.group(self.lmul, masked=vm)
        apart = (vd, self.lmul)
        vs2 = self.group(self.lmul, apart)
        small = self.rng.choice(XS)
        if choice == 0:
            self.emit(
                word(
                    0x0E,
                    vm,
                    vs2,
                    *self.rng.choice(((small, IVX), (self.rng.randrange(32), IVI))),
                    vd,
                )
            )
        elif choice == 1:
            self.emit(
                word(
                    0x0F,
                    vm,
                    vs2,
                    *self.rng.choice(((small, IVX), (self.rng.randrange(32), IVI))),
                    vd,
                )
            )
        elif choice == 2:
            self.emit(word(self.rng.choice((0x0E, 0x0F)), vm, vs2, small, MVX, vd))
        elif choice == 3 and self.floats():
            self.emit(word(self.rng.choice((0x0E, 0x0F)), vm, vs2, small, FVF, vd))
        elif choice == 4:
            self.emit(word(0x0C, vm, vs2, self.group(self.lmul, apart), IVV, vd))
        elif choice == 5:
            self.emit(
                word(
                    0x0C,
                    vm,
                    vs2,
                    *self.rng.choice(((small, IVX), (self.rng.randrange(32), IVI))),
                    vd,
                )
            )
        elif choice == 6 and -3 <= self.lmul + 1 - self.sew <= 3:
            self.emit(word(0x0E, vm, vs2, self.group(self.lmul + 1 - self.sew, apart), IVV, vd))
        elif choice == 7:
            self.emit(word(0x17, 1, vs2, self.group(0, apart), MVV, vd))
        else:
            count = self.rng.choice((1, 2, 4, 8))
            self.emit(
                word(
                    0x27,
                    1,
                    self.rng.randrange(0, 32, count),
                    count - 1,
                    IVI,
                    self.rng.randrange(0, 32, count),
                )
            )

    def scalar(self) -> None:
        choice = self.rng.randrange(4)
        if choice == 0:
            self.emit(word(0x10, 1, self.group(0), 0, MVV, self.rng.choice(XS)))
        elif choice == 1:
            self.emit(word(0x10, 1, 0, self.rng.choice(XS), MVX, self.group(0)))
        elif self.floats():
            if choice == 2:
                self.emit(word(0x10, 1, self.group(0), 0, FVV, self.rng.choice(FS)))
            else:
                self.emit(word(0x10, 1, 0, self.rng.choice(FS), FVF, self.group(0)))
