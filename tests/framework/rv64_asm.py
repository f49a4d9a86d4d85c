"""An assembler for rv64gc, Zba, Zbb, Zbs, Zicsr, Zifencei, Zicbom, Zicboz and the S-mode instructions.

`encode("add", 1, 2, 3)` gives the 32-bit word, `encode_c("c.addi", 8, -1)` the halfword, and
`Assembler` strings them together with labels. Operands are numbers in the order in which assembly
language writes them; loads and stores take (register, base, offset). Atomics take (rd, rs1[, rs2]) and
`aqrl=`, floating point `rm=` (7, dynamic, when not given). The tables are in rv64_opcodes.py
and rv64_asm_c.py; tests/unit/native/test_rv64_asm.py checks every row against binutils.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from framework.rv64_asm_c import encode_c
from framework.rv64_opcodes import CSR, FORMS

DYNAMIC = 7


def _signed(value: int, bits: int, align: int = 1) -> int:
    if not -(1 << (bits - 1)) <= value < 1 << (bits - 1) or value % align:
        raise ValueError(f"{value} does not fit {bits} signed bits, a multiple of {align}")
    return value & ((1 << bits) - 1)


def _unsigned(value: int, bits: int) -> int:
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{value} does not fit {bits} bits")
    return value


def _fields(rd: int = 0, rs1: int = 0, rs2: int = 0) -> int:
    return _unsigned(rd, 5) << 7 | _unsigned(rs1, 5) << 15 | _unsigned(rs2, 5) << 20


def _i(rd: int, rs1: int, imm: int) -> int:
    return _fields(rd, rs1) | _signed(imm, 12) << 20


def _s(rs2: int, rs1: int, imm: int) -> int:
    imm = _signed(imm, 12)
    return _fields(0, rs1, rs2) | (imm & 31) << 7 | imm >> 5 << 25


def _b(rs1: int, rs2: int, offset: int) -> int:
    imm = _signed(offset, 13, 2)
    return (
        _fields(0, rs1, rs2)
        | (imm >> 12) << 31
        | (imm >> 5 & 63) << 25
        | (imm >> 1 & 15) << 8
        | (imm >> 11 & 1) << 7
    )


def _j(rd: int, offset: int) -> int:
    imm = _signed(offset, 21, 2)
    return (
        _fields(rd)
        | (imm >> 20) << 31
        | (imm >> 1 & 0x3FF) << 21
        | (imm >> 11 & 1) << 20
        | (imm >> 12 & 0xFF) << 12
    )


def _csr(rd: int, csr: int | str, source: int) -> int:
    number = CSR[csr] if isinstance(csr, str) else csr
    return _fields(rd, source) | _unsigned(number, 12) << 20


_FORMATS: dict[str, Callable[..., int]] = {
    "r": _fields,
    "unary": lambda rd, rs1: _fields(rd, rs1),
    "i": _i,
    "load": _i,
    "store": _s,
    "shift": lambda rd, rs1, amount: _fields(rd, rs1) | _unsigned(amount, 6) << 20,
    "branch": _b,
    "u": lambda rd, imm20: _fields(rd) | _unsigned(imm20, 20) << 12,
    "j": _j,
    "lr": lambda rd, rs1, aqrl=0: _fields(rd, rs1) | aqrl << 25,
    "amo": lambda rd, rs1, rs2, aqrl=0: _fields(rd, rs1, rs2) | aqrl << 25,
    "fp2": lambda rd, rs1, rs2, rm=DYNAMIC: _fields(rd, rs1, rs2) | rm << 12,
    "fp1": lambda rd, rs1, rm=DYNAMIC: _fields(rd, rs1) | rm << 12,
    "fma": lambda rd, rs1, rs2, rs3, rm=DYNAMIC: _fields(rd, rs1, rs2) | rs3 << 27 | rm << 12,
    "csr": _csr,
    "fixed": lambda: 0,
    "cache": lambda rs1: _fields(0, rs1),
    "vma": lambda rs1, rs2: _fields(0, rs1, rs2),
    "fence": lambda predecessor=15, successor=15: predecessor << 24 | successor << 20,
}


def encode(name: str, *operands: int | str, **options: int) -> int:
    """The 32-bit word. ValueError when an operand does not fit, KeyError for an unknown name."""
    form = FORMS[name]
    return form.match | _FORMATS[form.kind](*operands, **options)


class Assembler:
    """Code at `base`: emit, label, branch to labels; `code()` resolves and gives the bytes."""

    def __init__(self, base: int = 0) -> None:
        self.base = base
        self._parts: list[bytes] = []
        self._size = 0
        self._labels: dict[str, int] = {}
        self._fixups: list[tuple[int, str, tuple[int, ...], str]] = []

    @property
    def here(self) -> int:
        """The address of what is emitted next."""
        return self.base + self._size

    def emit(self, name: str, *operands: int | str, **options: int) -> None:
        """One instruction, compressed when its name says so."""
        if name.startswith("c."):
            self.raw(struct.pack("<H", encode_c(name, *[int(value) for value in operands])))
        else:
            self.raw(struct.pack("<I", encode(name, *operands, **options)))

    def raw(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)

    def align(self, boundary: int) -> None:
        self.raw(bytes(-self.here % boundary))

    def label(self, name: str) -> None:
        self._labels[name] = self.here

    def address(self, name: str) -> int:
        return self._labels[name]

    def to(self, name: str, *registers: int, label: str) -> None:
        """A branch or jump to a label, defined before or after; `la` gives auipc + addi."""
        self._fixups.append((len(self._parts), name, registers, label))
        self.raw(bytes(8 if name == "la" else 2 if name.startswith("c.") else 4))

    def li(self, rd: int, value: int) -> None:
        """Any 64-bit constant."""
        value &= (1 << 64) - 1
        signed = value - (1 << 64) if value >> 63 else value
        low = (signed & 0xFFF) - (0x1000 if signed & 0x800 else 0)
        if -(1 << 31) <= signed < (1 << 31) - 0x800:
            if signed == low:
                self.emit("addi", rd, 0, low)
                return
            self.emit("lui", rd, (signed - low) >> 12 & 0xFFFFF)
            self.emit("addiw", rd, rd, low)
            return
        self.li(rd, (signed - low) >> 12)
        self.emit("slli", rd, rd, 12)
        self.emit("addi", rd, rd, low)

    def code(self) -> bytes:
        """Everything so far. KeyError when a label was never defined."""
        parts = list(self._parts)
        address = self.base
        starts = [address := address + len(part) for part in [b"", *parts]]
        for index, name, registers, label in self._fixups:
            parts[index] = _resolved(name, registers, self._labels[label] - starts[index])
        return b"".join(parts)


def _resolved(name: str, registers: tuple[int, ...], offset: int) -> bytes:
    if name.startswith("c."):
        return struct.pack("<H", encode_c(name, *registers, offset))
    if name != "la":
        return struct.pack("<I", encode(name, *registers, offset))
    low = (offset & 0xFFF) - (0x1000 if offset & 0x800 else 0)
    upper = encode("auipc", registers[0], (offset - low) >> 12 & 0xFFFFF)
    return struct.pack("<II", upper, encode("addi", *registers, *registers, low))
