"""Random riscv64 instruction streams for kernels to compare engines by (rv64_system.py).

Streams terminate: branches go forwards, but for loops over a register that nothing else writes. They
touch memory only in the block's scratch buffer, aligned where atomics need it, and read nothing that
differs between CPUs (cycle, time, instret; a reservation that other accesses may break).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from framework.rv64_asm import Assembler
from framework.rv64_asm_c import FORMS_C
from framework.rv64_opcodes import FORMS
from framework.rv64_values import integer

POOL_SIZE = 256  # constant floats
SCRATCH_SIZE = 1024
SP = 2

INTEGER_KINDS = {"r", "unary", "i", "shift", "u"}
NOT_STREAMED = {"jalr", "fence.i", "fence"}


def writes_float(name: str) -> bool:
    """True when rd is an f register."""
    if not name.startswith("f") or name.startswith("fence"):
        return False
    to_integer = ("fle", "flt", "feq", "fclass", "fmv.x", "fcvt.w", "fcvt.l")
    return not name.startswith(to_integer)


def _names(*kinds: str, floating: bool) -> list[str]:
    return [
        name
        for name, form in FORMS.items()
        if form.kind in kinds and name not in NOT_STREAMED and (name[0] == "f") == floating
    ]


INTEGER = _names(*INTEGER_KINDS, floating=False)
FLOATING = _names("r", "unary", "fp1", "fp2", "fma", floating=True)
LOADS = [name for name, form in FORMS.items() if form.kind == "load"]
STORES = [name for name, form in FORMS.items() if form.kind == "store"]
BRANCHES = [name for name, form in FORMS.items() if form.kind == "branch"]
AMOS = [name for name, form in FORMS.items() if form.kind == "amo" and name[:2] != "sc"]
COMPRESSED_ALU = [
    name for name in FORMS_C if (not set(name.split(".")[1]) & set("jb") and name[2:5] != "ebr"
    and name[2] not in "fls") or name in ("c.li", "c.lui", "c.srli", "c.srai", "c.slli", "c.sub", "c.subw")
]  # fmt: skip
COMPRESSED_MEMORY = [
    name for name in FORMS_C if name[2:] in
    {"fld", "lw", "ld", "fsd", "sw", "sd", "fldsp", "lwsp", "ldsp", "fsdsp", "swsp", "sdsp"}
]  # fmt: skip


@dataclass
class Block:
    """One stream being made. `units` is how many things it does; each is a few instructions."""

    rng: random.Random
    out: Assembler
    number: int
    scratch: int
    pool: int
    _pending: list[list[object]] = field(default_factory=list)
    _labels: int = 0

    def __post_init__(self) -> None:
        chosen = self.rng.sample([n for n in range(1, 32) if n != SP and not 8 <= n < 16], 3)
        self.base, self.counter, self.rough = chosen
        self.near = self.rng.randrange(8, 16)  # an aligned pointer that compressed forms reach
        fixed = {0, SP, self.counter, self.rough, self.near}
        self.writable = [n for n in range(32) if n not in fixed]
        self.near_writable = [n for n in range(8, 16) if n != self.near]

    # -- operands

    def source(self) -> int:
        return self.rng.randrange(32)

    def rd(self) -> int:
        return self.rng.choice(self.writable) if self.rng.random() < 0.97 else 0

    def destination(self, name: str) -> int:
        return self.source() if writes_float(name) else self.rd()

    def rm(self) -> int:
        return self.rng.choice((7, 7, 7, 7, 7, 0, 1, 2, 3, 4))

    def point(self, register: int, address: int) -> None:
        """register = address, in two instructions."""
        low = (address & 0xFFF) - (0x1000 if address & 0x800 else 0)
        self.out.emit("lui", register, (address - low) >> 12)
        self.out.emit("addiw", register, register, low)

    def new_label(self) -> str:
        self._labels += 1
        return f"{self.number}.{self._labels}"

    def forward(self) -> str:
        """A label that will be placed a few units from here."""
        label = self.new_label()
        self._pending.append([self.rng.randrange(1, 5), label])
        return label

    def place_labels(self, everything: bool = False) -> None:
        for entry in self._pending:
            entry[0] = int(str(entry[0])) - 1
        for left, label in list(self._pending):
            if everything or int(str(left)) <= 0:
                self.out.label(str(label))
        self._pending = [] if everything else [e for e in self._pending if int(str(e[0])) > 0]

    # -- units

    def integer(self) -> None:
        name = self.rng.choice(INTEGER)
        kind = FORMS[name].kind
        operands = {
            "r": lambda: (self.source(), self.source()),
            "unary": lambda: (self.source(),),
            "i": lambda: (self.source(), self.rng.choice((0, 1, -1, 2047, -2048, self.rng.randrange(-2048, 2048)))),
            "shift": lambda: (self.source(), self.rng.randrange(32 if name.rstrip("i")[-1] == "w" and name != "slli.uw" else 64)),
            "u": lambda: (self.rng.choice((0, 0xFFFFF, 0x80000, self.rng.getrandbits(20))),),
        }[kind]()  # fmt: skip
        rd = self.rd()
        if name == "ctzw":  # QEMU before 8.0 counts on into the upper half: give it an empty one
            self.out.emit("add.uw", rd, operands[0], 0)
            operands = (rd,)
        self.out.emit(name, rd, *operands)

    def constant(self) -> None:
        self.out.li(self.rng.choice(self.writable), integer(self.rng))

    def floating(self) -> None:
        name = self.rng.choice(FLOATING)
        kind = FORMS[name].kind
        count = {"r": 2, "unary": 1, "fp1": 1, "fp2": 2, "fma": 3}[kind]
        sources = [self.source() for _ in range(count)]
        if self.rng.random() < 0.6 and name[:7] not in ("fmv.w.x", "fmv.d.x", "fcvt.s.", "fcvt.d."):
            base = self.rng.choice(self.writable)
            self.point(base, self.pool)
            for register in sources:
                self.out.emit("fld", register, base, 8 * self.rng.randrange(POOL_SIZE // 8))
        options = {} if kind in ("r", "unary") else {"rm": self.rm()}
        self.out.emit(name, self.destination(name), *sources, **options)
        if self.rng.random() < 0.4:
            self.out.emit("csrrwi", self.rd(), "fflags", 0)  # what this one raised

    def memory(self) -> None:
        name = self.rng.choice(self.rng.choice((LOADS, STORES)))
        size = 8
        if self.rng.random() < 0.5:
            offset = self.rng.choice((0, 2047, -2048, self.rng.randrange(-2048, 2048)))
            base = self.rng.choice(self.writable)
            self.point(base, self.scratch + self.rng.randrange(SCRATCH_SIZE - size + 1) - offset)
        else:
            base = self.rng.choice((self.near, self.rough, SP))
            low = {self.near: -256, self.rough: -512, SP: 0}[base]
            offset = self.rng.randrange(low, 256)
        register = self.destination(name) if name in LOADS else self.source()
        self.out.emit(name, register, base, offset)

    def structure(self) -> None:
        """Accesses by one pointer, as of a structure or a stack frame, others in between."""
        base = self.rng.choice((SP, self.near))
        names = self.rng.choice((LOADS, STORES))
        for _ in range(self.rng.randrange(2, 8)):
            name = self.rng.choice(names)
            register = self.destination(name) if names is LOADS else self.source()
            self.out.emit(name, register, base, self.rng.randrange(-100, 200))
            if self.rng.random() < 0.3:
                self.integer()
            if self.rng.random() < 0.3:
                self.elsewhere()

    def elsewhere(self) -> None:
        """An access by another pointer of those that programs like most."""
        other = self.rng.choice(self.near_writable)
        self.point(other, self.scratch + self.rng.randrange(SCRATCH_SIZE - 8))
        name = self.rng.choice((*LOADS, *STORES))
        register = self.source() if name in STORES else self.destination(name)
        self.out.emit(name, register, other, 0)

    def atomic(self) -> None:
        name = self.rng.choice(AMOS)
        base = self.atomic_address()
        self.out.emit(name, self.rd(), base, self.source(), aqrl=self.rng.randrange(4))

    def atomic_address(self) -> int:
        base = self.rng.choice(self.writable)
        self.out.emit("addi", base, self.near, 8 * self.rng.randrange(-32, 32))
        return base

    def reservation(self) -> None:
        """lr, a few instructions without memory, sc: it succeeds. A second sc fails."""
        width = self.rng.choice(("w", "d"))
        base = self.atomic_address()
        others = [n for n in self.writable if n != base]
        self.out.emit(f"lr.{width}", self.rng.choice(others), base, aqrl=self.rng.randrange(4))
        for _ in range(self.rng.randrange(3)):
            self.out.emit("add", self.rng.choice(others), self.source(), self.source())
        for _ in range(self.rng.choice((1, 1, 2))):
            self.out.emit(f"sc.{width}", self.rng.choice(others), base, self.source())

    def branch(self) -> None:
        name = self.rng.choice([*BRANCHES, "c.beqz", "c.bnez"])
        if name.startswith("c."):
            self.out.to(name, self.rng.randrange(8, 16), label=self.forward())
        else:
            self.out.to(name, self.source(), self.source(), label=self.forward())

    def jump(self) -> None:
        name = self.rng.choice(("jal", "c.j", "jalr", "c.jr", "c.jalr"))
        if name == "jal":
            self.out.to("jal", self.rd(), label=self.forward())
        elif name == "c.j":
            self.out.to("c.j", label=self.forward())
        else:
            target = self.rng.choice(self.writable)
            self.out.to("la", target, label=self.forward())
            if name == "jalr":
                self.out.emit(
                    "jalr", self.rd(), target, self.rng.choice((0, 1))
                )  # bit 0 is cleared
            elif name == "c.jr" or 1 in self.writable:
                self.out.emit(name, target)
            else:
                self.out.emit("c.jr", target)

    def loop(self) -> None:
        self.place_labels(everything=True)
        self.out.emit("addi", self.counter, 0, self.rng.randrange(1, 5))
        label = self.new_label()
        self.out.label(label)
        for _ in range(self.rng.randrange(1, 6)):
            self.unit(allow_loop=False)
        self.place_labels(everything=True)
        self.out.emit("addi", self.counter, self.counter, -1)
        self.out.to("bne", self.counter, 0, label=label)

    def control_register(self) -> None:
        choice = self.rng.randrange(7)
        if choice == 0:
            self.out.emit("csrrwi", self.rd(), "frm", self.rng.randrange(5))
        elif choice == 1:
            value = self.rng.choice(self.writable)
            self.out.li(value, self.rng.randrange(5) << 5 | self.rng.getrandbits(5))
            self.out.emit("csrrw", self.rd(), "fcsr", value)
        elif choice == 2:
            self.out.emit("csrrs", self.rd(), self.rng.choice(("fcsr", "frm", "fflags")), 0)
        elif choice == 3:
            self.out.emit(
                self.rng.choice(("csrrs", "csrrc", "csrrw")), self.rd(), "fflags", self.source()
            )
        elif choice == 4:
            name = self.rng.choice(("csrrsi", "csrrci", "csrrwi"))
            self.out.emit(name, self.rd(), "fflags", self.rng.randrange(32))
        elif choice == 5:
            self.out.emit(self.rng.choice(("csrrc", "csrrci")), self.rd(), "frm", self.source())
        else:
            self.out.emit(self.rng.choice(("fence", "fence.i")))

    def compressed(self) -> None:
        name = self.rng.choice(COMPRESSED_ALU if self.rng.random() < 0.7 else COMPRESSED_MEMORY)
        form = FORMS_C[name]
        if name == "c.addi16sp":
            amount = 16 * self.rng.randrange(1, 16)
            self.out.emit(name, amount)
            self.out.emit("c.swsp", self.source(), 4 * self.rng.randrange(16))
            self.out.emit(name, -amount)
            return
        registers = [
            self.compressed_register(name, kind, at) for at, kind in enumerate(form.registers)
        ]
        self.out.emit(name, *registers, *self.compressed_immediate(name))

    def compressed_register(self, name: str, kind: str, at: int) -> int:
        memory = name in COMPRESSED_MEMORY
        if kind in "pq":
            if memory and at == 1:
                return self.near
            float_register = name in ("c.fld", "c.fsd") or name in ("c.sw", "c.sd")
            return (
                self.rng.randrange(8, 16)
                if at == 1 or float_register
                else self.rng.choice(self.near_writable)
            )
        if kind in "sS" or name == "c.fldsp":
            return self.rng.randrange(1 if kind == "S" else 0, 32)
        return self.rng.choice(self.writable)

    def compressed_immediate(self, name: str) -> list[int]:
        form = FORMS_C[name]
        bits = form.immediate_bits()
        if not bits:
            return []
        value = sum(1 << bit for bit in bits if self.rng.random() < 0.5)
        if form.nonzero and value == 0:
            value = 1 << min(bits)
        return [value - (2 << max(bits)) if form.signed and value >> max(bits) & 1 else value]

    WEIGHTS = (
        (integer, 24), (compressed, 20), (floating, 24), (memory, 12), (structure, 4), (atomic, 5), (reservation, 1),
        (branch, 8), (jump, 3), (loop, 2), (control_register, 3), (constant, 6),
    )  # fmt: skip

    def unit(self, allow_loop: bool = True) -> None:
        makers, weights = zip(*self.WEIGHTS, strict=True)
        maker = self.rng.choices(makers, weights)[0]
        if maker is Block.loop and not allow_loop:
            maker = Block.integer
        maker(self)
        self.place_labels()

    def stream(self, units: int) -> None:
        for _ in range(units):
            self.unit()
        self.place_labels(everything=True)
