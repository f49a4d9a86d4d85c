"""Variables, fields and elements: where values live."""

from __future__ import annotations

import ast

from crumble_ir import dialect, types
from crumble_ir.frontend.constants import Unknown
from crumble_ir.frontend.lowering import Local, Lowering, Place, Value, reference
from crumble_ir.ir import Imm
from crumble_ir.types import ArrayType, IntType, PointerType, StructType, Type


class Places(Lowering):
    """Names, dots and brackets."""

    def place(self, node: ast.expr) -> Place:
        """Where an assignable expression lives; raises CompileError when it is none."""
        if isinstance(node, ast.Name) and node.id in self.locals:
            return self._local(node)
        if isinstance(node, ast.Name | ast.Attribute):
            found = self._static(node)
            if found is not None:
                return found
        if isinstance(node, ast.Attribute):
            return self._field(node)
        if isinstance(node, ast.Subscript):
            return self._element(node)
        raise self.error(node, f"{ast.unparse(node)} is not a variable, field or element.")

    def _local(self, node: ast.Name) -> Place:
        local = self.locals[node.id]
        if self.assigned is not None and node.id not in self.assigned:
            raise self.error(node, f"{node.id} may be used before it is assigned.")
        return self.local_place(local)

    def local_place(self, local: Local) -> Place:
        """Where a local lives."""
        if local.register is not None:
            return Place(local.type, local.register)
        return Place(local.type, None, self.result("slot", types.U64, offset=local.slot))

    def _static(self, node: ast.expr) -> Place | None:
        try:
            found = self.constants.lookup(node)
        except Unknown:
            return None
        if not isinstance(found, dialect.Static):
            return None
        symbol = self.program.static(found, node, self.unit)
        return Place(found.type, None, self.result("symbol", types.U64, symbol=symbol))

    def _is_place(self, node: ast.expr) -> bool:
        """Whether `node` is aggregate storage itself, so that its type is exact."""
        return isinstance(node, ast.Name | ast.Attribute | ast.Subscript)

    def _base(self, node: ast.expr) -> Place:
        """The aggregate `node` is or points to, as a place."""
        if self._is_place(node) and not self._is_constant_name(node):
            place = self.place(node)
            if place.type.aggregate:
                return place
            value = self.load(place)
        else:
            value = self.value(node)
        if isinstance(value.type, PointerType):
            return Place(value.type.target, None, self.reg(value))
        raise self.error(node, f"{ast.unparse(node)} is {value.type}, which has no parts.")

    def _is_constant_name(self, node: ast.expr) -> bool:
        try:
            self.constants.value(node)
        except Unknown:
            return False
        return True

    def _field(self, node: ast.Attribute) -> Place:
        base = self._base(node.value)
        if not isinstance(base.type, StructType):
            raise self.error(node, f"{base.type} has no field {node.attr}.")
        fields = self.fields(base.type, node)
        if node.attr not in fields:
            known = ", ".join(fields)
            raise self.error(node, f"{base.type} has no field {node.attr}.", f"It has {known}.")
        offset, kind = fields[node.attr]
        return Place(kind, None, base.base, base.offset + offset)

    def fields(self, kind: StructType, node: ast.AST) -> dict[str, tuple[int, Type]]:
        """A struct's layout; raises CompileError when it has none."""
        try:
            return kind.fields
        except (TypeError, ValueError, NameError) as problem:
            raise self.error(node, f"struct {kind} cannot be laid out: {problem}.") from None

    def _element(self, node: ast.Subscript) -> Place:
        array: ArrayType | None = None
        base: Place | None = None
        if self._is_place(node.value) and not self._is_constant_name(node.value):
            base = self.place(node.value)
            if isinstance(base.type, ArrayType):
                array = base.type
        pointer = self.load(base) if base is not None else self.value(node.value)
        if isinstance(base.type if base else None, StructType) or not isinstance(
            pointer.type, PointerType
        ):
            raise self.error(node, f"{ast.unparse(node.value)} cannot be indexed.")
        element = pointer.type.target
        if isinstance(node.slice, ast.Slice):
            raise self.error(node, "slices are not in the dialect.", "Use copy() and an index.")
        index = self.value(node.slice)
        if not isinstance(index.type, IntType | types.BoolType | types.LiteralType):
            raise self.error(node, f"an index must be an integer, not {index.type}.")
        if isinstance(index.operand, Imm):
            return self._fixed(node, pointer, element, index, array)
        if array is not None:
            text = f"index out of range of {array.count}"
            self.check("ltu", self.reg(index), Imm(array.count), node, text)
        return Place(element, None, self.scaled(self.reg(pointer), self.reg(index), element.size))

    def _fixed(
        self, node: ast.AST, pointer: Value, element: Type, index: Value, array: ArrayType | None
    ) -> Place:
        assert isinstance(index.operand, Imm)
        number = index.operand.value
        if array is not None and not 0 <= number < array.count:
            raise self.error(node, f"index {number} is out of range of {array}.")
        return Place(element, None, self.reg(pointer), number * element.size)

    def scaled(self, base: int, index: int, size: int) -> int:
        """base + index * size."""
        return self.result("add", types.U64, base, self.times(index, size))

    def times(self, index: int, size: int) -> int:
        """index * size, shifted where that does it."""
        if size == 1:
            return index
        if size & (size - 1) == 0:
            return self.result("shl", types.U64, index, Imm(size.bit_length() - 1))
        return self.result("mul", types.U64, index, Imm(size))

    def address_of(self, node: ast.expr) -> Value:
        """addr(place)."""
        place = self.place(node)
        if place.register is not None:
            raise self.error(node, f"{ast.unparse(node)} has no address.")
        kind = reference(place.type) if place.type.aggregate else PointerType(place.type)
        return Value(kind, self.address(place))
