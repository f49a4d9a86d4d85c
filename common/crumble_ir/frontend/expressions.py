"""Expressions and conditions."""

from __future__ import annotations

import ast

from crumble_ir import types
from crumble_ir.frontend.constants import Unknown
from crumble_ir.frontend.lowering import Value, literal
from crumble_ir.frontend.operators import BINARY_NAMES, COMPARE_NAMES, Operators
from crumble_ir.ir import Imm, Ins
from crumble_ir.types import BoolType, IntType, LiteralType, NullType, PointerType, Type


class Expressions(Operators):
    """value() and condition()."""

    def value(self, node: ast.expr) -> Value:
        """Evaluates an expression."""
        if isinstance(node, ast.Constant):
            return self._constant(node, node.value)
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            return self._name(node)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.BinOp):
            return self._binary(node)
        if isinstance(node, ast.UnaryOp):
            return self._unary(node)
        if isinstance(node, ast.Compare | ast.BoolOp):
            return self._truth(node)
        if isinstance(node, ast.IfExp):
            return self.choice(node)
        raise self.error(
            node, f"{type(node).__name__} expressions are not in the dialect.", "See README.md."
        )

    def _constant(self, node: ast.expr, value: object) -> Value:
        if isinstance(value, bool):
            return Value(types.BOOL, Imm(int(value)))
        if isinstance(value, int):
            if not -(1 << 63) <= value < 1 << 64:
                raise self.error(node, f"{value} does not fit 64 bits.")
            return literal(int(value))
        if isinstance(value, str):
            value = value.encode()
        if isinstance(value, bytes):
            return self.string(value)
        if value is None:
            return Value(types.NULL, Imm(0))
        raise self.error(node, f"{type(value).__name__} constants are not in the dialect.")

    def _name(self, node: ast.Name | ast.Attribute | ast.Subscript) -> Value:
        if not isinstance(node, ast.Subscript) and not self._known_local(node):
            try:
                return self._constant(node, self.constants.value(node))
            except Unknown:
                pass
            if isinstance(node, ast.Name) and node.id not in self.unit.namespace:
                raise self._unknown(node)
        return self.load(self.place(node))

    def _known_local(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id in self.locals

    def _unknown(self, node: ast.Name) -> Exception:
        if self.constants.is_local(node.id):
            return self.error(node, f"{node.id} is used before it is assigned.")
        return self.error(node, f"{node.id} is not defined.")

    def _binary(self, node: ast.BinOp) -> Value:
        name = BINARY_NAMES.get(type(node.op))
        if name is None:
            hint = "Use //." if isinstance(node.op, ast.Div) else ""
            raise self.error(node, f"{type(node.op).__name__} is not in the dialect.", hint)
        return self.operate(name, self.value(node.left), self.value(node.right), node)

    def _unary(self, node: ast.UnaryOp) -> Value:
        if isinstance(node.op, ast.Not):
            return self._truth(node)
        value = self.value(node.operand)
        if isinstance(value.type, LiteralType):
            signs = {ast.USub: -value.literal, ast.Invert: ~value.literal}
            return self._constant(node, signs.get(type(node.op), value.literal))
        if not isinstance(value.type, IntType):
            raise self.error(node, f"{value.type} is not an integer.")
        if isinstance(node.op, ast.UAdd):
            return value
        if isinstance(node.op, ast.USub):
            return self.operate("sub", Value(value.type, Imm(0)), value, node)
        return self.operate("xor", value, Value(value.type, Imm(value.type.wrap(-1))), node)

    def value_as(self, node: ast.expr, target: Type) -> Value:
        """Evaluates an expression whose type is known from where it goes."""
        if isinstance(node, ast.IfExp):
            return self.fit(self.choice(node, target), target, node)
        return self.fit(self.value(node), target, node)

    def choice(self, node: ast.IfExp, wanted: Type | None = None) -> Value:
        """`a if c else b`; literals take the type `wanted`."""
        try:
            return self.value(node.body if self.constants.value(node.test) else node.orelse)
        except Unknown:
            pass
        then, orelse, end = self.new_block(), self.new_block(), self.new_block()
        self.condition(node.test, then, orelse)
        self.current = then
        one = self.value(node.body)
        one_end, self.current = self.current, orelse
        other = self.value(node.orelse)
        literals = isinstance(one.type, LiteralType) and isinstance(other.type, LiteralType)
        kind = wanted if literals and wanted else self._joined(one, other, node)
        other = self.fit(other, kind, node)
        other_end, self.current = self.current, one_end
        one = self.fit(one, kind, node)
        one_end = self.current
        result = self.function.register("u64")
        for block, value in ((one_end, one), (other_end, other)):
            self.current = block
            self.emit(Ins("copy", result, self.reg(value)))
            self.jump(end)
        self.current = end
        return Value(kind, result)

    def _joined(self, one: Value, other: Value, node: ast.AST) -> Type:
        """The type that two alternatives share."""
        if isinstance(one.type, LiteralType) and isinstance(other.type, LiteralType):
            return self.typed(one).type
        if isinstance(one.type, LiteralType | NullType):
            return other.type
        if isinstance(other.type, LiteralType | NullType):
            return one.type
        return self.arithmetic_type(one, other, node) if one.type != other.type else one.type

    # -- truth ------------------------------------------------------------------------------

    def _truth(self, node: ast.expr) -> Value:
        """A comparison, and, or, not as a bool."""
        try:
            return self._constant(node, bool(self.constants.value(node)))
        except Unknown:
            pass
        if (
            isinstance(node, ast.Compare)
            and len(node.ops) == 1
            and type(node.ops[0]) in COMPARE_NAMES
        ):
            op, a, b = self._compare_operands(node, node.left, node.ops[0], node.comparators[0])
            return Value(types.BOOL, self.result(op, types.BOOL, a, b))
        yes, no, end = self.new_block(), self.new_block(), self.new_block()
        self.condition(node, yes, no)
        result = self.function.register("u8")
        for block, number in ((yes, 1), (no, 0)):
            self.current = block
            self.emit(Ins("const", result, Imm(number)))
            self.jump(end)
        self.current = end
        return Value(types.BOOL, result)

    def condition(self, node: ast.expr, then: int, orelse: int) -> None:
        """Ends the current block with a jump to `then` or `orelse`."""
        try:
            self.jump(then if self.constants.value(node) else orelse)
        except Unknown:
            self._branch(node, then, orelse)

    def _branch(self, node: ast.expr, then: int, orelse: int) -> None:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self.condition(node.operand, orelse, then)
        elif isinstance(node, ast.BoolOp):
            for item in node.values[:-1]:
                following = self.new_block()
                if isinstance(node.op, ast.And):
                    self.condition(item, following, orelse)
                else:
                    self.condition(item, then, following)
                self.current = following
            self.condition(node.values[-1], then, orelse)
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            self._branch_member(node, then, orelse)
        elif isinstance(node, ast.Compare):
            self._branch_compare(node, then, orelse)
        else:
            value = self.value(node)
            if not isinstance(value.type, IntType | BoolType | PointerType | LiteralType):
                raise self.error(node, f"{value.type} is neither true nor false.")
            test = Ins("branch", None, self.reg(value), Imm(0), kind="ne", targets=(then, orelse))
            self.emit(test)

    def _branch_member(self, node: ast.Compare, then: int, orelse: int) -> None:
        """`a in (b, c)`: equal to one of them."""
        choices = node.comparators[0]
        if len(node.ops) != 1 or not isinstance(choices, ast.Tuple) or not choices.elts:
            raise self.error(node, "`in` needs a tuple of values.", "Write x in (A, B).")
        if isinstance(node.ops[0], ast.NotIn):
            then, orelse = orelse, then
        value = self._kept(self.value(node.left))
        for item in choices.elts:
            kind, a, b = self.compare("eq", value, self.value(item), node)
            following = self.new_block()
            self.emit(Ins("branch", None, a, b, kind=kind, targets=(then, following)))
            self.current = following
        self.jump(orelse)

    def _branch_compare(self, node: ast.Compare, then: int, orelse: int) -> None:
        left: ast.expr | Value = node.left
        for index, (op, item) in enumerate(zip(node.ops, node.comparators, strict=True)):
            last = index == len(node.ops) - 1
            right: ast.expr | Value = item if last else self._kept(self.value(item))
            kind, a, b = self._compare_operands(node, left, op, right)
            following = then if last else self.new_block()
            self.emit(Ins("branch", None, a, b, kind=kind, targets=(following, orelse)))
            self.current, left = following, right

    def _kept(self, value: Value) -> Value:
        return value if isinstance(value.type, LiteralType) else Value(value.type, self.reg(value))

    def _compare_operands(
        self, node: ast.Compare, left: ast.expr | Value, op: ast.cmpop, right: ast.expr | Value
    ) -> tuple[str, int, int | Imm]:
        """(comparison, register, register or constant) of one link of a comparison."""
        if type(op) not in COMPARE_NAMES:
            raise self.error(node, f"{type(op).__name__} is not in the dialect.")
        a = self.value(left) if isinstance(left, ast.expr) else left
        b = self.value(right) if isinstance(right, ast.expr) else right
        return self.compare(COMPARE_NAMES[type(op)], a, b, node)
