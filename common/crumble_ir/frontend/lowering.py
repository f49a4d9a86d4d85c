"""What all parts of a function's translation share: blocks, values, conversions, locals."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crumble_ir import ir, types
from crumble_ir.errors import CompileError
from crumble_ir.frontend.constants import Constants
from crumble_ir.ir import Imm, Ins
from crumble_ir.types import BoolType, IntType, LiteralType, NullType, PointerType, Type

if TYPE_CHECKING:
    from crumble_ir.frontend.program import Program


@dataclass(frozen=True, slots=True)
class Value:
    """A typed result. A literal (not yet typed) keeps its Python int in `literal`."""

    type: Type
    operand: ir.Operand
    literal: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value lives: a register local, or memory at [base + offset]."""

    type: Type
    register: int | None = None
    base: int = 0
    offset: int = 0


@dataclass(slots=True)
class Local:
    """A parameter or local variable: in a register, or in a stack slot."""

    type: Type
    register: int | None = None
    slot: int = 0


def kind_of(kind: Type) -> str:
    """The IR kind that holds a scalar type."""
    if isinstance(kind, IntType):
        return kind.name
    return "u8" if isinstance(kind, BoolType) else "u64"


def literal(value: int) -> Value:
    """A constant that takes the type of what it meets."""
    return Value(types.LITERAL, Imm(value), value)


