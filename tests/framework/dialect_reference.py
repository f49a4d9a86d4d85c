"""What Python says a random program computes.

`Reference` knows the README's rules (wrap-around, floor division, shifts modulo the width) and nothing of
the compiler.
"""

from __future__ import annotations

from typing import Any

from framework.dialect_programs import MASK, TYPES, Tree, wrap


class _Leave(Exception):  # noqa: N818  break or continue, not an error
    pass


class Reference:
    """Computes the functions for one set of inputs."""

    def __init__(self, inputs: list[int]) -> None:
        self.inputs = inputs
        self.memory = [inputs[0] * (i + 1) & MASK for i in range(8)]
        self.locals: dict[str, int] = {}

    def call(self, body: list[Tree]) -> int:
        self.locals = {}
        result = self.suite(body)
        assert result is not None
        return result

    def value(self, tree: Tree) -> int:
        what, kind = tree[0], tree[1]
        if what == "literal":
            return int(tree[2])
        if what == "local":
            return self.locals[tree[2]]
        if what == "input":
            return self.inputs[tree[2]]
        if what == "load":
            return wrap(kind, self.memory[self.value(tree[2])])
        if what == "cast":
            return wrap(kind, self.value(tree[2]))
        if what == "unary":
            value = self.value(tree[3])
            return wrap(kind, -value if tree[2] == "-" else ~value)
        if what == "if":
            return self.value(tree[3] if self.truth(tree[2]) else tree[4])
        if what == "call":
            return self.invoke(kind, tree[2], [self.value(item) for item in tree[3]])
        a, b = self.value(tree[3]), self.value(tree[4])
        if what == "shift":
            b %= TYPES[kind][0]
        return wrap(kind, _apply(tree[2], a, b))

    def invoke(self, kind: str, name: str, items: list[int]) -> int:
        if name in ("min", "max"):
            return min(items) if name == "min" else max(items)
        a, b, c, d, e, f = items
        return wrap(kind, (a + b * 3) ^ ((c - d) + (e ^ ~f)))

    def truth(self, tree: Tree) -> bool:
        what = tree[0]
        if what == "not":
            return not self.truth(tree[2])
        if what == "and":
            return all(self.truth(item) for item in tree[2])
        if what == "or":
            return any(self.truth(item) for item in tree[2])
        if what == "chain":
            a, b, c = [self.value(item) for item in tree[3]]
            return _compare(tree[2][0], a, b) and _compare(tree[2][1], b, c)
        return _compare(tree[2], self.value(tree[3]), self.value(tree[4]))

    def suite(self, body: list[Tree]) -> int | None:
        for item in body:
            result = self.statement(item)
            if result is not None:
                return result
        return None

    def statement(self, item: Tree) -> int | None:
        what = item[0]
        if what == "set":
            self.locals[item[1]] = self.value(item[3])
        elif what == "augment":
            operand = ("op", item[2], item[3], ("local", item[2], item[1]), item[4])
            self.locals[item[1]] = self.value(operand)
        elif what == "store":
            index = self.value(item[2])
            self.memory[index] = self.value(item[3]) & MASK
        elif what == "branch":
            self.suite(item[2] if self.truth(item[1]) else item[3])
        elif what == "leave":
            if self.truth(item[1]):
                raise _Leave(item[2])
        elif what == "for":
            self.loop(item[5], range(item[2], item[3], item[4]))
        elif what == "while":
            self.loop(item[4], self.countdown(item[1], item[3]))
        else:
            return self.value(item[1])
        return None

    def countdown(self, count: int, condition: Tree) -> Any:
        while count > 0 and self.truth(condition):
            count -= 1
            yield count

    def loop(self, body: list[Tree], rounds: Any) -> None:
        for _ in rounds:
            try:
                self.suite(body)
            except _Leave as leave:
                if leave.args[0] == "break":
                    return


def _apply(op: str, a: int, b: int) -> int:
    return {
        "+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "&": lambda: a & b,
        "|": lambda: a | b, "^": lambda: a ^ b, "//": lambda: a // b, "%": lambda: a % b,
        "<<": lambda: a << b, ">>": lambda: a >> b,
    }[op]()  # fmt: skip


def _compare(op: str, a: int, b: int) -> bool:
    return {"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b, "==": a == b, "!=": a != b}[op]
