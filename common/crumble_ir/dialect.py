"""The words a source in the dialect imports: types, declarations and intrinsics.

A source is a Python module: importing it evaluates its constants, structs and globals; compiling it
translates its functions, found by name from `main` on. What the words mean is in README.md.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from crumble_ir import types
from crumble_ir.types import ArrayType, PointerType, StructType, Type

u8, u16, u32, u64 = types.U8, types.U16, types.U32, types.U64
i8, i16, i32, i64 = types.I8, types.I16, types.I32, types.I64

T = TypeVar("T")


@dataclass(frozen=True)
class Deferred:
    """A pointer to a struct named before it is declared: ptr["Name"] or ptr[Name] in its own body."""

    name: str


class ptr:  # noqa: N801  a type name of the dialect
    """ptr[T]: the address of a T."""

    def __class_getitem__(cls, target: Any) -> PointerType | Deferred:
        """The pointer type; a string names a struct of the same module."""
        return Deferred(target) if isinstance(target, str) else PointerType(as_type(target))


class array:  # noqa: N801
    """array[T, N]: N of T in a row."""

    def __class_getitem__(cls, item: tuple[Any, int]) -> ArrayType:
        """The array type."""
        element, count = item
        if not isinstance(count, int) or count <= 0:
            raise TypeError(f"an array needs a positive count, not {count!r}")
        return ArrayType(as_type(element), int(count))


def as_type(written: Any, namespace: dict[str, Any] | None = None) -> Type:
    """The type meant by an evaluated annotation; raises TypeError when there is none."""
    if isinstance(written, str) and namespace is not None:
        written = eval(written, namespace)  # noqa: S307  the source's own annotation
    if isinstance(written, Deferred) and namespace is not None and written.name in namespace:
        return PointerType(as_type(namespace[written.name]))
    if isinstance(written, Type):
        return written
    if isinstance(written, type) and hasattr(written, "__crumble_struct__"):
        laid: Type = written.__crumble_struct__
        return laid
    if written is bool:
        return types.BOOL
    if written is None:
        return types.VOID
    raise TypeError(f"{written!r} is not a type of the dialect")


def struct(declared: type[T]) -> type[T]:
    """Makes a class of annotated names a struct: fields in order, naturally aligned as in C."""
    namespace = sys._getframe(1).f_globals  # noqa: SLF001  where its annotations mean something
    annotations = inspect.get_annotations(declared)

    def fields() -> dict[str, Type]:
        return {name: as_type(written, namespace) for name, written in annotations.items()}

    declared.__crumble_struct__ = StructType(declared.__name__, fields)  # type: ignore[attr-defined]  # it is given here
    return declared


@dataclass(eq=False)
class Static:
    """A global variable. Named by the module variable it is bound to."""

    type: Type
    initial: int | bytes | None = None


def static(kind: Any, initial: int | bytes | None = None) -> Any:
    """Declares a global: `counter = static(u32, 5)`, `table = static(array[Process, 16])`.

    Zero unless `initial` is given: a number for a scalar, bytes for an array of u8.
    """
    return Static(as_type(kind), initial)


@dataclass(frozen=True)
class ArchConstant:
    """A constant that differs by architecture."""

    values: dict[str, Any]


def by_arch(**values: Any) -> Any:
    """A constant by architecture: `NR = by_arch(amd64=1, riscv64=2)`."""
    return ArchConstant(values)


@dataclass(frozen=True)
class Syscall:
    """A Linux system call: its number on x86-64 and on the architectures of the generic table."""

    amd64: int
    generic: int

    def number(self, arch: str) -> int:
        """The number on `arch`."""
        return self.amd64 if arch == "amd64" else self.generic

    def __call__(self, *_arguments: Any) -> Any:
        raise TypeError("system calls run only in compiled code")


class ArchName:
    """The target's name, known only while compiling: `if arch == "riscv64":`."""

    def __eq__(self, _other: object) -> bool:
        raise TypeError("arch is known only inside functions, while they are compiled")

    __hash__ = object.__hash__


arch: Any = ArchName()


@dataclass(frozen=True)
class Intrinsic:
    """A function the compiler itself knows."""

    name: str

    def __call__(self, *_arguments: Any, **_keywords: Any) -> Any:
        raise TypeError(f"{self.name} means something only in compiled code")


# feature("name"): whether the program is compiled with that flag. A constant.
feature: Callable[..., Any] = Intrinsic("feature")
# sizeof(T): its bytes. A constant.
sizeof: Callable[..., Any] = Intrinsic("sizeof")
# addr(place): the address of a variable, field or element.
addr: Callable[..., Any] = Intrinsic("addr")
# format_into(buffer, f"..."): writes text and a NUL into an array[u8, N]; returns its length.
format_into: Callable[..., Any] = Intrinsic("format_into")
# trap(): ends the program with SIGILL or SIGTRAP.
trap: Callable[..., Any] = Intrinsic("trap")
