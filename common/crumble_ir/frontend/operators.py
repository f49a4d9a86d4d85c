"""Arithmetic and comparison of typed values: which type results, and wrap-around."""

from __future__ import annotations

import ast

from crumble_ir import ir, types
from crumble_ir.frontend.lowering import Value, describe, literal
from crumble_ir.frontend.places import Places
from crumble_ir.ir import Imm
from crumble_ir.types import BoolType, IntType, LiteralType, NullType, PointerType, Type

BINARY_NAMES: dict[type[ast.operator], str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.FloorDiv: "div",
    ast.Mod: "mod",
    ast.BitAnd: "and",
    ast.BitOr: "or",
    ast.BitXor: "xor",
    ast.LShift: "shl",
    ast.RShift: "shr",
}
COMPARE_NAMES: dict[type[ast.cmpop], str] = {
    ast.Eq: "eq",
    ast.NotEq: "ne",
    ast.Is: "eq",
    ast.IsNot: "ne",
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
}
_COMMUTES = frozenset({"add", "mul", "and", "or", "xor"})
_CAN_OVERFLOW = frozenset({"add", "sub", "mul", "shl"})


class Operators(Places):
    """operate() and compare()."""

    def operate(self, name: str, a: Value, b: Value, node: ast.AST) -> Value:
        """`a name b` with name one of BINARY_NAMES."""
        if isinstance(a.type, LiteralType) and isinstance(b.type, LiteralType):
            return self._fold(name, a.literal, b.literal, node)
        if isinstance(a.type, PointerType) or isinstance(b.type, PointerType):
            return self._pointer(name, a, b, node)
        if name in ("shl", "shr"):
            return self._shift(name, a, b, node)
        kind = self.arithmetic_type(a, b, node)
        if isinstance(kind, BoolType):
            if name not in ("and", "or", "xor"):
                raise self.error(node, "bool has no arithmetic.", "Cast to an integer first.")
            return Value(kind, self.result(name, kind, self.reg(a), b.operand))
        a, b = self.fit(a, kind, node), self.fit(b, kind, node)
        if name in ("div", "mod"):
            return self._divide(name, kind, a, b, node)
        if isinstance(a.operand, Imm) and name in _COMMUTES:
            a, b = b, a
        result = self.result(name, kind, self.reg(a), b.operand)
        return Value(kind, self.extended(result, kind) if name in _CAN_OVERFLOW else result)

    def arithmetic_type(self, a: Value, b: Value, node: ast.AST) -> IntType | BoolType:
        """The type two operands share; raises CompileError when there is none."""
        if isinstance(a.type, LiteralType) and isinstance(b.type, IntType | BoolType):
            return self._literal_meets(b.type)
        if isinstance(b.type, LiteralType) and isinstance(a.type, IntType | BoolType):
            return self._literal_meets(a.type)
        if isinstance(a.type, IntType | BoolType) and isinstance(b.type, IntType | BoolType):
            kind = types.common(a.type, b.type)
            if kind is not None:
                return kind
        raise self.error(
            node, f"{a.type} and {b.type} do not mix.", "Cast one of them to the other's type."
        )

    def _literal_meets(self, kind: IntType | BoolType) -> IntType | BoolType:
        return types.I64 if isinstance(kind, BoolType) else kind

    def _fold(self, name: str, a: int, b: int, node: ast.AST) -> Value:
        if name in ("div", "mod") and b == 0:
            raise self.error(node, "division by zero.")
        if name in ("shl", "shr") and not 0 <= b < 64:
            raise self.error(node, f"a shift by {b} is not between 0 and 63.")
        results = {
            "add": a + b, "sub": a - b, "mul": a * b, "and": a & b, "or": a | b, "xor": a ^ b,
            "div": a // b if b else 0, "mod": a % b if b else 0,
            "shl": a << b if 0 <= b < 64 else 0, "shr": a >> b if 0 <= b < 64 else 0,
        }  # fmt: skip
        if not -(1 << 63) <= results[name] < 1 << 64:
            raise self.error(node, f"{results[name]} does not fit 64 bits.")
        return literal(results[name])

    def _shift(self, name: str, a: Value, b: Value, node: ast.AST) -> Value:
        a = self.typed(a)
        if not isinstance(a.type, IntType) or not isinstance(b.type, IntType | LiteralType):
            raise self.error(node, f"{a.type} cannot be shifted by {b.type}.")
        bits = a.type.size * 8
        op = "sar" if name == "shr" and a.type.signed else name
        if isinstance(b.operand, Imm):
            if not 0 <= b.operand.value < bits:
                raise self.error(node, f"{a.type} cannot be shifted by {b.operand.value} bits.")
            count: ir.Operand = b.operand
        else:
            count = b.operand
            if bits < 64:
                count = self.result("and", b.type, count, Imm(bits - 1))
        result = self.result(op, a.type, self.reg(a), count)
        return Value(a.type, self.extended(result, a.type) if name == "shl" else result)

    # -- division: floor, as in Python ------------------------------------------------------

    def _divide(
        self, name: str, kind: IntType | BoolType, a: Value, b: Value, node: ast.AST
    ) -> Value:
        assert isinstance(kind, IntType)
        if isinstance(b.operand, Imm):
            number = b.operand.value if kind.signed else b.operand.value & ((1 << 64) - 1)
            if number == 0:
                raise self.error(node, "division by zero.")
            if number > 0 and number & (number - 1) == 0:
                return self._divide_by_power(name, kind, a, number)
            if number == -1:
                zero = Value(kind, Imm(0))
                return self.operate("sub", zero, a, node) if name == "div" else zero
        else:
            self.check("ne", self.reg(b), Imm(0), node, "division by zero")
        if not kind.signed:
            op = "divu" if name == "div" else "remu"
            return Value(kind, self.result(op, kind, self.reg(a), b.operand))
        return Value(kind, self._floor(name, kind, self.reg(a), self.reg(b)))

    def _divide_by_power(self, name: str, kind: IntType, a: Value, number: int) -> Value:
        if name == "mod":
            return Value(kind, self.result("and", kind, self.reg(a), Imm(number - 1)))
        op = "sar" if kind.signed else "shr"
        return Value(kind, self.result(op, kind, self.reg(a), Imm(number.bit_length() - 1)))

    def _floor(self, name: str, kind: IntType, a: int, b: int) -> int:
        """The machine truncates; when the remainder's sign differs from b's, step down by one."""
        remainder = self.result("rems", kind, a, b)
        signs = self.result("xor", kind, remainder, b)
        differ = self.result("shr", kind, signs, Imm(63))
        inexact = self.result("ne", kind, remainder, Imm(0))
        step = self.result("and", kind, differ, inexact)
        if name == "div":
            quotient = self.result("divs", kind, a, b)
            return self.extended(self.result("sub", kind, quotient, step), kind)
        mask = self.result("mul", kind, step, b)
        return self.extended(self.result("add", kind, remainder, mask), kind)

    # -- pointers ---------------------------------------------------------------------------

    def _pointer(self, name: str, a: Value, b: Value, node: ast.AST) -> Value:
        if isinstance(a.type, PointerType) and isinstance(b.type, PointerType):
            return self._distance(name, a, b, node)
        if name == "add" and not isinstance(a.type, PointerType):
            a, b = b, a
        if (
            name not in ("add", "sub")
            or not isinstance(a.type, PointerType)
            or not isinstance(b.type, IntType | LiteralType)
        ):
            raise self.error(node, f"{a.type} and {b.type} have no such operation.")
        size = a.type.target.size
        if isinstance(b.operand, Imm):
            step = b.operand.value * size
            return Value(a.type, self.result(name, a.type, self.reg(a), Imm(step)))
        offset = self.times(self.reg(b), size)
        return Value(a.type, self.result(name, a.type, self.reg(a), offset))

    def _distance(self, name: str, a: Value, b: Value, node: ast.AST) -> Value:
        assert isinstance(a.type, PointerType)
        if name != "sub" or a.type != b.type:
            raise self.error(node, f"{a.type} and {b.type} have no such operation.")
        distance = Value(types.I64, self.result("sub", types.I64, self.reg(a), self.reg(b)))
        size = a.type.target.size
        return self.operate("div", distance, literal(size), node) if size > 1 else distance

    # -- comparison -------------------------------------------------------------------------

    def compare(self, name: str, a: Value, b: Value, node: ast.AST) -> tuple[str, int, ir.Operand]:
        """(IR comparison, register, register or constant)."""
        kind = self._compared(a, b, node)
        a, b = self.fit(a, kind, node), self.fit(b, kind, node)
        op = name
        if name not in ("eq", "ne"):
            op = name + ("s" if isinstance(kind, IntType) and kind.signed else "u")
        if isinstance(a.operand, Imm) and not isinstance(b.operand, Imm):
            return ir.SWAPPED[op], b.operand, a.operand
        return op, self.reg(a), b.operand

    def _compared(self, a: Value, b: Value, node: ast.AST) -> Type:
        for one, other in ((a, b), (b, a)):
            if isinstance(one.type, PointerType):
                if other.type == one.type or isinstance(other.type, NullType):
                    return one.type
                raise self.error(node, f"{describe(a)} and {describe(b)} cannot be compared.")
        if isinstance(a.type, LiteralType) and isinstance(b.type, LiteralType):
            return self.typed(a).type
        return self.arithmetic_type(a, b, node)
