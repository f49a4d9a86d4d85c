"""Calls: functions, casts, system calls and intrinsics."""

from __future__ import annotations

import ast
import types as python_types
from typing import Any

from crumble_ir import dialect, ir, types
from crumble_ir.frontend.constants import Unknown
from crumble_ir.frontend.expressions import Expressions
from crumble_ir.frontend.lowering import Value, kind_of, literal
from crumble_ir.frontend.texts import Texts
from crumble_ir.ir import Imm, Ins
from crumble_ir.types import ArrayType, BoolType, IntType, LiteralType, PointerType


class Calls(Texts, Expressions):
    """call()."""

    def call(self, node: ast.Call) -> Value:
        """Evaluates a call, cast or intrinsic."""
        if self.constants.is_type(node.func):
            return self._cast(node)
        try:
            known = self.constants.value(node)
        except Unknown:
            return self._invoke(node, self._callee(node))
        return self.value(ast.copy_location(ast.Constant(known), node))

    def _callee(self, node: ast.Call) -> Any:
        try:
            return self.constants.lookup(node.func)
        except Unknown:
            text = ast.unparse(node.func)
            raise self.error(
                node, f"{text} is not a function known at compile time.", "See README.md."
            ) from None

    def _invoke(self, node: ast.Call, callee: Any) -> Value:
        if callee is print:
            return self.print_text(node)
        if node.keywords or any(isinstance(item, ast.Starred) for item in node.args):
            raise self.error(node, "keyword and starred arguments are not in the dialect.")
        if isinstance(callee, python_types.FunctionType):
            return self._function(node, callee)
        if isinstance(callee, dialect.Syscall):
            return self._syscall(node, callee)
        if callee is dialect.addr:
            return self.address_of(self._only(node))
        if callee is dialect.format_into:
            return self.format_text(node)
        if callee is dialect.trap:
            self.emit(Ins("trap"))
            self.assigned = None
            return Value(types.VOID, Imm(0))
        if callee is len or callee is dialect.sizeof:
            return self._measure(node, callee is len)
        if callee is min or callee is max:
            return self._extreme(node, "lt" if callee is min else "gt")
        raise self.error(node, f"{ast.unparse(node.func)} cannot be called in the dialect.")

    def _only(self, node: ast.Call) -> ast.expr:
        if len(node.args) != 1 or node.keywords:
            raise self.error(node, f"{ast.unparse(node.func)} takes one argument.")
        return node.args[0]

    def _cast(self, node: ast.Call) -> Value:
        return self.cast(self.value(self._only(node)), self.constants.type(node.func), node)

    def _function(self, node: ast.Call, callee: python_types.FunctionType) -> Value:
        signature = self.program.signature(callee, self.unit, node)
        if len(node.args) != len(signature.params):
            raise self.error(
                node,
                f"{callee.__name__} takes {len(signature.params)} arguments, not {len(node.args)}.",
            )
        arguments = tuple(
            self.value_as(item, kind).operand
            for item, kind in zip(node.args, signature.params.values(), strict=True)
        )
        return self.invoke(signature.symbol, signature.result, arguments)

    def invoke(self, symbol: str, result: types.Type, arguments: tuple[ir.Operand, ...]) -> Value:
        """Emits a call."""
        if result == types.VOID:
            self.emit(Ins("call", symbol=symbol, args=arguments))
            return Value(types.VOID, Imm(0))
        dst = self.function.register(kind_of(result))
        self.emit(Ins("call", dst, symbol=symbol, args=arguments))
        return Value(result, dst)

    def _syscall(self, node: ast.Call, callee: dialect.Syscall) -> Value:
        if len(node.args) > ir.MAX_ARGS:
            raise self.error(node, f"a system call takes at most {ir.MAX_ARGS} arguments.")
        arguments: list[ir.Operand] = [Imm(callee.number(self.constants.arch))]
        for item in node.args:
            value = self.value(item)
            if value.type == types.VOID:
                raise self.error(item, "a function without a result has no value.")
            arguments.append(value.operand)
        return Value(types.I64, self.result("syscall", types.I64, args=tuple(arguments)))

    def _measure(self, node: ast.Call, count: bool) -> Value:
        kind = self.place(self._only(node)).type
        if not count:
            return literal(kind.size)
        if not isinstance(kind, ArrayType):
            raise self.error(node, f"{kind} has no len().", "Only arrays have one.")
        return literal(kind.count)

    def _extreme(self, node: ast.Call, op: str) -> Value:
        if len(node.args) != 2:
            raise self.error(node, f"{ast.unparse(node.func)} takes two arguments.")
        a, b = self.value(node.args[0]), self.value(node.args[1])
        kind = self._joined(a, b, node)
        if not isinstance(kind, IntType | BoolType | PointerType | LiteralType):
            raise self.error(node, f"{kind} has no order.")
        a, b = self.fit(a, kind, node), self.fit(b, kind, node)
        result = self.function.register(kind_of(kind), "chosen")
        self.emit(Ins("copy", result, self.reg(a)))
        other, end = self.new_block(), self.new_block()
        test, left, right = self.compare(op, b, a, node)
        self.emit(Ins("branch", None, left, right, kind=test, targets=(other, end)))
        self.current = other
        self.emit(Ins("copy", result, self.reg(b)))
        self.jump(end)
        self.current = end
        return Value(kind, result)
