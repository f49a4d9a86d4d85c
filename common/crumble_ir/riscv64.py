"""The RISC-V back end: RV64IM without compressed instructions, LP64 registers, Linux system calls.

t0, t1 and t2 are scratch; all other integer registers but gp, tp, sp and ra are allocated. A
conditional branch reaches 4 KiB: one that must go farther becomes its opposite around a jump (1 MiB).
"""

from __future__ import annotations

from crumble_ir import riscv64_assembler as asm
from crumble_ir.backend import Backend, Code, Fixup
from crumble_ir.ir import NEGATED, SWAPPED, Imm, Ins
from crumble_ir.regalloc import Registers
from crumble_ir.riscv64_assembler import (
    A0,
    A1,
    A2,
    A3,
    A4,
    A5,
    A6,
    A7,
    RA,
    S0,
    S1,
    S2,
    S3,
    S4,
    S5,
    S6,
    S7,
    S8,
    S9,
    S10,
    S11,
    SP,
    T0,
    T1,
    T2,
    T3,
    T4,
    T5,
    T6,
    ZERO,
    fits12,
)  # fmt: skip

_EXIT_GROUP = 94
_IMMEDIATE = frozenset({"add", "and", "or", "xor"})
_SHIFTS = frozenset({"shl", "shr", "sar"})


