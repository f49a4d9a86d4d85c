"""What every back end shares: frames, operands, moves, and code with holes for the linker.

A back end subclasses Backend and turns one IR instruction at a time into machine code, after the
allocator has given virtual registers their places. Frame, from the stack pointer up: spill slots,
stack slots of the function, saved registers, return address.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from crumble_ir import ir
from crumble_ir.errors import IrError
from crumble_ir.ir import Imm, Ins
from crumble_ir.regalloc import Allocation, Registers, allocate


@dataclass(frozen=True, slots=True)
class Fixup:
    """A hole at `offset` in code, to be filled with the distance to `symbol` + `addend`."""

    offset: int
    kind: str
    symbol: str
    addend: int = 0


@dataclass
class Code:
    """Machine code of one function."""

    name: str
    data: bytearray = field(default_factory=bytearray)
    fixups: list[Fixup] = field(default_factory=list)


class Backend(ABC):
    """One architecture. An instance translates one function."""

    name: ClassVar[str]
    machine: ClassVar[int]
    elf_flags: ClassVar[int] = 0
    base: ClassVar[int]
    registers: ClassVar[Registers]
    scratch: ClassVar[tuple[int, int]]
    # Where a function and a system call leave their result.
    result: ClassVar[int]
    link_registers: ClassVar[tuple[int, ...]] = ()

    def __init__(self, function: ir.Function, code: Code) -> None:
        self.function = function
        self.code = code
        self.places: Allocation = allocate(function, self.registers)
        self.block_starts: list[int] = []
        self.branches: list[tuple[int, int, str]] = []
        self.long_branches: set[int] = set()
        self._lay_out_frame()

    # -- frame ------------------------------------------------------------------------------

    def _lay_out_frame(self) -> None:
        offset = 8 * len(self.places.spills)
        self.slot_offsets: list[int] = []
        for slot in self.function.slots:
            align = max(slot.align, 8)
            offset = -(-offset // align) * align
            self.slot_offsets.append(offset)
            offset += slot.size
        self.saved = list(self.places.used_callee_saved)
        if self.places.calls:
            self.saved += self.link_registers
        self.saves_offset = -(-offset // 8) * 8
        self.frame_size = self.frame(self.saves_offset, len(self.saved))

    @abstractmethod
    def frame(self, locals_size: int, saved: int) -> int:
        """Bytes to subtract from the stack pointer in the prologue."""

    # -- operands ---------------------------------------------------------------------------

    def use(self, operand: ir.Operand, scratch: int) -> int:
        """The machine register holding an operand; constants and spilled ones go into `scratch`."""
        if isinstance(operand, Imm):
            self.load_constant(scratch, operand.value)
            return scratch
        register = self.places.registers.get(operand)
        if register is not None:
            return register
        self.load_spill(scratch, 8 * self.places.spills[operand])
        return scratch

    def target(self, register: int, scratch: int) -> int:
        """The machine register to compute `register` in; finish with done()."""
        return self.places.registers.get(register, scratch)

    def done(self, register: int, computed: int) -> None:
        """Stores a spilled result."""
        if register in self.places.spills:
            self.store_spill(computed, 8 * self.places.spills[register])

    # -- emission ---------------------------------------------------------------------------

    def emit(self, data: bytes) -> None:
        """Appends code."""
        self.code.data += data

    def translate(self) -> Code:
        """The machine code of the function."""
        while True:
            self.code.data.clear()
            self.code.fixups.clear()
            self.block_starts, self.branches = [], []
            self._prologue()
            self._arguments_in()
            for index, block in enumerate(self.function.blocks):
                self.block_starts.append(len(self.code.data))
                for ins in block:
                    self.instruction(ins, index + 1)
            if self._resolve_branches():
                return self.code

    def _prologue(self) -> None:
        if self.frame_size:
            self.adjust_stack(-self.frame_size)
        for index, register in enumerate(self.saved):
            self.store_spill(register, self.saves_offset + 8 * index)

    def _arguments_in(self) -> None:
        """Moves the arguments to where the allocator wants them."""
        moves = []
        for register, source in zip(self.function.params, self.registers.arguments, strict=False):
            if register in self.places.spills:
                self.store_spill(source, 8 * self.places.spills[register])
            elif register in self.places.registers:
                moves.append((self.places.registers[register], source))
        self.parallel_move(moves)

    def arguments_out(self, operands: tuple[ir.Operand, ...], targets: tuple[int, ...]) -> None:
        """Loads operands into machine registers, of which some may hold other operands."""
        moves, later = [], []
        for operand, target in zip(operands, targets, strict=False):
            if not isinstance(operand, Imm) and operand in self.places.registers:
                moves.append((target, self.places.registers[operand]))
            else:
                later.append((target, operand))
        self.parallel_move(moves)
        for target, operand in later:
            self.use(operand, target)

    def parallel_move(self, moves: list[tuple[int, int]]) -> None:
        """Does all (target, source) moves as if at once."""
        pending = {target: source for target, source in moves if target != source}
        while pending:
            ready = [target for target in pending if target not in pending.values()]
            if ready:
                self.move(ready[0], pending.pop(ready[0]))
                continue
            target = next(iter(pending))
            self.move(self.scratch[0], target)
            pending = {
                key: self.scratch[0] if source == target else source
                for key, source in pending.items()
            }

    def instruction(self, ins: Ins, following: int) -> None:
        """One instruction; `following` is the number of the block laid out next."""
        method = getattr(self, f"do_{ins.op}", None)
        if method is not None:
            method(ins)
        elif ins.op == "jump":
            if ins.targets[0] != following:
                self.jump(ins.targets[0])
        elif ins.op == "branch":
            self._branch(ins, following)
        elif ins.op in ir.COMPARISONS:
            self.comparison(ins)
        elif ins.op in ir.ARITHMETIC:
            self.arithmetic(ins)
        else:
            raise IrError(f"{self.name} has no {ins.op}")

    # -- instructions that are alike everywhere ---------------------------------------------

    def do_const(self, ins: Ins) -> None:
        """dst = constant."""
        assert ins.dst is not None and isinstance(ins.a, Imm)
        target = self.target(ins.dst, self.scratch[0])
        self.load_constant(target, ins.a.value)
        self.done(ins.dst, target)

    def do_copy(self, ins: Ins) -> None:
        """dst = a."""
        assert ins.dst is not None and ins.a is not None
        target = self.target(ins.dst, self.scratch[0])
        source = self.use(ins.a, target)
        if source != target:
            self.move(target, source)
        self.done(ins.dst, target)

    def do_slot(self, ins: Ins) -> None:
        """dst = address of a stack slot."""
        assert ins.dst is not None
        target = self.target(ins.dst, self.scratch[0])
        self.stack_address(target, self.slot_offsets[ins.offset])
        self.done(ins.dst, target)

    def do_ret(self, ins: Ins) -> None:
        """Restores registers and returns."""
        if ins.a is not None:
            source = self.use(ins.a, self.result)
            if source != self.result:
                self.move(self.result, source)
        for index, register in enumerate(self.saved):
            self.load_spill(register, self.saves_offset + 8 * index)
        if self.frame_size:
            self.adjust_stack(self.frame_size)
        self.leave()

    def take_result(self, ins: Ins) -> None:
        """dst = what a function or system call returned."""
        if ins.dst is None:
            return
        target = self.target(ins.dst, self.result)
        if target != self.result:
            self.move(target, self.result)
        self.done(ins.dst, target)

    def _branch(self, ins: Ins, following: int) -> None:
        then, orelse = ins.targets
        if then == following:
            self.branch(ir.NEGATED[ins.kind], ins, orelse)
            return
        self.branch(ins.kind, ins, then)
        if orelse != following:
            self.jump(orelse)

    def _resolve_branches(self) -> bool:
        """Fills in distances inside the function; False when some branch must become longer."""
        fits = True
        for number, (offset, block, kind) in enumerate(self.branches):
            distance = self.block_starts[block] - offset
            if not self.reaches(kind, distance):
                self.long_branches.add(number)
                fits = False
            elif fits:
                self.patch(self.code.data, offset, kind, distance)
        return fits

    # -- what an architecture provides ------------------------------------------------------

    @abstractmethod
    def adjust_stack(self, size: int) -> None:
        """Stack pointer += size."""

    @abstractmethod
    def leave(self) -> None:
        """Jumps to the return address."""

    @abstractmethod
    def load_constant(self, target: int, value: int) -> None:
        """target = value."""

    @abstractmethod
    def load_spill(self, target: int, offset: int) -> None:
        """target = the 8 bytes at stack pointer + offset."""

    @abstractmethod
    def store_spill(self, source: int, offset: int) -> None:
        """The 8 bytes at stack pointer + offset = source."""

    @abstractmethod
    def stack_address(self, target: int, offset: int) -> None:
        """target = stack pointer + offset."""

    @abstractmethod
    def move(self, target: int, source: int) -> None:
        """target = source."""

    @abstractmethod
    def arithmetic(self, ins: Ins) -> None:
        """One of ir.ARITHMETIC."""

    @abstractmethod
    def comparison(self, ins: Ins) -> None:
        """dst = a op b as 0 or 1."""

    @abstractmethod
    def branch(self, kind: str, ins: Ins, block: int) -> None:
        """Jumps to `block` if ins.a kind ins.b."""

    @abstractmethod
    def jump(self, block: int) -> None:
        """Jumps to `block`."""

    @classmethod
    @abstractmethod
    def reaches(cls, kind: str, distance: int) -> bool:
        """Whether a fixup of `kind` can span `distance`."""

    @classmethod
    @abstractmethod
    def patch(cls, data: bytearray, offset: int, kind: str, distance: int) -> None:
        """Fills the hole at `offset` with `distance` from there."""

    @classmethod
    @abstractmethod
    def start(cls, main: str) -> Code:
        """_start: calls `main` with the initial stack pointer, then exit_group with its result."""
