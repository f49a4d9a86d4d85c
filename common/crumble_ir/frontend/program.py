"""A whole program: from `main`, every function, string and global it needs."""

from __future__ import annotations

import ast
import types as python_types
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from crumble_ir import dialect, ir, types
from crumble_ir.frontend.constants import Constants
from crumble_ir.frontend.lowering import Local, kind_of
from crumble_ir.frontend.statements import Statements
from crumble_ir.frontend.units import Unit, Units
from crumble_ir.runtime import text
from crumble_ir.types import ArrayType, PointerType, Type


@dataclass(frozen=True)
class Signature:
    """How a function is called."""

    symbol: str
    params: dict[str, Type]
    result: Type


class Program:
    """Translates functions on demand, from a work list."""

    def __init__(self, units: Units, arch: str, features: Container[str]) -> None:
        self.module = ir.Module("")
        self._units = units
        self._arch = arch
        self._features = features
        self._signatures: dict[Any, Signature] = {}
        self._statics: dict[int, str] = {}
        self._strings: dict[bytes, str] = {}
        self._symbols: set[str] = set()
        self._work: list[tuple[Unit, ast.FunctionDef, Signature]] = []
        self._handler: Any = text.failed

    def translate(self, root: Unit) -> ir.Module:
        """The IR of the program whose `main(stack: ptr[u64]) -> i32` is in `root`."""
        main = root.namespace.get("main")
        if not isinstance(main, python_types.FunctionType) or "main" not in root.functions:
            raise root.error(ast.Module([], []), "the program has no function main.")
        self._handler = root.namespace.get("on_failure", text.failed)
        signature = self.signature(main, root, root.functions["main"])
        kinds = list(signature.params.values())
        if kinds not in ([], [PointerType(types.U64)]) or signature.result != types.I32:
            raise root.error(
                root.functions["main"], "main must be `def main(stack: ptr[u64]) -> i32`."
            )
        self.module.entry = signature.symbol
        while self._work:
            unit, node, signature = self._work.pop()
            self.module.functions[signature.symbol] = self._function(unit, node, signature)
        return self.module

    # -- symbols ----------------------------------------------------------------------------

    def _symbol(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self._symbols:
            count += 1
            name = f"{wanted}.{count}"
        self._symbols.add(name)
        return name

    def signature(
        self, function: python_types.FunctionType, user: Unit, node: ast.AST
    ) -> Signature:
        """How to call `function`; puts it on the work list the first time."""
        known = self._signatures.get(function)
        if known is not None:
            return known
        unit = self._units.of(function)
        syntax = unit.functions.get(function.__name__)
        if syntax is None:
            raise user.error(node, f"{function.__name__} is not a function of a source module.")
        symbol = self._symbol(f"{unit.name.rpartition('.')[2]}.{function.__name__}")
        known = self._signatures[function] = self._parse_signature(unit, syntax, symbol)
        self._work.append((unit, syntax, known))
        return known

    def _parse_signature(self, unit: Unit, node: ast.FunctionDef, symbol: str) -> Signature:
        spec = node.args
        if spec.vararg or spec.kwarg or spec.kwonlyargs or spec.defaults or node.decorator_list:
            raise unit.error(
                node, "parameters must be plain: no defaults, keywords, * or decorators."
            )
        if len(spec.args) > ir.MAX_ARGS:
            raise unit.error(node, f"a function takes at most {ir.MAX_ARGS} parameters.")
        constants = self._constants(unit, set())
        params = {}
        for item in spec.args:
            if item.annotation is None:
                raise unit.error(item, f"parameter {item.arg} has no type.")
            params[item.arg] = constants.type(item.annotation)
        if node.returns is None:
            raise unit.error(node, f"{node.name} has no result type.", "Write -> None or -> TYPE.")
        result = constants.type(node.returns)
        for kind in [*params.values(), result]:
            if kind.aggregate:
                raise unit.error(node, f"{kind} is passed as a pointer.", "Write ptr[...].")
        if types.VOID in params.values():
            raise unit.error(node, "None is not a parameter's type.")
        return Signature(symbol, params, result)

    def runtime(self, function: Any) -> tuple[str, Type]:
        """(symbol, result) of a function of crumble_ir.runtime."""
        unit = self._units.of(function)
        signature = self.signature(function, unit, unit.functions[function.__name__])
        return signature.symbol, signature.result

    def failure_handler(self) -> str:
        """What failed assertions and checks call: on_failure(message: ptr[u8]) -> None."""
        unit = self._units.of(self._handler)
        node = unit.functions[self._handler.__name__]
        signature = self.signature(self._handler, unit, node)
        if list(signature.params.values()) != [PointerType(types.U8)]:
            raise unit.error(node, "on_failure must be `def on_failure(message: ptr[u8]) -> None`.")
        return signature.symbol

    def string(self, contents: bytes) -> str:
        """The symbol of a constant NUL-terminated string."""
        symbol = self._strings.get(contents)
        if symbol is None:
            symbol = self._strings[contents] = self._symbol(f"string.{len(self._strings)}")
            data = contents + b"\0"
            self.module.data[symbol] = ir.Data(symbol, len(data), 1, data, constant=True)
        return symbol

    def static(self, item: dialect.Static, node: ast.expr, unit: Unit) -> str:
        """The symbol of a global."""
        symbol = self._statics.get(id(item))
        if symbol is None:
            name = node.attr if isinstance(node, ast.Attribute) else ast.unparse(node)
            symbol = self._statics[id(item)] = self._symbol(name)
            try:
                kind = item.type
                data = ir.Data(symbol, kind.size, max(kind.align, 8), _contents(item))
            except (TypeError, ValueError, NameError) as problem:
                raise unit.error(node, f"{name} cannot be laid out: {problem}.") from None
            self.module.data[symbol] = data
        return symbol

    # -- functions --------------------------------------------------------------------------

    def _constants(self, unit: Unit, local: set[str]) -> Constants:
        return Constants(unit, self._arch, self._features, local.__contains__)

    def _function(self, unit: Unit, node: ast.FunctionDef, signature: Signature) -> ir.Function:
        function = ir.Function(signature.symbol, returns=signature.result != types.VOID)
        names = Names(node)
        lowering = Statements(self, self._constants(unit, names.local), function)
        lowering.loops, lowering.addressed = [], names.addressed
        lowering.returns = signature.result
        assert lowering.assigned is not None
        for name, kind in signature.params.items():
            register = function.register(kind_of(kind), name)
            function.params.append(register)
            if name in names.addressed:
                raise unit.error(node, f"parameter {name} has no address.", "Copy it to a local.")
            lowering.locals[name] = Local(kind, register)
            lowering.assigned.add(name)
        lowering.body(node.body)
        if function.returns and lowering.assigned is not None:
            raise unit.error(node, f"{node.name} may end without a result.")
        if not function.returns:
            lowering.emit(ir.Ins("ret"))
        for block in function.blocks:
            if not block or block[-1].op not in ir.TERMINATORS:
                block.append(ir.Ins("trap"))
        return function


class Names(ast.NodeVisitor):
    """Which names a function makes local, and of which it takes the address."""

    def __init__(self, function: ast.FunctionDef) -> None:
        self.local = {item.arg for item in function.args.args}
        self.addressed: set[str] = set()
        self._globals: set[str] = set()
        for statement in function.body:
            self.visit(statement)
        self.local -= self._globals

    def visit_Name(self, node: ast.Name) -> None:
        """A name that is assigned is local."""
        if isinstance(node.ctx, ast.Store):
            self.local.add(node.id)

    def visit_Global(self, node: ast.Global) -> None:
        """Unless it is declared global."""
        self._globals.update(node.names)

    def visit_Call(self, node: ast.Call) -> None:
        """addr(name)."""
        if isinstance(node.func, ast.Name) and node.func.id == "addr":
            self.addressed.update(item.id for item in node.args if isinstance(item, ast.Name))
        self.generic_visit(node)


def _contents(item: dialect.Static) -> bytes | None:
    """A global's initial bytes; raises ValueError when they do not fit its type."""
    if not item.initial:
        return None
    if isinstance(item.initial, bytes):
        if not isinstance(item.type, ArrayType) or len(item.initial) > item.type.size:
            raise ValueError("bytes need an array they fit in")
        return item.initial.ljust(item.type.size, b"\0")
    if not isinstance(item.type, types.IntType) or not item.type.holds(item.initial):
        raise ValueError(f"{item.initial} does not fit {item.type}")
    return item.type.wrap(item.initial).to_bytes(item.type.size, "little", signed=item.type.signed)