class Lowering:
    """State of one function's translation. Subclasses add expressions, statements and so on."""

    def __init__(self, program: Program, constants: Constants, function: ir.Function) -> None:
        self.program = program
        self.constants = constants
        self.unit = constants.unit
        self.function = function
        self.locals: dict[str, Local] = {}
        self.assigned: set[str] | None = set()
        self.returns: Type = types.VOID
        self.current: int = self.new_block()

    # -- what subclasses provide ------------------------------------------------------------

    def value(self, node: ast.expr) -> Value:
        """Evaluates an expression."""
        raise NotImplementedError

    def value_as(self, node: ast.expr, target: Type) -> Value:
        """Evaluates an expression whose type is known from where it goes."""
        raise NotImplementedError

    def condition(self, node: ast.expr, then: int, orelse: int) -> None:
        """Ends the current block with a jump to `then` or `orelse`."""
        raise NotImplementedError

    def place(self, node: ast.expr) -> Place:
        """Where an assignable expression lives."""
        raise NotImplementedError

    def call(self, node: ast.Call) -> Value:
        """Evaluates a call, cast or intrinsic."""
        raise NotImplementedError

    # -- blocks and instructions ------------------------------------------------------------

    def error(self, node: ast.AST, message: str, hint: str = "") -> CompileError:
        """An error at `node`."""
        return self.unit.error(node, message, hint)

    def new_block(self) -> int:
        """Adds an empty block; `current` says where instructions go."""
        self.function.blocks.append([])
        return len(self.function.blocks) - 1

    def emit(self, ins: Ins) -> None:
        """Appends to the current block; after a terminator, to a fresh unreachable one."""
        block = self.function.blocks[self.current]
        if block and block[-1].op in ir.TERMINATORS:
            self.current = self.new_block()
            block = self.function.blocks[self.current]
        block.append(ins)

    def jump(self, target: int) -> None:
        """Ends the current block, unless it has ended."""
        block = self.function.blocks[self.current]
        if not block or block[-1].op not in ir.TERMINATORS:
            block.append(Ins("jump", targets=(target,)))

    def result(self, op: str, kind: Type, /, *operands: ir.Operand, **fields: Any) -> int:
        """Emits an instruction with a new register as its result."""
        dst = self.function.register(kind_of(kind))
        self.emit(Ins(op, dst, *operands, **fields))
        return dst

    def reg(self, value: Value) -> int:
        """The register holding `value`."""
        if isinstance(value.operand, Imm):
            return self.result("const", value.type, value.operand)
        return value.operand

    # -- conversions ------------------------------------------------------------------------

    def fit(self, value: Value, target: Type, node: ast.AST) -> Value:
        """`value` as `target` where that loses nothing; raises CompileError otherwise."""
        if isinstance(value.type, LiteralType):
            if isinstance(target, IntType):
                if not target.holds(value.literal):
                    raise self.error(node, f"{value.literal} does not fit {target}.")
                return Value(target, Imm(value.literal))
            if isinstance(target, BoolType) and value.literal in (0, 1):
                return Value(target, Imm(value.literal))
        elif types.widens(value.type, target):
            return Value(target, value.operand)
        raise self.error(
            node,
            f"{describe(value)} cannot be used as {target} without a cast.",
            f"Write {target}(...) if that is meant.",
        )

    def typed(self, value: Value) -> Value:
        """Gives a literal the type it has when nothing else decides: i64, or u64 when too large."""
        if not isinstance(value.type, LiteralType):
            return value
        kind = types.I64 if types.I64.holds(value.literal) else types.U64
        return Value(kind, Imm(value.literal))

    def cast(self, value: Value, target: Type, node: ast.AST) -> Value:
        """T(x): truncates, reinterprets or widens."""
        if isinstance(value.type, LiteralType | NullType) or isinstance(value.operand, Imm):
            number = value.literal if isinstance(value.type, LiteralType) else _number(value)
            return self._cast_constant(number, target, node)
        if isinstance(target, PointerType):
            if isinstance(value.type, PointerType) or value.type == types.U64:
                return Value(target, value.operand)
            raise self.error(node, f"{value.type} cannot become {target}.", "Cast it to u64 first.")
        if isinstance(target, BoolType):
            return Value(target, self.result("ne", target, self.reg(value), Imm(0)))
        if not isinstance(target, IntType) or value.type == types.VOID:
            raise self.error(node, f"{value.type} cannot become {target}.")
        if isinstance(value.type, PointerType) and target.size < types.POINTER_SIZE:
            raise self.error(node, f"{target} is too small for a pointer.", "Use u64.")
        if types.widens(value.type, target) or target.size == types.POINTER_SIZE:
            return Value(target, value.operand)
        return Value(target, self.extended(self.reg(value), target))

    def _cast_constant(self, number: int, target: Type, node: ast.AST) -> Value:
        if isinstance(target, IntType):
            return Value(target, Imm(target.wrap(number)))
        if isinstance(target, BoolType):
            return Value(target, Imm(bool(number)))
        if isinstance(target, PointerType):
            return Value(target, Imm(number))
        raise self.error(node, f"a number cannot become {target}.")

    def extended(self, register: int, kind: IntType) -> int:
        """`register` normalized to `kind`."""
        if kind.size == types.POINTER_SIZE:
            return register
        return self.result("ext", kind, register, kind=kind.name)

    # -- memory -----------------------------------------------------------------------------

    def load(self, place: Place) -> Value:
        """Reads a place; arrays and structs give a pointer to themselves."""
        if place.register is not None:
            return Value(place.type, place.register)
        if place.type.aggregate:
            return Value(reference(place.type), self.address(place))
        fields = {"kind": kind_of(place.type), "offset": place.offset}
        return Value(place.type, self.result("load", place.type, place.base, **fields))

    def address(self, place: Place) -> int:
        """The address of a place in memory."""
        if place.offset == 0:
            return place.base
        return self.result("add", types.U64, place.base, Imm(place.offset))

    def store(self, place: Place, value: Value) -> None:
        """Writes a value of exactly the place's type."""
        if place.register is not None:
            self._into(place.register, value)
            return
        self.emit(
            Ins(
                "store", None, place.base, self.reg(value),
                kind=kind_of(place.type), offset=place.offset,
            )
        )  # fmt: skip

    def _into(self, register: int, value: Value) -> None:
        """Assigns a register local, without a copy when the value was just computed for it."""
        if isinstance(value.operand, Imm):
            self.emit(Ins("const", register, value.operand))
            return
        block = self.function.blocks[self.current]
        fresh = block and block[-1].dst == value.operand and value.operand not in self._named()
        if fresh:
            block[-1].dst = register
        else:
            self.emit(Ins("copy", register, value.operand))

    def _named(self) -> dict[int, str]:
        return self.function.names

    # -- failing ----------------------------------------------------------------------------

    def check(self, op: str, a: int, b: ir.Operand, node: ast.AST, what: str) -> None:
        """Goes on only if `a op b`; otherwise the program fails with file, line and `what`."""
        bad, good = self.new_block(), self.new_block()
        self.emit(Ins("branch", None, a, b, kind=op, targets=(good, bad)))
        self.current = bad
        self.fail(node, what)
        self.current = good

    def fail(self, node: ast.AST, what: str) -> None:
        """Calls the program's failure handler, which does not return."""
        line = getattr(node, "lineno", 0)
        text = self.string(f"{self.unit.file}:{line}: {what}".encode())
        self.emit(Ins("call", symbol=self.program.failure_handler(), args=(self.reg(text),)))
        self.emit(Ins("trap"))

    def string(self, text: bytes) -> Value:
        """The address of a constant NUL-terminated string."""
        symbol = self.program.string(text)
        return Value(PointerType(types.U8), self.result("symbol", types.U64, symbol=symbol))


def reference(kind: Type) -> PointerType:
    """The pointer an aggregate is used as."""
    return PointerType(kind.element if isinstance(kind, types.ArrayType) else kind)


def _number(value: Value) -> int:
    """A typed constant's value."""
    assert isinstance(value.operand, Imm)
    number = value.operand.value
    return value.type.wrap(number) if isinstance(value.type, IntType) else number


def describe(value: Value) -> str:
    """A value as errors name it."""
    return f"{value.literal}" if isinstance(value.type, LiteralType) else f"{value.type}"
