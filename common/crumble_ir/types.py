"""The dialect's types: integers, bool, pointers, arrays and structs, with C's natural layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

POINTER_SIZE = 8


class Type:
    """Base: `size` and `align` in bytes, `name` as written in a source."""

    name: str
    size: int
    align: int

    def __str__(self) -> str:
        return self.name

    @property
    def aggregate(self) -> bool:
        """Arrays and structs: used as values they are references (pointers)."""
        return False


@dataclass(frozen=True, eq=True)
class IntType(Type):
    """A fixed-width integer; arithmetic wraps at its width."""

    name: str
    size: int
    signed: bool

    @property
    def align(self) -> int:  # type: ignore[override]  # computed
        """Natural alignment."""
        return self.size

    @property
    def low(self) -> int:
        """The smallest value."""
        return -(1 << (self.size * 8 - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """The largest value."""
        return (1 << (self.size * 8 - self.signed)) - 1

    def holds(self, value: int) -> bool:
        """Whether `value` can be represented."""
        return self.low <= value <= self.high

    def wrap(self, value: int) -> int:
        """`value` modulo 2**bits, in range."""
        value &= (1 << self.size * 8) - 1
        return value - (1 << self.size * 8) if value > self.high else value

    def __str__(self) -> str:
        return self.name


U8, U16, U32, U64 = (IntType(f"u{n * 8}", n, False) for n in (1, 2, 4, 8))
I8, I16, I32, I64 = (IntType(f"i{n * 8}", n, True) for n in (1, 2, 4, 8))
INTEGERS = {kind.name: kind for kind in (U8, U16, U32, U64, I8, I16, I32, I64)}


@dataclass(frozen=True)
class BoolType(Type):
    """0 or 1; what comparisons give. Widens to any integer."""

    name: str = "bool"
    size: int = 1
    align: int = 1

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class VoidType(Type):
    """What a function without a result returns."""

    name: str = "None"
    size: int = 0
    align: int = 1

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class LiteralType(Type):
    """A constant that has not met a typed operand yet; value any Python int."""

    name: str = "literal"
    size: int = 8
    align: int = 8


@dataclass(frozen=True)
class NullType(Type):
    """None used as a value: fits every pointer."""

    name: str = "None"
    size: int = 8
    align: int = 8


BOOL, VOID, LITERAL, NULL = BoolType(), VoidType(), LiteralType(), NullType()


@dataclass(frozen=True)
class PointerType(Type):
    """The address of a `target`."""

    target: Type
    size: int = POINTER_SIZE
    align: int = POINTER_SIZE

    @property
    def name(self) -> str:  # type: ignore[override]  # computed
        """As written."""
        return f"ptr[{self.target}]"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class ArrayType(Type):
    """`count` elements in a row; indexing it is checked."""

    element: Type
    count: int

    @property
    def name(self) -> str:  # type: ignore[override]  # computed
        """As written."""
        return f"array[{self.element}, {self.count}]"

    @property
    def size(self) -> int:  # type: ignore[override]  # computed
        """Bytes of all elements."""
        return self.element.size * self.count

    @property
    def align(self) -> int:  # type: ignore[override]  # computed
        """That of an element."""
        return self.element.align

    @property
    def aggregate(self) -> bool:
        return True

    def __str__(self) -> str:
        return self.name


@dataclass(eq=False)
class StructType(Type):
    """Named fields at natural offsets. Laid out on first use: a field may point to its own struct."""

    name: str
    declared: Callable[[], dict[str, Type]]
    _fields: dict[str, tuple[int, Type]] | None = field(default=None, repr=False)
    _busy: bool = False

    def _lay_out(self) -> dict[str, tuple[int, Type]]:
        if self._fields is not None:
            return self._fields
        if self._busy:
            raise ValueError(f"struct {self.name} contains itself")
        self._busy = True
        try:
            offset, laid = 0, dict[str, tuple[int, Type]]()
            for name, kind in self.declared().items():
                offset = -(-offset // kind.align) * kind.align
                laid[name] = (offset, kind)
                offset += kind.size
        finally:
            self._busy = False
        self._fields = laid
        return laid

    @property
    def fields(self) -> dict[str, tuple[int, Type]]:
        """Offset and type of each field, in order."""
        return self._lay_out()

    @property
    def align(self) -> int:  # type: ignore[override]  # computed
        """The largest of its fields'."""
        return max((kind.align for _, kind in self.fields.values()), default=1)

    @property
    def size(self) -> int:  # type: ignore[override]  # computed
        """Up to the last field's end, rounded up to the alignment."""
        end = max((offset + kind.size for offset, kind in self.fields.values()), default=0)
        return -(-end // self.align) * self.align

    @property
    def aggregate(self) -> bool:
        return True

    def __str__(self) -> str:
        return self.name


def common(one: IntType | BoolType, other: IntType | BoolType) -> IntType | BoolType | None:
    """The type that holds every value of both, or None when there is none up to 64 bits."""
    if one == other or isinstance(other, BoolType):
        return one
    if isinstance(one, BoolType):
        return other
    if one.signed == other.signed:
        return one if one.size >= other.size else other
    wide, narrow = (one, other) if one.signed else (other, one)
    return wide if wide.size > narrow.size else None


def widens(source: Type, target: Type) -> bool:
    """Whether every value of `source` is one of `target`, so that no cast is needed."""
    if source == target:
        return True
    if isinstance(source, NullType) and isinstance(target, PointerType):
        return True
    if isinstance(source, BoolType) and isinstance(target, IntType):
        return True
    if isinstance(source, IntType) and isinstance(target, IntType):
        return common(source, target) == target
    return False
