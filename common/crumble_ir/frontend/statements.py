"""Statements, and which locals are assigned on every path."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from crumble_ir import types
from crumble_ir.frontend.calls import Calls
from crumble_ir.frontend.constants import Unknown
from crumble_ir.frontend.lowering import Local, Place, Value, kind_of
from crumble_ir.frontend.operators import BINARY_NAMES
from crumble_ir.ir import Imm, Ins, Slot
from crumble_ir.types import IntType, LiteralType, NullType, Type


@dataclass(slots=True)
class Loop:
    """The innermost loop: where continue and break go, and what is assigned at its breaks."""

    again: int
    end: int
    breaks: set[str] | None = None


def both(one: set[str] | None, other: set[str] | None) -> set[str] | None:
    """Assigned on both paths; None is a path that cannot be taken."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


class Statements(Calls):
    """body() and what it is made of."""

    loops: list[Loop]
    addressed: set[str]

    def body(self, statements: list[ast.stmt]) -> None:
        """A suite."""
        for node in statements:
            method = getattr(self, f"_do_{type(node).__name__}", None)
            if method is None:
                raise self.error(
                    node,
                    f"{type(node).__name__} statements are not in the dialect.",
                    "See README.md.",
                )
            method(node)

    def _do_Pass(self, _node: ast.Pass) -> None:  # noqa: N802  named after syntax
        pass

    def _do_Global(self, _node: ast.Global) -> None:  # noqa: N802
        pass

    def _do_Expr(self, node: ast.Expr) -> None:  # noqa: N802
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return
        if not isinstance(node.value, ast.Call):
            raise self.error(node, "this expression does nothing.")
        self.value(node.value)

    # -- assignment -------------------------------------------------------------------------

    def _do_Assign(self, node: ast.Assign) -> None:  # noqa: N802
        if len(node.targets) != 1:
            raise self.error(node, "one target at a time.")
        target = node.targets[0]
        known = self.locals.get(target.id) if isinstance(target, ast.Name) else None
        if isinstance(node.value, ast.IfExp) and known is not None:
            self._assign(target, self.value_as(node.value, known.type), node)
        else:
            self._assign(target, self.value(node.value), node)

    def _assign(self, target: ast.expr, value: Value, node: ast.stmt) -> None:
        if value.type == types.VOID:
            raise self.error(node, "a function without a result has no value.")
        if isinstance(target, ast.Name) and self.constants.is_local(target.id):
            place = self._declare(target, self._inferred(value, target), node)
        else:
            place = self.place(target)
        if place.type.aggregate:
            raise self.error(
                node, f"{place.type} is storage and cannot be assigned.", "Use copy()."
            )
        self.store(place, self.fit(value, place.type, node))
        if isinstance(target, ast.Name) and self.assigned is not None:
            self.assigned.add(target.id)

    def _inferred(self, value: Value, target: ast.Name) -> Type:
        if target.id in self.locals:
            return self.locals[target.id].type
        if isinstance(value.type, NullType):
            raise self.error(target, f"the type of {target.id} is not known.", "Annotate it.")
        return self.typed(value).type

    def _declare(self, target: ast.Name, kind: Type, node: ast.AST) -> Place:
        """The place of a local, made on its first assignment."""
        local = self.locals.get(target.id)
        if local is None:
            local = self.locals[target.id] = self._new_local(target.id, kind)
        elif local.type != kind:
            raise self.error(node, f"{target.id} is {local.type}, not {kind}.")
        return self.local_place(local)

    def _new_local(self, name: str, kind: Type) -> Local:
        if kind.aggregate or name in self.addressed:
            self.function.slots.append(Slot(kind.size, kind.align, name))
            return Local(kind, None, len(self.function.slots) - 1)
        return Local(kind, self.function.register(kind_of(kind), name))

    def _do_AnnAssign(self, node: ast.AnnAssign) -> None:  # noqa: N802
        if not isinstance(node.target, ast.Name):
            raise self.error(node, "only a local variable can be annotated here.")
        kind = self.constants.type(node.annotation)
        if kind == types.VOID:
            raise self.error(node, "None is not a variable's type.")
        if node.value is None:
            self._declare(node.target, kind, node)
            if kind.aggregate and self.assigned is not None:
                self.assigned.add(node.target.id)
            return
        value = self.value_as(node.value, kind) if not kind.aggregate else None
        if value is None:
            raise self.error(node, f"{kind} has no initial value.", "Declare it without one.")
        self.store(self._declare(node.target, kind, node), value)
        if self.assigned is not None:
            self.assigned.add(node.target.id)

    def _do_AugAssign(self, node: ast.AugAssign) -> None:  # noqa: N802
        name = BINARY_NAMES.get(type(node.op))
        if name is None:
            raise self.error(node, f"{type(node.op).__name__} is not in the dialect.")
        place = self.place(node.target)
        if place.type.aggregate:
            raise self.error(node, f"{place.type} is storage and cannot be assigned.")
        value = self.operate(name, self.load(place), self.value(node.value), node)
        self.store(place, self.fit(value, place.type, node))

    # -- control ----------------------------------------------------------------------------

    def _do_If(self, node: ast.If) -> None:  # noqa: N802
        try:
            self.body(node.body if self.constants.value(node.test) else node.orelse)
            return
        except Unknown:
            pass
        then, orelse, end = self.new_block(), self.new_block(), self.new_block()
        self.condition(node.test, then, orelse)
        before = self.assigned
        after: list[set[str] | None] = []
        for start, statements in ((then, node.body), (orelse, node.orelse)):
            self.current = start
            self.assigned = None if before is None else set(before)
            self.body(statements)
            self.jump(end)
            after.append(self.assigned)
        self.assigned = both(*after)
        self.current = end

    def _do_While(self, node: ast.While) -> None:  # noqa: N802
        if node.orelse:
            raise self.error(node, "while ... else is not in the dialect.")
        head, body, end = self.new_block(), self.new_block(), self.new_block()
        self.jump(head)
        self.current = head
        self.condition(node.test, body, end)
        try:
            forever = bool(self.constants.value(node.test))
        except Unknown:
            forever = False
        self._loop(node.body, body, Loop(head, end), None if forever else self.assigned)

    def _loop(
        self, statements: list[ast.stmt], start: int, loop: Loop, skipped: set[str] | None
    ) -> None:
        """A loop's body, from block `start` back to `loop.again`."""
        self.loops.append(loop)
        self.current = start
        self.assigned = None if self.assigned is None else set(self.assigned)
        before = None if skipped is None else set(skipped)
        self.body(statements)
        self.jump(loop.again)
        self.loops.pop()
        self.assigned = both(before, loop.breaks)
        self.current = loop.end

    def _do_For(self, node: ast.For) -> None:  # noqa: N802
        if node.orelse or not isinstance(node.target, ast.Name):
            raise self.error(node, "only `for name in range(...)` is in the dialect.")
        start, stop, step = self._range(node)
        kind = self._joined(start, stop, node)
        if not isinstance(kind, IntType):
            raise self.error(node, "range() needs integers.")
        if kind == types.U64 and abs(step) != 1:
            raise self.error(node, "range() over u64 steps by 1 or -1.")
        # The counter is a register of its own, 64 bits wide: it cannot wrap at the type's width.
        counter = self.function.register("i64", f"{node.target.id} counter")
        limit = self.function.register("i64", f"{node.target.id} limit")
        self.emit(Ins("copy", counter, self.reg(self.fit(start, kind, node))))
        self.emit(Ins("copy", limit, self.reg(self.fit(stop, kind, node))))
        head, body, again, end = (self.new_block() for _ in range(4))
        self.jump(head)
        self.current = head
        test = ("lt" if step > 0 else "gt") + ("u" if kind == types.U64 else "s")
        self.emit(Ins("branch", None, counter, limit, kind=test, targets=(body, end)))
        self.current = again
        self.emit(Ins("add", counter, counter, Imm(step)))
        self.jump(head)
        self._iterate(node, Value(kind, counter), body, Loop(again, end))

    def _iterate(self, node: ast.For, counter: Value, body: int, loop: Loop) -> None:
        assert isinstance(node.target, ast.Name)
        skipped = self.assigned
        self.assigned = None if skipped is None else set(skipped)
        self.current = body
        self._assign(node.target, counter, node)
        self._loop(node.body, self.current, loop, skipped)

    def _range(self, node: ast.For) -> tuple[Value, Value, int]:
        call = node.iter
        if (
            not isinstance(call, ast.Call)
            or not isinstance(call.func, ast.Name)
            or call.func.id != "range"
            or call.keywords
            or not 1 <= len(call.args) <= 3
        ):
            raise self.error(node, "only `for name in range(...)` is in the dialect.")
        values = [self.value(item) for item in call.args]
        step = values[2].literal if len(values) == 3 else 1
        if step == 0 or (len(values) == 3 and not isinstance(values[2].type, LiteralType)):
            raise self.error(node, "the step of range() must be a constant other than 0.")
        if len(values) == 1:
            return self._zero(), values[0], 1
        return values[0], values[1], step

    def _zero(self) -> Value:
        return Value(types.LITERAL, Imm(0), 0)

    def _do_Break(self, _node: ast.Break) -> None:  # noqa: N802
        loop = self.loops[-1]
        if self.assigned is not None:
            loop.breaks = both(loop.breaks, set(self.assigned))
        self.jump(loop.end)
        self._unreachable()

    def _do_Continue(self, _node: ast.Continue) -> None:  # noqa: N802
        self.jump(self.loops[-1].again)
        self._unreachable()

    def _do_Return(self, node: ast.Return) -> None:  # noqa: N802
        if self.returns == types.VOID:
            if node.value is not None:
                raise self.error(node, "this function has no result.", "Annotate it with -> TYPE.")
            self.emit(Ins("ret"))
        elif node.value is None:
            raise self.error(node, f"this function returns {self.returns}.")
        else:
            value = self.value_as(node.value, self.returns)
            self.emit(Ins("ret", None, self.reg(value)))
        self._unreachable()

    def _unreachable(self) -> None:
        self.assigned = None
        self.current = self.new_block()

    def _do_Assert(self, node: ast.Assert) -> None:  # noqa: N802
        good, bad = self.new_block(), self.new_block()
        self.condition(node.test, good, bad)
        what = ast.unparse(node.test)
        if isinstance(node.msg, ast.Constant) and isinstance(node.msg.value, str):
            what = node.msg.value
        elif node.msg is not None:
            raise self.error(node, "an assertion's message must be a constant string.")
        self.current = bad
        self.fail(node, f"assertion failed: {what}")
        self.current = good
