"""The x86-64 back end: System V registers, Linux system calls.

rax, rcx and rdx are scratch: division and shifts by a variable need them. All else but rsp is
allocated. Branches and calls have 32-bit distances, so nothing is ever out of reach.
"""

from __future__ import annotations

from crumble_ir import amd64_assembler as asm
from crumble_ir import ir
from crumble_ir.amd64_assembler import (
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
    RAX,
    RBP,
    RBX,
    RCX,
    RDI,
    RDX,
    RSI,
    RSP,
)  # fmt: skip
from crumble_ir.backend import Backend, Code, Fixup
from crumble_ir.ir import Imm, Ins
from crumble_ir.regalloc import Registers

_EXIT_GROUP = 231
_SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}
_COMMUTES = frozenset({"add", "mul", "and", "or", "xor"})


class Amd64(Backend):
    """One function on x86-64."""

    name = "amd64"
    machine = 62
    base = 0x400000
    registers = Registers(
        caller_saved=(RDI, RSI, R8, R9, R10, R11),
        callee_saved=(RBX, RBP, R12, R13, R14, R15),
        arguments=(RDI, RSI, RDX, RCX, R8, R9),
    )
    scratch = (RAX, RCX)
    result = RAX

    def frame(self, locals_size: int, saved: int) -> int:
        """rsp is 8 below a multiple of 16 on entry."""
        size = locals_size + 8 * saved
        return size + (8 - size) % 16 if size or self.places.calls else 0

    def adjust_stack(self, size: int) -> None:
        self.emit(asm.alu_constant("sub" if size < 0 else "add", RSP, abs(size)))

    def leave(self) -> None:
        self.emit(asm.RET)

    def load_constant(self, target: int, value: int) -> None:
        self.emit(asm.mov_constant(target, value))

    def load_spill(self, target: int, offset: int) -> None:
        self.emit(asm.load("u64", target, RSP, offset))

    def store_spill(self, source: int, offset: int) -> None:
        self.emit(asm.store(8, source, RSP, offset))

    def stack_address(self, target: int, offset: int) -> None:
        self.emit(asm.lea(target, RSP, offset))

    def move(self, target: int, source: int) -> None:
        self.emit(asm.mov(target, source))

    # -- values -----------------------------------------------------------------------------

    def do_symbol(self, ins: Ins) -> None:
        """dst = address of a symbol."""
        assert ins.dst is not None
        target = self.target(ins.dst, RAX)
        self.emit(asm.lea_rip(target))
        self._hole(ins.symbol, ins.offset)
        self.done(ins.dst, target)

    def _hole(self, symbol: str, addend: int = 0) -> None:
        self.code.fixups.append(Fixup(len(self.code.data) - 4, "rel32", symbol, addend))

    def do_ext(self, ins: Ins) -> None:
        """dst = a normalized to a kind."""
        assert ins.dst is not None and ins.a is not None
        target = self.target(ins.dst, RAX)
        self.emit(asm.extend(ins.kind, target, self.use(ins.a, RAX)))
        self.done(ins.dst, target)

    def do_load(self, ins: Ins) -> None:
        """dst = memory."""
        assert ins.dst is not None and ins.a is not None
        target = self.target(ins.dst, RAX)
        base, offset = self._base(ins)
        self.emit(asm.load(ins.kind, target, base, offset))
        self.done(ins.dst, target)

    def do_store(self, ins: Ins) -> None:
        """memory = b."""
        assert ins.b is not None
        base, offset = self._base(ins)
        source = self.use(ins.b, RAX)
        self.emit(asm.store(_SIZES[ins.kind[1:]], source, base, offset))

    def _base(self, ins: Ins) -> tuple[int, int]:
        """Base register and 32-bit offset; large offsets are added in rcx."""
        assert ins.a is not None
        base = self.use(ins.a, RCX)
        if asm.fits32(ins.offset):
            return base, ins.offset
        self.emit(asm.mov_constant(RDX, ins.offset))
        self.emit(asm.alu("add", RDX, base))
        return RDX, 0

    # -- arithmetic -------------------------------------------------------------------------

    def arithmetic(self, ins: Ins) -> None:
        assert ins.dst is not None and ins.a is not None and ins.b is not None
        if ins.op in ("divu", "divs", "remu", "rems"):
            self._divide(ins)
            return
        target = self.target(ins.dst, RAX)
        if ins.op in asm.SHIFTS:
            self._shift(ins, target)
        elif isinstance(ins.b, Imm) and asm.fits32(ins.b.value):
            self._with_constant(ins.op, target, self.use(ins.a, target), ins.b.value)
        else:
            self._with_register(ins.op, target, self.use(ins.a, RAX), self.use(ins.b, RCX))
        self.done(ins.dst, target)

    def _with_constant(self, op: str, target: int, source: int, value: int) -> None:
        if op == "mul":
            self.emit(asm.imul_constant(target, source, value))
        elif op == "add" and target != source:
            self.emit(asm.lea(target, source, value))
        else:
            if target != source:
                self.move(target, source)
            self.emit(asm.alu_constant(op, target, value))

    def _with_register(self, op: str, target: int, a: int, b: int) -> None:
        if op == "add" and target not in (a, b):
            self.emit(asm.lea_sum(target, a, b))
            return
        if target == b and target != a:
            if op in _COMMUTES:
                a, b = b, a
            else:
                self.move(RCX, b)
                b = RCX
        if target != a:
            self.move(target, a)
        self.emit(asm.imul(target, b) if op == "mul" else asm.alu(op, target, b))

    def _shift(self, ins: Ins, target: int) -> None:
        assert ins.a is not None and ins.b is not None
        if isinstance(ins.b, Imm):
            source = self.use(ins.a, target)
            if source != target:
                self.move(target, source)
            self.emit(asm.shift(ins.op, target, ins.b.value))
            return
        count = self.use(ins.b, RCX)
        if count != RCX:
            self.move(RCX, count)
        source = self.use(ins.a, RAX)
        if source != RAX:
            self.move(RAX, source)
        self.emit(asm.shift_cl(ins.op, RAX))
        if target != RAX:
            self.move(target, RAX)

    def _divide(self, ins: Ins) -> None:
        assert ins.dst is not None and ins.a is not None and ins.b is not None
        signed = ins.op in ("divs", "rems")
        divisor = self.use(ins.b, RCX)
        source = self.use(ins.a, RAX)
        if source != RAX:
            self.move(RAX, source)
        result = RAX if ins.op.startswith("div") else RDX
        if signed:
            self._divide_signed(divisor)
        else:
            self.emit(asm.zero(RDX) + asm.divide(divisor, signed=False))
        target = self.target(ins.dst, result)
        if target != result:
            self.move(target, result)
        self.done(ins.dst, target)

    def _divide_signed(self, divisor: int) -> None:
        """idiv faults on the lowest number by -1: there the quotient is the negation."""
        general = asm.CQO + asm.divide(divisor, signed=True)
        by_minus_one = asm.neg(RAX) + asm.zero(RDX)
        skip = b"\xeb" + bytes([len(by_minus_one)])
        self.emit(asm.alu_constant("cmp", divisor, -1))
        self.emit(b"\x74" + bytes([len(general) + len(skip)]))
        self.emit(general + skip + by_minus_one)

    # -- comparison and control -------------------------------------------------------------

    def _compare(self, ins: Ins) -> None:
        assert ins.a is not None and ins.b is not None
        a = self.use(ins.a, RAX)
        if isinstance(ins.b, Imm) and asm.fits32(ins.b.value):
            self.emit(asm.alu_constant("cmp", a, ins.b.value))
        else:
            self.emit(asm.alu("cmp", a, self.use(ins.b, RCX)))

    def comparison(self, ins: Ins) -> None:
        assert ins.dst is not None
        self._compare(ins)
        target = self.target(ins.dst, RAX)
        self.emit(asm.set_if(ins.op, target))
        self.done(ins.dst, target)

    def branch(self, kind: str, ins: Ins, block: int) -> None:
        self._compare(ins)
        self.emit(asm.jump_if(kind))
        self.branches.append((len(self.code.data) - 4, block, "rel32"))

    def jump(self, block: int) -> None:
        self.emit(asm.JUMP)
        self.branches.append((len(self.code.data) - 4, block, "rel32"))

    def do_trap(self, _ins: Ins) -> None:
        """Ends in SIGILL."""
        self.emit(asm.UD2)

    def do_call(self, ins: Ins) -> None:
        """dst = symbol(args)."""
        self.arguments_out(ins.args, self.registers.arguments)
        self.emit(asm.CALL)
        self._hole(ins.symbol)
        self.take_result(ins)

    def do_syscall(self, ins: Ins) -> None:
        """dst = args[0](args[1:]); the kernel destroys rcx and r11."""
        self.arguments_out(ins.args[1:], (RDI, RSI, RDX, R10, R8, R9))
        number = ins.args[0]
        assert isinstance(number, Imm)
        self.load_constant(RAX, number.value)
        self.emit(asm.SYSCALL)
        self.take_result(ins)

    @classmethod
    def reaches(cls, kind: str, distance: int) -> bool:
        assert kind == "rel32"
        return asm.fits32(distance)

    @classmethod
    def patch(cls, data: bytearray, offset: int, kind: str, distance: int) -> None:
        assert kind == "rel32"
        data[offset : offset + 4] = (distance - 4).to_bytes(4, "little", signed=True)

    @classmethod
    def start(cls, main: str) -> Code:
        code = Code("_start")
        code.data += asm.mov(RDI, RSP) + asm.alu_constant("and", RSP, -16) + asm.CALL
        code.fixups.append(Fixup(len(code.data) - 4, "rel32", main))
        code.data += asm.mov(RDI, RAX) + asm.mov_constant(RAX, _EXIT_GROUP)
        code.data += asm.SYSCALL + asm.UD2
        return code


assert set(asm.CONDITIONS) == set(ir.COMPARISONS)
