"""The intermediate representation: three-address code over virtual registers in basic blocks.

Every virtual register holds 64 bits. A value of a narrower kind is kept normalized: zero-extended for
unsigned kinds, sign-extended for signed ones; `ext` restores that after arithmetic that can leave it.
Registers may be assigned many times (this is not SSA). A block is a list of instructions of which
exactly the last is a terminator.

    const   dst = constant                      symbol  dst = address of a symbol + constant
    slot    dst = address of a stack slot       copy    dst = a
    BINARY  dst = a op b (b may be constant)    ext     dst = a as kind
    load    dst = kind at [a + offset]          store   kind at [a + offset] = b
    call    dst = symbol(args)                  syscall dst = args[0](args[1:])
    jump    to targets[0]                       branch  to targets[0] if a op b else targets[1]
    ret     a or nothing                        trap    ends the program with a fault
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_ARGS = 6
COMPARISONS = ("eq", "ne", "ltu", "leu", "lts", "les", "gtu", "geu", "gts", "ges")
ARITHMETIC = (
    "add", "sub", "mul", "and", "or", "xor", "shl", "shr", "sar", "divu", "divs", "remu", "rems",
)  # fmt: skip
BINARY = frozenset(ARITHMETIC + COMPARISONS)
TERMINATORS = frozenset({"jump", "branch", "ret", "trap"})
KINDS = ("u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64")
NEGATED = {
    "eq": "ne", "ne": "eq", "ltu": "geu", "geu": "ltu", "leu": "gtu", "gtu": "leu",
    "lts": "ges", "ges": "lts", "les": "gts", "gts": "les",
}  # fmt: skip
SWAPPED = {
    "eq": "eq", "ne": "ne", "ltu": "gtu", "gtu": "ltu", "leu": "geu", "geu": "leu",
    "lts": "gts", "gts": "lts", "les": "ges", "ges": "les",
}  # fmt: skip


class Imm:
    """A constant operand: a 64-bit value, kept as a signed Python int."""

    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        value &= (1 << 64) - 1
        self.value = value - (1 << 64) if value >> 63 else value

    def __repr__(self) -> str:
        return str(self.value)


Operand = int | Imm
"""A virtual register's number, or a constant."""


class Ins:
    """One instruction; which fields mean something depends on `op` (see the module's head)."""

    __slots__ = ("a", "args", "b", "dst", "kind", "offset", "op", "symbol", "targets")

    def __init__(
        self,
        op: str,
        dst: int | None = None,
        a: Operand | None = None,
        b: Operand | None = None,
        *,
        kind: str = "",
        offset: int = 0,
        symbol: str = "",
        args: tuple[Operand, ...] = (),
        targets: tuple[int, ...] = (),
    ) -> None:
        self.op = op
        self.dst = dst
        self.a = a
        self.b = b
        self.kind = kind
        self.offset = offset
        self.symbol = symbol
        self.args = args
        self.targets = targets

    def operands(self) -> Iterator[Operand]:
        """Everything read, in order."""
        if self.a is not None:
            yield self.a
        if self.b is not None:
            yield self.b
        yield from self.args

    def uses(self) -> list[int]:
        """The virtual registers read."""
        return [operand for operand in self.operands() if not isinstance(operand, Imm)]

    @property
    def clobbers(self) -> bool:
        """Whether caller-saved machine registers are lost."""
        return self.op in ("call", "syscall")

    def __str__(self) -> str:
        return f"{_reg(self.dst)} = {self._right()}" if self.dst is not None else self._right()

    def _right(self) -> str:
        op, a, b = self.op, _reg(self.a), _reg(self.b)
        targets = [f"b{target}" for target in self.targets]
        if op == "branch":
            return f"branch {a} {self.kind} {b} ? {' : '.join(targets)}"
        if op == "jump":
            return f"jump {' '.join(targets)}"
        if op == "load":
            return f"load.{self.kind} [{a} + {self.offset}]"
        if op == "store":
            return f"store.{self.kind} [{a} + {self.offset}], {b}"
        if op in ("call", "syscall"):
            return f"{op} {self.symbol}({', '.join(map(_reg, self.args))})"
        if op == "symbol":
            return f"symbol {self.symbol} + {self.offset}"
        if op == "slot":
            return f"slot {self.offset}"
        if op == "ext":
            return f"ext.{self.kind} {a}"
        return " ".join(word for word in (op, a, b) if word)


def _reg(operand: Operand | None) -> str:
    if operand is None:
        return ""
    return str(operand) if isinstance(operand, Imm) else f"v{operand}"


@dataclass
class Slot:
    """Stack memory of a function."""

    size: int
    align: int
    name: str = ""


@dataclass
class Function:
    """Code. `params` are the registers that hold the arguments on entry; `returns` a result or not."""

    name: str
    params: list[int] = field(default_factory=list)
    returns: bool = False
    blocks: list[list[Ins]] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)

    def register(self, kind: str, name: str = "") -> int:
        """A new virtual register."""
        self.kinds.append(kind)
        if name:
            self.names[len(self.kinds) - 1] = name
        return len(self.kinds) - 1

    def __str__(self) -> str:
        params = ", ".join(f"v{p}: {self.kinds[p]}" for p in self.params)
        lines = [f"func {self.name}({params}){' -> result' if self.returns else ''}"]
        for index, slot in enumerate(self.slots):
            lines.append(f"  slot {index}: {slot.size} bytes, align {slot.align}  {slot.name}")
        for reg, name in self.names.items():
            lines.append(f"  v{reg} is {name}")
        for index, block in enumerate(self.blocks):
            lines.append(f"b{index}:")
            lines.extend(f"  {ins}" for ins in block)
        return "\n".join(lines)


@dataclass
class Data:
    """A global: `contents`, or `size` zero bytes when that is None. Constants are read-only."""

    name: str
    size: int
    align: int
    contents: bytes | None = None
    constant: bool = False


@dataclass
class Module:
    """A whole program; execution begins in the function named `entry`."""

    entry: str
    functions: dict[str, Function] = field(default_factory=dict)
    data: dict[str, Data] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"data {item.name}: {item.size} bytes, align {item.align}"
            + (f" = {item.contents!r}" if item.contents is not None else "")
            for item in self.data.values()
        ]
        return "\n".join([*lines, *(str(function) for function in self.functions.values())]) + "\n"
