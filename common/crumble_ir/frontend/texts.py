"""print() and format_into(): f-strings become calls of the runtime's put functions."""

from __future__ import annotations

import ast
import re

from crumble_ir import types
from crumble_ir.frontend.constants import Unknown
from crumble_ir.frontend.lowering import Lowering, Value
from crumble_ir.ir import Imm, Ins, Operand
from crumble_ir.runtime import text
from crumble_ir.types import BoolType, IntType, LiteralType, PointerType

# Bytes as they are, or a value, its format and where it was written.
Piece = bytes | tuple[Value, str, ast.AST]

_SPEC = re.compile(r"(0?)([1-9][0-9]?)?([dxsc]?)")


class Texts(Lowering):
    """Formatted output."""

    def print_text(self, node: ast.Call) -> Value:
        """print(TEXT) or print(TEXT, file=fd): one line to a file descriptor, 1 by default."""
        if len(node.args) != 1 or any(keyword.arg != "file" for keyword in node.keywords):
            raise self.error(node, "print takes one text, and file=FD.")
        pieces = self._pieces(node.args[0])
        fd: Operand = Imm(1)
        if node.keywords:
            fd = self.fit(self.value(node.keywords[0].value), types.I32, node).operand
        self._runtime(text.begin)
        self._put(pieces)
        self._runtime(text.write_line, fd)
        return Value(types.VOID, Imm(0))

    def format_text(self, node: ast.Call) -> Value:
        """format_into(buffer, TEXT): the text and a NUL, cut to fit; gives its length."""
        if len(node.args) != 2:
            raise self.error(node, "format_into takes a buffer and a text.")
        pieces = self._pieces(node.args[1])
        place = self.place(node.args[0])
        if not isinstance(place.type, types.ArrayType) or place.type.element != types.U8:
            raise self.error(node, "format_into needs an array[u8, N].")
        self._runtime(text.into, self.address(place), Imm(place.type.size))
        self._put(pieces)
        return self._runtime(text.finish)

    def _runtime(self, function: object, *arguments: Operand) -> Value:
        symbol, result = self.program.runtime(function)
        if result == types.VOID:
            self.emit(Ins("call", symbol=symbol, args=arguments))
            return Value(types.VOID, Imm(0))
        return Value(result, self.result("call", result, symbol=symbol, args=arguments))

    def _pieces(self, node: ast.expr) -> list[Piece]:
        """The parts of a text, its expressions evaluated and its constants written out."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            value = node.value
            return [value.encode() if isinstance(value, str) else value]
        if not isinstance(node, ast.JoinedStr):
            raise self.error(node, "the text must be a string or an f-string.")
        pieces: list[Piece] = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                pieces.append(self._piece(part, self._spec(part)))
            else:
                assert isinstance(part, ast.Constant)
                pieces.append(str(part.value).encode())
        return pieces

    def _piece(self, part: ast.FormattedValue, spec: str) -> Piece:
        try:
            known = self.constants.value(part.value)
        except Unknown:
            return (self.typed(self.value(part.value)), spec, part)
        if isinstance(known, str | bytes) and spec in ("", "s"):
            return known.encode() if isinstance(known, str) else known
        return (self.typed(self.value(part.value)), spec, part)

    def _spec(self, part: ast.FormattedValue) -> str:
        if part.conversion != -1:
            raise self.error(part, "!r, !s and !a are not in the dialect.")
        if part.format_spec is None:
            return ""
        assert isinstance(part.format_spec, ast.JoinedStr)
        items = part.format_spec.values
        if len(items) != 1 or not isinstance(items[0], ast.Constant):
            raise self.error(part, "a format must be constant.")
        return str(items[0].value)

    def _put(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, bytes):
                self._runtime(text.put, self.reg(self.string(piece)), Imm(len(piece)))
            else:
                self._put_value(*piece)

    def _put_value(self, value: Value, spec: str, node: ast.AST) -> None:
        matched = _SPEC.fullmatch(spec)
        if matched is None:
            raise self.error(node, f"the format {spec!r} is not in the dialect.")
        zero, width, kind = matched.groups()
        is_string = isinstance(value.type, PointerType) and value.type.target == types.U8
        if kind == "s" and is_string:
            self._runtime(text.put_string, self.reg(value))
        elif kind == "c" and value.type == types.U8:
            self._runtime(text.put_byte, value.operand)
        elif kind in ("", "d", "x") and self._is_number(value, kind):
            signed = isinstance(value.type, IntType) and value.type.signed and kind != "x"
            base = 16 if kind == "x" else 10
            pad = Imm(ord("0") if zero else ord(" "))
            put = text.put_signed if signed else text.put_unsigned
            self._runtime(put, value.operand, Imm(base), Imm(int(width or 1)), pad)
        else:
            raise self.error(
                node, f"{value.type} cannot be written as {{:{spec}}}.",
                "Use :s for a ptr[u8] to NUL-terminated bytes, :x for a pointer.",
            )  # fmt: skip

    def _is_number(self, value: Value, kind: str) -> bool:
        if isinstance(value.type, PointerType):
            return kind == "x"
        return isinstance(value.type, IntType | BoolType | LiteralType)
