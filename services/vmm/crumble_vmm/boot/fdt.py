"""Flattened device tree writer (Devicetree Specification v0.4, chapter 5).

    root = Node("")
    root.set("#address-cells", 2).set("model", "crumble,virt")
    memory = root.add("memory@80000000").set("reg", cells(0x80000000, size))
    blob = flatten(root)

Properties keep the order they were set in, so the same machine gives the same bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator

from crumble_common.errors import InternalError

_MAGIC = 0xD00DFEED
_VERSION, _COMPATIBLE = 17, 16
_HEADER = struct.Struct(">10I")
_BEGIN, _END, _PROP, _FINISH = (struct.pack(">I", token) for token in (1, 2, 3, 9))
# §2.2.1: node names; the root's is empty. §2.2.4.1: property names.
_NODE_NAME = re.compile(r"[0-9a-zA-Z,._+-]{1,31}(@[0-9a-zA-Z,._+-]+)?\Z")
_PROPERTY_NAME = re.compile(r"[0-9a-zA-Z,._+?#-]{1,31}\Z")

Value = int | str | bytes | list[str] | None


def cells(*numbers: int) -> bytes:
    """Numbers as pairs of cells: <#address-cells 2> and <#size-cells 2>."""
    return struct.pack(f">{len(numbers)}Q", *numbers)


def words(*numbers: int) -> bytes:
    """Numbers as one cell each."""
    return struct.pack(f">{len(numbers)}I", *numbers)


class Node:
    """A node under construction."""

    def __init__(self, name: str) -> None:
        if name and not _NODE_NAME.match(name):
            raise InternalError(f"{name!r} is no device tree node name.", code="vmm.fdt")
        self.name = name
        self.properties: dict[str, bytes] = {}
        self.children: list[Node] = []

    def set(self, name: str, value: Value = None) -> Node:
        """Sets a property: int is one cell, None is empty, lists are string lists."""
        if not _PROPERTY_NAME.match(name):
            raise InternalError(f"{name!r} is no device tree property name.", code="vmm.fdt")
        self.properties[name] = _encode(value)
        return self

    def add(self, name: str) -> Node:
        """A new child."""
        if any(child.name == name for child in self.children):
            raise InternalError(f"Two device tree nodes are called {name}.", code="vmm.fdt")
        child = Node(name)
        self.children.append(child)
        return child


def _encode(value: Value) -> bytes:
    if value is None:
        return b""
    if isinstance(value, int):
        return struct.pack(">I", value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return b"".join(_text(item) for item in value)
    return value


def _text(value: str) -> bytes:
    if "\0" in value:
        raise InternalError("A device tree string holds a NUL.", code="vmm.fdt")
    return value.encode() + b"\0"


class _Strings:
    """The strings block: each property name once."""

    def __init__(self) -> None:
        self.block = bytearray()
        self._offsets: dict[str, int] = {}

    def offset(self, name: str) -> int:
        if name not in self._offsets:
            self._offsets[name] = len(self.block)
            self.block += name.encode() + b"\0"
        return self._offsets[name]


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _structure(node: Node, strings: _Strings) -> Iterator[bytes]:
    yield _BEGIN + _aligned(node.name.encode() + b"\0")
    for name, value in node.properties.items():
        yield _PROP + words(len(value), strings.offset(name)) + _aligned(value)
    for child in node.children:
        yield from _structure(child, strings)
    yield _END


def flatten(root: Node, reserved: Iterable[tuple[int, int]] = (), boot_cpu: int = 0) -> bytes:
    """The blob of a tree. reserved: (address, size) ranges the guest must not use."""
    strings = _Strings()
    structure = b"".join(_structure(root, strings)) + _FINISH
    reservations = b"".join(cells(*pair) for pair in (*reserved, (0, 0)))
    at_reservations = _HEADER.size
    at_structure = at_reservations + len(reservations)
    at_strings = at_structure + len(structure)
    total = at_strings + len(strings.block)
    header = _HEADER.pack(
        _MAGIC,
        total,
        at_structure,
        at_strings,
        at_reservations,
        _VERSION,
        _COMPATIBLE,
        boot_cpu,
        len(strings.block),
        len(structure),
    )
    return header + reservations + structure + bytes(strings.block)