class Riscv64(Backend):
    """One function on RV64."""

    name = "riscv64"
    machine = 243
    base = 0x10000
    registers = Registers(
        caller_saved=(A0, A1, A2, A3, A4, A5, A6, A7, T3, T4, T5, T6),
        callee_saved=(S0, S1, S2, S3, S4, S5, S6, S7, S8, S9, S10, S11),
        arguments=(A0, A1, A2, A3, A4, A5),
    )
    scratch = (T0, T1)
    result = A0
    link_registers = (RA,)

    def frame(self, locals_size: int, saved: int) -> int:
        """sp is a multiple of 16."""
        return -(-(locals_size + 8 * saved) // 16) * 16

    # -- frame and memory -------------------------------------------------------------------

    def _add_constant(self, target: int, source: int, value: int) -> None:
        if fits12(value):
            self.emit(asm.addi(target, source, value))
        else:
            self.emit(asm.constant(T2, value) + asm.op("add", target, source, T2))

    def _address(self, base: int, offset: int) -> tuple[int, int]:
        """(base, offset that fits); a far one is computed in t2."""
        if fits12(offset):
            return base, offset
        self._add_constant(T2, base, offset)
        return T2, 0

    def adjust_stack(self, size: int) -> None:
        self._add_constant(SP, SP, size)

    def leave(self) -> None:
        self.emit(asm.jalr(ZERO, RA, 0))

    def load_constant(self, target: int, value: int) -> None:
        self.emit(asm.constant(target, value))

    def load_spill(self, target: int, offset: int) -> None:
        self.emit(asm.load("i64", target, *self._address(SP, offset)))

    def store_spill(self, source: int, offset: int) -> None:
        self.emit(asm.store("i64", source, *self._address(SP, offset)))

    def stack_address(self, target: int, offset: int) -> None:
        self._add_constant(target, SP, offset)

    def move(self, target: int, source: int) -> None:
        self.emit(asm.addi(target, source, 0))

    # -- values -----------------------------------------------------------------------------

    def do_symbol(self, ins: Ins) -> None:
        """dst = address of a symbol: auipc and addi."""
        assert ins.dst is not None
        target = self.target(ins.dst, T0)
        self.code.fixups.append(Fixup(len(self.code.data), "pcrel", ins.symbol, ins.offset))
        self.emit(asm.auipc(target) + asm.addi(target, target, 0))
        self.done(ins.dst, target)

    def do_ext(self, ins: Ins) -> None:
        """dst = a normalized to a kind."""
        assert ins.dst is not None and ins.a is not None
        target, source = self.target(ins.dst, T0), self.use(ins.a, T0)
        if ins.kind == "u8":
            self.emit(asm.op_imm("and", target, source, 0xFF))
        elif ins.kind == "i32":
            self.emit(asm.addiw(target, source, 0))
        else:
            shift = 64 - int(ins.kind[1:])
            back = "shr" if ins.kind[0] == "u" else "sar"
            self.emit(asm.op_imm("shl", target, source, shift))
            self.emit(asm.op_imm(back, target, target, shift))
        self.done(ins.dst, target)

    def do_load(self, ins: Ins) -> None:
        """dst = memory."""
        assert ins.dst is not None and ins.a is not None
        target = self.target(ins.dst, T0)
        self.emit(asm.load(ins.kind, target, *self._address(self.use(ins.a, T1), ins.offset)))
        self.done(ins.dst, target)

    def do_store(self, ins: Ins) -> None:
        """memory = b."""
        assert ins.a is not None and ins.b is not None
        source = self._value(ins.b, T0)
        self.emit(asm.store(ins.kind, source, *self._address(self.use(ins.a, T1), ins.offset)))

    def _value(self, operand: int | Imm, scratch: int) -> int:
        """As use(), with the zero register for 0."""
        if isinstance(operand, Imm) and operand.value == 0:
            return ZERO
        return self.use(operand, scratch)

    # -- arithmetic -------------------------------------------------------------------------

    def arithmetic(self, ins: Ins) -> None:
        assert ins.dst is not None and ins.a is not None and ins.b is not None
        target, a = self.target(ins.dst, T0), self.use(ins.a, T0)
        number = ins.b.value if isinstance(ins.b, Imm) else None
        if (number is not None and ins.op in _SHIFTS) or (
            number is not None and ins.op in _IMMEDIATE and fits12(number)
        ):
            self.emit(asm.op_imm(ins.op, target, a, number))
        elif number is not None and ins.op == "sub" and fits12(-number):
            self.emit(asm.addi(target, a, -number))
        else:
            self.emit(asm.op(ins.op, target, a, self._value(ins.b, T1)))
        self.done(ins.dst, target)

    def comparison(self, ins: Ins) -> None:
        assert ins.dst is not None and ins.a is not None and ins.b is not None
        target, a = self.target(ins.dst, T0), self.use(ins.a, T0)
        b = self._value(ins.b, T1)
        if ins.op in ("eq", "ne"):
            if b != ZERO:
                self.emit(asm.op("xor", T0, a, b))
                a = T0
            if ins.op == "eq":
                self.emit(asm.op_imm("sltu", target, a, 1))
            else:
                self.emit(asm.op("sltu", target, ZERO, a))
        else:
            self._order(ins.op, target, a, b)
        self.done(ins.dst, target)

    def _order(self, name: str, target: int, a: int, b: int) -> None:
        """Only "less than" exists: others swap the operands or flip the result."""
        less = "sltu" if name[-1] == "u" else "slt"
        if name[:2] in ("gt", "le"):
            a, b = b, a
        self.emit(asm.op(less, target, a, b))
        if name[:2] in ("le", "ge"):
            self.emit(asm.op_imm("xor", target, target, 1))

    # -- control ----------------------------------------------------------------------------

    def branch(self, kind: str, ins: Ins, block: int) -> None:
        assert ins.a is not None and ins.b is not None
        a, b = self.use(ins.a, T0), self._value(ins.b, T1)
        if kind not in asm.BRANCHES:
            kind, a, b = SWAPPED[kind], b, a
        number = len(self.branches)
        if number in self.long_branches:
            opposite = asm.branch(NEGATED[kind], a, b)
            self.emit(opposite)
            self.patch(self.code.data, len(self.code.data) - 4, "branch", 8)
            self.branches.append((len(self.code.data), block, "jump"))
            self.emit(asm.jal(ZERO))
        else:
            self.branches.append((len(self.code.data), block, "branch"))
            self.emit(asm.branch(kind, a, b))

    def jump(self, block: int) -> None:
        self.branches.append((len(self.code.data), block, "jump"))
        self.emit(asm.jal(ZERO))

    def do_trap(self, _ins: Ins) -> None:
        """Ends in SIGILL."""
        self.emit(asm.UNIMP)

    def do_call(self, ins: Ins) -> None:
        """dst = symbol(args)."""
        self.arguments_out(ins.args, self.registers.arguments)
        self.code.fixups.append(Fixup(len(self.code.data), "jump", ins.symbol))
        self.emit(asm.jal(RA))
        self.take_result(ins)

    def do_syscall(self, ins: Ins) -> None:
        """dst = args[0](args[1:])."""
        self.arguments_out(ins.args[1:], (A0, A1, A2, A3, A4, A5))
        number = ins.args[0]
        assert isinstance(number, Imm)
        self.load_constant(A7, number.value)
        self.emit(asm.ECALL)
        self.take_result(ins)

    @classmethod
    def reaches(cls, kind: str, distance: int) -> bool:
        reach = {"branch": 1 << 12, "jump": 1 << 20, "pcrel": (1 << 31) - 2048}[kind]
        return -reach <= distance < reach

    @classmethod
    def patch(cls, data: bytearray, offset: int, kind: str, distance: int) -> None:
        def word(at: int) -> int:
            return int.from_bytes(data[at : at + 4], "little")

        if kind == "pcrel":
            high, low = asm.split(distance)
            data[offset : offset + 4] = (word(offset) | high << 12).to_bytes(4, "little")
            following = word(offset + 4) | (low & 0xFFF) << 20
            data[offset + 4 : offset + 8] = following.to_bytes(4, "little")
            return
        bits = asm.branch_distance(distance) if kind == "branch" else asm.jump_distance(distance)
        data[offset : offset + 4] = (word(offset) | bits).to_bytes(4, "little")

    @classmethod
    def start(cls, main: str) -> Code:
        code = Code("_start")
        code.data += asm.addi(A0, SP, 0) + asm.op_imm("and", SP, SP, -16)
        code.fixups.append(Fixup(len(code.data), "jump", main))
        code.data += asm.jal(RA) + asm.addi(A7, ZERO, _EXIT_GROUP) + asm.ECALL + asm.UNIMP
        return code
