"""Compile-time evaluation: what is known while compiling needs no code."""

from __future__ import annotations

import ast
import operator
import types as python_types
from collections.abc import Callable, Container
from typing import Any

from crumble_ir import dialect, types
from crumble_ir.errors import CompileError
from crumble_ir.frontend.units import Unit


class Unknown(Exception):  # noqa: N818  control flow, not an error
    """The expression is not a compile-time constant."""


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
    ast.Not: operator.not_,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_CALLS: dict[Any, Callable[..., Any]] = {len: len, ord: ord, min: min, max: max, abs: abs}


class Constants:
    """Evaluates expressions of one function that need nothing known only at run time."""

    def __init__(
        self, unit: Unit, arch: str, features: Container[str], is_local: Callable[[str], bool]
    ) -> None:
        self.unit = unit
        self.arch = arch
        self.features = features
        self.is_local = is_local

    def lookup(self, node: ast.expr) -> Any:
        """The Python object a name or dotted name means at module level; raises Unknown."""
        if isinstance(node, ast.Name) and not self.is_local(node.id):
            if node.id in self.unit.namespace:
                return self._choose(node, self.unit.namespace[node.id])
            builtins = self.unit.namespace["__builtins__"]
            found = builtins if isinstance(builtins, dict) else vars(builtins)
            if node.id in found:
                return found[node.id]
        if isinstance(node, ast.Attribute):
            base = self.lookup(node.value)
            if isinstance(base, python_types.ModuleType | type) and hasattr(base, node.attr):
                return self._choose(node, getattr(base, node.attr))
        raise Unknown

    def _choose(self, node: ast.expr, value: Any) -> Any:
        if not isinstance(value, dialect.ArchConstant):
            return value
        if self.arch not in value.values:
            raise self.unit.error(node, f"this constant has no value for {self.arch}.")
        return value.values[self.arch]

    def value(self, node: ast.expr) -> Any:
        """The int, bool, str, bytes or None that `node` is; raises Unknown."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name | ast.Attribute):
            found = self.lookup(node)
            if found is dialect.arch:
                return self.arch
            if found is None or isinstance(found, bool | int | str | bytes):
                return found
            raise Unknown
        try:
            return self._compute(node)
        except (ArithmeticError, TypeError, ValueError) as problem:
            raise self.unit.error(node, f"this constant cannot be computed: {problem}.") from None

    def _compute(self, node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            return _BINARY[type(node.op)](self.value(node.left), self.value(node.right))
        if isinstance(node, ast.UnaryOp):
            return _UNARY[type(node.op)](self.value(node.operand))
        if isinstance(node, ast.BoolOp):
            return self._bool_op(node)
        if isinstance(node, ast.Compare):
            return self._compare(node)
        if isinstance(node, ast.IfExp):
            return self.value(node.body if self.value(node.test) else node.orelse)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            return [self.value(item) for item in node.elts]
        raise Unknown

    def _bool_op(self, node: ast.BoolOp) -> bool:
        """Known as soon as the operands up to the deciding one are."""
        stops = isinstance(node.op, ast.Or)
        for item in node.values:
            if bool(self.value(item)) is stops:
                return stops
        return not stops

    def _compare(self, node: ast.Compare) -> bool:
        left = self.value(node.left)
        for op, item in zip(node.ops, node.comparators, strict=True):
            if type(op) not in _COMPARE:
                raise Unknown
            right = self.value(item)
            if not _COMPARE[type(op)](left, right):
                return False
            left = right
        return True

    def _call(self, node: ast.Call) -> Any:
        function = self.lookup(node.func)
        if node.keywords:
            raise Unknown
        if function is dialect.feature:
            return self.value(node.args[0]) in self.features
        if function is dialect.sizeof and self.is_type(node.args[0]):
            return self.type(node.args[0]).size
        for known, action in _CALLS.items():
            if function is known:
                return action(*[self.value(item) for item in node.args])
        raise Unknown

    def type(self, node: ast.expr) -> types.Type:
        """The type an annotation or cast names; raises CompileError."""
        try:
            code = compile(ast.Expression(node), self.unit.file, "eval")
            written = eval(code, self.unit.namespace)  # noqa: S307  the source's own annotation
            kind = dialect.as_type(written, self.unit.namespace)
            _ = kind.size  # lays structs out, so that a bad one is found here
            return kind
        except CompileError:
            raise
        except Exception as problem:  # noqa: BLE001  evaluating a source's text may raise anything
            text = ast.unparse(node)
            raise self.unit.error(
                node,
                f"{text} is not a type: {problem}.",
                "Use u8..u64, i8..i64, bool, ptr[T], array[T, N] or a struct.",
            ) from None

    def is_type(self, node: ast.expr) -> bool:
        """Whether `node` names a type, so that calling it is a cast."""
        if isinstance(node, ast.Subscript):
            node = node.value
        try:
            found = self.lookup(node)
        except Unknown:
            return False
        known = (bool, dialect.ptr, dialect.array)
        if isinstance(found, type) and hasattr(found, "__crumble_struct__"):
            return True
        return isinstance(found, types.Type) or any(found is kind for kind in known)
