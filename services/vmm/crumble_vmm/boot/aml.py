"""AML, as far as a list of devices needs it (ACPI 6.5, chapter 20) and their resources (§6.4)."""

from __future__ import annotations

import struct

from crumble_common.errors import InternalError

_ZERO, _ONE, _NAME, _STRING = b"\x00", b"\x01", b"\x08", b"\x0d"
_SCOPE, _BUFFER, _PACKAGE, _DEVICE = b"\x10", b"\x11", b"\x12", b"\x5b\x82"


def package_length(size: int) -> bytes:
    """§20.2.4: the length of `size` bytes that follow, and of itself."""
    if size + 1 < 1 << 6:
        return bytes((size + 1,))
    for extra in (1, 2, 3):
        total = size + 1 + extra
        if total < 1 << 4 + 8 * extra:
            return bytes((extra << 6 | total & 0xF,)) + (total >> 4).to_bytes(extra, "little")
    raise InternalError(f"{size} bytes are too many for AML.", code="vmm.acpi")


def name_string(path: str) -> bytes:
    r"""§20.2.2: "\_SB", or up to four letters; each segment filled up with "_"."""
    root, segment = ("\\", path[1:]) if path.startswith("\\") else ("", path)
    if not 1 <= len(segment) <= 4 or not segment.replace("_", "A").isalnum():
        raise InternalError(f"{path!r} is no AML name.", code="vmm.acpi")
    return (root + segment.ljust(4, "_")).encode()


def integer(value: int) -> bytes:
    """§20.2.3, in the shortest form."""
    if value < 2:
        return _ONE if value else _ZERO
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * size:
            return bytes((prefix,)) + value.to_bytes(size, "little")
    raise InternalError(f"{value:#x} is too large for AML.", code="vmm.acpi")


def string(text: str) -> bytes:
    """An ASCII string."""
    return _STRING + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """ "PNP0501" as the number it stands for (§19.3.4)."""
    letters = [ord(letter) - 0x40 for letter in text[:3]]
    vendor = letters[0] << 10 | letters[1] << 5 | letters[2]
    return b"\x0c" + struct.pack(">HH", vendor, int(text[3:], 16))


def name(path: str, value: bytes) -> bytes:
    """Name (path, value)."""
    return _NAME + name_string(path) + value


def package(*values: bytes) -> bytes:
    """Package () { values }."""
    body = bytes((len(values),)) + b"".join(values)
    return _PACKAGE + package_length(len(body)) + body


def scope(path: str, *terms: bytes) -> bytes:
    """Scope (path) { terms }."""
    return _block(_SCOPE, path, terms)


def device(path: str, *terms: bytes) -> bytes:
    """Device (path) { terms }."""
    return _block(_DEVICE, path, terms)


def _block(opcode: bytes, path: str, terms: tuple[bytes, ...]) -> bytes:
    body = name_string(path) + b"".join(terms)
    return opcode + package_length(len(body)) + body


def resources(*items: bytes) -> bytes:
    """ResourceTemplate () { items }."""
    data = b"".join(items) + b"\x79\x00"
    body = integer(len(data)) + data
    return _BUFFER + package_length(len(body)) + body


def io_ports(base: int, size: int) -> bytes:
    """§6.4.2.5: fixed ports, all 16 address bits decoded."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, 1, size)


def memory(base: int, size: int) -> bytes:
    """§6.4.3.4: a fixed 32-bit range, read and write."""
    return struct.pack("<BHBII", 0x86, 9, 1, base, size)


def interrupt(number: int, *, edge: bool) -> bytes:
    """§6.4.3.6: consumer, active high, exclusive."""
    return struct.pack("<BHBBI", 0x89, 6, 1 | (2 if edge else 0), 1, number)


def bus_numbers(first: int, last: int) -> bytes:
    """§6.4.3.5.3: a bridge's buses, fixed, as words."""
    return struct.pack("<BHBBB5H", 0x88, 13, 2, 0x0C, 0, 0, first, last, 0, last - first + 1)


def window(base: int, size: int) -> bytes:
    """§6.4.3.5.2: memory that a bridge passes on, fixed, read and write, as double words."""
    return struct.pack("<BHBBB5I", 0x87, 23, 0, 0x0C, 1, 0, base, base + size - 1, 0, size)
