"""The arm64 back end: A64 code, AAPCS64 registers, Linux system calls.

x15, x16 and x17 are scratch; x18 is left to the platform; all other registers but sp and the link
register are allocated. A conditional branch reaches 1 MiB: one that must go farther becomes its
opposite around a jump (128 MiB).
"""

from __future__ import annotations

from crumble_ir import arm64_assembler as asm
from crumble_ir.arm64_assembler import LR, SP, X0, X8, X15, X16, X17, ZERO
from crumble_ir.backend import Backend, Code, Fixup
from crumble_ir.ir import NEGATED, Imm, Ins
from crumble_ir.regalloc import Registers

_EXIT_GROUP = 94
_SHIFTS = frozenset({"shl", "shr", "sar"})


class Arm64(Backend):
    """One function on arm64."""

    name = "arm64"
    machine = 183
    base = 0x400000
    registers = Registers(
        caller_saved=tuple(range(X0, X15)),
        callee_saved=tuple(range(19, 30)),
        arguments=tuple(range(X0, X0 + 6)),
    )
    scratch = (X16, X17)
    result = X0
    link_registers = (LR,)

    def frame(self, locals_size: int, saved: int) -> int:
        """sp is always a multiple of 16."""
        return -(-(locals_size + 8 * saved) // 16) * 16

    # -- frame and memory -------------------------------------------------------------------

    def _add_constant(self, target: int, source: int, value: int) -> None:
        if asm.fits_add(value):
            self.emit(asm.add_constant(target, source, value))
        else:
            self.emit(asm.constant(X15, value) + asm.add_extended(target, source, X15))

    def _address(self, kind: str, base: int, offset: int) -> tuple[int, int]:
        """(base, offset that fits); a far one is computed in x15."""
        if asm.fits_offset(kind, offset):
            return base, offset
        self._add_constant(X15, base, offset)
        return X15, 0

    def adjust_stack(self, size: int) -> None:
        self._add_constant(SP, SP, size)

    def leave(self) -> None:
        self.emit(asm.RET)

    def load_constant(self, target: int, value: int) -> None:
        self.emit(asm.constant(target, value))

    def load_spill(self, target: int, offset: int) -> None:
        self.emit(asm.load("u64", target, *self._address("u64", SP, offset)))

    def store_spill(self, source: int, offset: int) -> None:
        self.emit(asm.store("u64", source, *self._address("u64", SP, offset)))

    def stack_address(self, target: int, offset: int) -> None:
        self._add_constant(target, SP, offset)

    def move(self, target: int, source: int) -> None:
        self.emit(asm.mov(target, source))

    # -- values -----------------------------------------------------------------------------

    def do_symbol(self, ins: Ins) -> None:
        """dst = address of a symbol: adr, and what that does not reach in x15."""
        assert ins.dst is not None
        target = self.target(ins.dst, X16)
        self.code.fixups.append(Fixup(len(self.code.data), "pcrel", ins.symbol, ins.offset))
        self.emit(asm.adr(target) + asm.move_high(X15) + asm.op("add", target, target, X15))
        self.done(ins.dst, target)

    def do_ext(self, ins: Ins) -> None:
        """dst = a normalized to a kind."""
        assert ins.dst is not None and ins.a is not None
        target = self.target(ins.dst, X16)
        self.emit(asm.extend(ins.kind, target, self.use(ins.a, X16)))
        self.done(ins.dst, target)

    def do_load(self, ins: Ins) -> None:
        """dst = memory."""
        assert ins.dst is not None and ins.a is not None
        target = self.target(ins.dst, X16)
        where = self._address(ins.kind, self.use(ins.a, X17), ins.offset)
        self.emit(asm.load(ins.kind, target, *where))
        self.done(ins.dst, target)

    def do_store(self, ins: Ins) -> None:
        """memory = b."""
        assert ins.a is not None and ins.b is not None
        source = self._value(ins.b, X16)
        where = self._address(ins.kind, self.use(ins.a, X17), ins.offset)
        self.emit(asm.store(ins.kind, source, *where))

    def _value(self, operand: int | Imm, scratch: int) -> int:
        """As use(), with the zero register for 0."""
        if isinstance(operand, Imm) and operand.value == 0:
            return ZERO
        return self.use(operand, scratch)

    # -- arithmetic -------------------------------------------------------------------------

    def arithmetic(self, ins: Ins) -> None:
        assert ins.dst is not None and ins.a is not None and ins.b is not None
        target, a = self.target(ins.dst, X16), self.use(ins.a, X16)
        if not (isinstance(ins.b, Imm) and self._with_constant(ins.op, target, a, ins.b.value)):
            self._with_register(ins.op, target, a, self._value(ins.b, X17))
        self.done(ins.dst, target)

    def _with_constant(self, op: str, target: int, a: int, value: int) -> bool:
        """False when the operation has no form with that constant."""
        if op in ("add", "sub"):
            value = value if op == "add" else -value
            if asm.fits_add(value):
                self.emit(asm.add_constant(target, a, value))
                return True
        elif op in _SHIFTS:
            self.emit(asm.shift(op, target, a, value % 64))
            return True
        elif op in asm.LOGICAL and (field := asm.bitmask(value)) is not None:
            self.emit(asm.logical_constant(op, target, a, field))
            return True
        return False

    def _with_register(self, op: str, target: int, a: int, b: int) -> None:
        if op in ("remu", "rems"):
            self.emit(asm.op("div" + op[-1], X15, a, b) + asm.msub(target, X15, b, a))
        else:
            self.emit(asm.op(op, target, a, b))

    def _compare(self, ins: Ins) -> None:
        assert ins.a is not None and ins.b is not None
        a = self.use(ins.a, X16)
        if isinstance(ins.b, Imm) and asm.fits_add(ins.b.value):
            self.emit(asm.compare_constant(a, ins.b.value))
        else:
            self.emit(asm.compare(a, self.use(ins.b, X17)))

    def comparison(self, ins: Ins) -> None:
        assert ins.dst is not None
        self._compare(ins)
        target = self.target(ins.dst, X16)
        self.emit(asm.set_if(ins.op, target))
        self.done(ins.dst, target)

    # -- control ----------------------------------------------------------------------------

    def branch(self, kind: str, ins: Ins, block: int) -> None:
        self._compare(ins)
        if len(self.branches) in self.long_branches:
            self.emit(asm.branch_if(NEGATED[kind]))
            self.patch(self.code.data, len(self.code.data) - 4, "branch", 8)
            self.jump(block)
        else:
            self.branches.append((len(self.code.data), block, "branch"))
            self.emit(asm.branch_if(kind))

    def jump(self, block: int) -> None:
        self.branches.append((len(self.code.data), block, "jump"))
        self.emit(asm.B)

    def do_trap(self, _ins: Ins) -> None:
        """Ends in SIGILL."""
        self.emit(asm.UDF)

    def do_call(self, ins: Ins) -> None:
        """dst = symbol(args)."""
        self.arguments_out(ins.args, self.registers.arguments)
        self.code.fixups.append(Fixup(len(self.code.data), "jump", ins.symbol))
        self.emit(asm.BL)
        self.take_result(ins)

    def do_syscall(self, ins: Ins) -> None:
        """dst = args[0](args[1:])."""
        self.arguments_out(ins.args[1:], self.registers.arguments)
        number = ins.args[0]
        assert isinstance(number, Imm)
        self.load_constant(X8, number.value)
        self.emit(asm.SVC)
        self.take_result(ins)

    @classmethod
    def reaches(cls, kind: str, distance: int) -> bool:
        low, high = {
            "branch": (-1 << 20, 1 << 20),
            "jump": (-1 << 27, 1 << 27),
            "pcrel": (-1 << 20, 1 << 32),
        }[kind]
        return low <= distance < high

    @classmethod
    def patch(cls, data: bytearray, offset: int, kind: str, distance: int) -> None:
        def add(at: int, bits: int) -> None:
            word = int.from_bytes(data[at : at + 4], "little") | bits
            data[at : at + 4] = word.to_bytes(4, "little")

        if kind == "pcrel":
            # What adr alone does not reach is above: data comes after code.
            high = max(distance, 0) >> 16
            add(offset, asm.adr_distance(distance - (high << 16)))
            add(offset + 4, asm.move_value(high))
        elif kind == "branch":
            add(offset, asm.branch_distance(distance))
        else:
            add(offset, asm.jump_distance(distance))

    @classmethod
    def start(cls, main: str) -> Code:
        code = Code("_start")
        code.data += asm.add_constant(X0, SP, 0)
        code.fixups.append(Fixup(len(code.data), "jump", main))
        code.data += asm.BL + asm.constant(X8, _EXIT_GROUP) + asm.SVC + asm.UDF
        return code
