"""Random programs in the dialect; what Python says they compute is in dialect_reference.py.

A program is a list of functions `f0 … fn`, each from six 64-bit inputs to a u64. It is kept as a tree of
small tuples, grown by `Generator` and written out by `source`.
"""

from __future__ import annotations

from random import Random
from typing import Any

TYPES = {f"{sign}{bits}": (bits, sign == "i") for sign in "ui" for bits in (8, 16, 32, 64)}
NAMES = sorted(TYPES)
INPUTS = 6
MASK = (1 << 64) - 1
CORNERS = [0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 1 << 31, (1 << 31) - 1,
           (1 << 32) - 1, 1 << 32, 1 << 63, (1 << 63) - 1, MASK, MASK - 1]  # fmt: skip
_OPS = ["+", "-", "*", "&", "|", "^"]
_COMPARE = ["<", "<=", ">", ">=", "==", "!="]

Tree = tuple[Any, ...]


def wrap(kind: str, value: int) -> int:
    """`value` as the type `kind` holds it."""
    bits, signed = TYPES[kind]
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value


class Generator:
    """Grows random trees. Locals v0… have types of their own; all are assigned first."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.locals: dict[str, str] = {}
        self.readable: list[str] = []

    def literal(self, kind: str) -> int:
        return wrap(kind, self.random.choice([*CORNERS, self.random.getrandbits(64)]))

    def expression(self, kind: str, depth: int) -> Tree:
        """An expression of exactly type `kind`."""
        random = self.random
        if depth <= 0 or random.random() < 0.1:
            return self.leaf(kind)
        choice = random.randrange(12)
        if choice < 4:
            return (
                "op",
                kind,
                random.choice(_OPS),
                self.expression(kind, depth - 1),
                self.operand(kind, depth),
            )
        if choice == 4:
            divisor = ("op", kind, "|", self.expression(kind, depth - 1), ("literal", kind, 1))
            return (
                "op",
                kind,
                random.choice(["//", "%"]),
                self.expression(kind, depth - 1),
                divisor,
            )
        if choice == 5:
            return self.divide_by_constant(kind, depth)
        if choice == 6:
            return self.shift(kind, depth)
        if choice == 7:
            return ("cast", kind, self.expression(random.choice(NAMES), depth - 1))
        if choice == 8:
            return ("unary", kind, random.choice("-~"), self.expression(kind, depth - 1))
        if choice == 9:
            return (
                "if",
                kind,
                self.condition(depth - 1),
                self.expression(kind, depth - 1),
                self.expression(kind, depth - 1),
            )
        if choice == 10:
            return (
                "call",
                kind,
                random.choice(["min", "max"]),
                [self.expression(kind, depth - 1) for _ in range(2)],
            )
        return ("call", kind, f"mix_{kind}", [self.expression(kind, depth - 2) for _ in range(6)])

    def leaf(self, kind: str) -> Tree:
        random = self.random
        same = [name for name in self.readable if self.locals[name] == kind]
        if same and random.random() < 0.5:
            return ("local", kind, random.choice(same))
        if random.random() < 0.2:
            return ("cast", kind, ("literal", kind, self.literal(kind)))
        if random.random() < 0.3:
            index = (
                self.expression("u8", 0)
                if random.random() < 0.5
                else ("cast", "u8", ("input", "u64", 0))
            )
            return ("load", kind, ("op", "u8", "&", index, ("literal", "u8", 7)))
        return ("cast", kind, ("input", "u64", random.randrange(INPUTS)))

    def operand(self, kind: str, depth: int) -> Tree:
        """A right operand: of `kind`, a literal, or of a type that widens to `kind`."""
        roll = self.random.random()
        if roll < 0.25:
            return ("literal", kind, self.literal(kind))
        if roll < 0.4:
            return self.expression(self.narrower(kind), depth - 1)
        return self.expression(kind, depth - 1)

    def narrower(self, kind: str) -> str:
        bits, signed = TYPES[kind]
        names = [
            name for name, (b, s) in TYPES.items()
            if (s == signed and b <= bits) or (signed and not s and b < bits)
        ]  # fmt: skip
        return self.random.choice(names)

    def divide_by_constant(self, kind: str, depth: int) -> Tree:
        _, signed = TYPES[kind]
        number = self.random.choice(
            [1, 2, 3, 7, 10, 16, 64, 100, -1, -2, -3, -7] if signed else [1, 2, 3, 10, 16, 128]
        )
        op = self.random.choice(["//", "%"])
        return ("op", kind, op, self.expression(kind, depth - 1), ("literal", kind, number))

    def shift(self, kind: str, depth: int) -> Tree:
        bits, _ = TYPES[kind]
        count: Tree = ("literal", "u8", self.random.randrange(bits))
        if self.random.random() < 0.5:
            # Never a constant: a constant count out of range is a compile error.
            count = (
                "op",
                "u8",
                "^",
                self.expression("u8", depth - 1),
                ("cast", "u8", ("input", "u64", 1)),
            )
        return (
            "shift",
            kind,
            self.random.choice(["<<", ">>"]),
            self.expression(kind, depth - 1),
            count,
        )

    def condition(self, depth: int) -> Tree:
        random = self.random
        choice = random.randrange(6) if depth > 0 else 0
        if choice == 1:
            return ("not", "bool", self.condition(depth - 1))
        if choice in (2, 3):
            items = [self.condition(depth - 1) for _ in range(random.choice([2, 3]))]
            return ("and" if choice == 2 else "or", "bool", items)
        kind = random.choice(NAMES)
        if choice == 4:
            parts = [self.expression(kind, depth - 1) for _ in range(3)]
            return ("chain", "bool", [random.choice(_COMPARE) for _ in range(2)], parts)
        return (
            "compare",
            "bool",
            random.choice(_COMPARE),
            self.expression(kind, depth - 1),
            self.operand(kind, depth),
        )

    # -- statements -------------------------------------------------------------------------

    def function(self, statements: int) -> list[Tree]:
        """A body whose first statements give every local a value."""
        self.locals = {f"v{n}": self.random.choice(NAMES) for n in range(6)}
        self.readable = []
        body: list[Tree] = []
        for name, kind in self.locals.items():
            body.append(("set", name, kind, self.expression(kind, 1)))
            self.readable.append(name)
        body += self.suite(statements, 3, loop=False)
        result = self.expression("u64", 2)
        for name, kind in self.locals.items():
            result = (
                "op",
                "u64",
                "^",
                ("op", "u64", "*", result, ("literal", "u64", 31)),
                ("cast", "u64", ("local", kind, name)),
            )
        return [*body, ("return", result)]

    def suite(self, count: int, depth: int, *, loop: bool) -> list[Tree]:
        return [
            self.statement(depth, loop=loop) for _ in range(self.random.randint(1, max(count, 1)))
        ]

    def statement(self, depth: int, *, loop: bool) -> Tree:
        random = self.random
        name = random.choice(list(self.locals))
        kind = self.locals[name]
        choice = random.randrange(10) if depth > 0 else random.randrange(4)
        if choice in (0, 1):
            return ("set", name, kind, self.expression(kind, 3))
        if choice == 2:
            return ("augment", name, kind, random.choice(_OPS), self.operand(kind, 3))
        if choice == 3:
            index = ("op", "u8", "&", self.expression("u8", 1), ("literal", "u8", 7))
            stored = random.choice(NAMES)
            return ("store", stored, index, self.expression(stored, 2))
        if choice in (4, 5):
            return (
                "branch",
                self.condition(2),
                self.suite(3, depth - 1, loop=loop),
                self.suite(2, depth - 1, loop=loop),
            )
        if choice == 6 and loop:
            return ("leave", self.condition(1), random.choice(["break", "continue"]))
        if choice in (6, 7):
            start, stop = random.randrange(-3, 4), random.randrange(-3, 6)
            step = random.choice([1, 1, 2, -1])
            return ("for", f"i{depth}", start, stop, step, self.suite(3, depth - 1, loop=True))
        if choice == 8:
            return (
                "while",
                random.randrange(1, 5),
                f"n{depth}",
                self.condition(1),
                self.suite(3, depth - 1, loop=True),
            )
        return ("set", name, kind, self.expression(kind, 4))


# -- as a source ----------------------------------------------------------------------------

PRELUDE = "memory = static(array[u64, 8])\n" + "".join(
    f"def mix_{kind}(a: {kind}, b: {kind}, c: {kind}, d: {kind}, e: {kind}, f: {kind}) -> {kind}:\n"
    f"    return (a + b * 3) ^ (c - d) + (e ^ ~f)\n"
    for kind in NAMES
)


def text(tree: Tree) -> str:
    """An expression as source."""
    what, kind = tree[0], tree[1]
    if what == "literal":
        return f"{tree[2]}" if tree[2] >= 0 else f"({tree[2]})"
    if what == "local":
        return str(tree[2])
    if what == "input":
        return f"inputs[{tree[2]}]"
    if what == "load":
        return f"{kind}(memory[{text(tree[2])}])"
    if what == "cast":
        return f"{kind}({text(tree[2])})"
    if what == "unary":
        return f"({tree[2]}({text(tree[3])}))"
    if what == "if":
        return f"({text(tree[3])} if {text(tree[2])} else {text(tree[4])})"
    if what == "call":
        return f"{tree[2]}({', '.join(map(text, tree[3]))})"
    if what == "not":
        return f"(not {text(tree[2])})"
    if what in ("and", "or"):
        return "(" + f" {what} ".join(map(text, tree[2])) + ")"
    if what == "chain":
        (first, second), (a, b, c) = tree[2], map(text, tree[3])
        return f"({a} {first} {b} {second} {c})"
    return f"({text(tree[3])} {tree[2]} {text(tree[4])})"


def text_suite(body: list[Tree], indent: str) -> str:
    """Statements as source."""
    return "".join(_text_statement(item, indent) for item in body)


def _text_statement(item: Tree, indent: str) -> str:
    what, more = item[0], indent + "    "
    if what == "set":
        return f"{indent}{item[1]}: {item[2]} = {text(item[3])}\n"
    if what == "augment":
        return f"{indent}{item[1]} {item[3]}= {text(item[4])}\n"
    if what == "store":
        return f"{indent}memory[{text(item[2])}] = u64({text(item[3])})\n"
    if what == "branch":
        return (
            f"{indent}if {text(item[1])}:\n{text_suite(item[2], more)}"
            f"{indent}else:\n{text_suite(item[3], more)}"
        )
    if what == "leave":
        return f"{indent}if {text(item[1])}:\n{more}{item[2]}\n"
    if what == "for":
        return f"{indent}for {item[1]} in range({item[2]}, {item[3]}, {item[4]}):\n{text_suite(item[5], more)}"
    if what == "while":
        return (
            f"{indent}{item[2]}: i64 = {item[1]}\n{indent}while {item[2]} > 0 and {text(item[3])}:\n"
            f"{more}{item[2]} -= 1\n{text_suite(item[4], more)}"
        )
    return f"{indent}return {text(item[1])}\n"


def source(functions: list[list[Tree]]) -> str:
    """A program that reads sets of inputs from fd 0 and prints every function's result for each."""
    parts = [PRELUDE]
    for number, body in enumerate(functions):
        parts.append(f"def f{number}(inputs: ptr[u64]) -> u64:\n{text_suite(body, '    ')}")
    calls = "".join(f"        print(f'{{f{n}(inputs):x}}')\n" for n in range(len(functions)))
    parts.append(
        f"def main() -> i32:\n    inputs: array[u64, {INPUTS}]\n"
        f"    while linux.read(0, inputs, sizeof(inputs)) == sizeof(inputs):\n"
        f"        for i in range(8):\n            memory[i] = inputs[0] * u64(i + 1)\n"
        f"{calls}    return 0\n"
    )
    return "\n".join(parts)
