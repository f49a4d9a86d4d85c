"""Links machine code and data into a static ELF executable (System V gABI, chapters 4 and 5).

Three loaded segments: R-X with the headers and .text, R with .rodata, RW with .data and .bss. Each
begins on a page of its own in memory and follows the last without padding in the file. The symbol table
names every function and global, for debuggers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from crumble_ir import ir
from crumble_ir.backend import Backend, Code
from crumble_ir.errors import IrError

PAGE = 4096
_EHDR, _PHDR, _SHDR, _SYM = 64, 56, 64, 24
_PT_LOAD, _PT_GNU_STACK = 1, 0x6474E551
_X, _W, _R = 1, 2, 4
_SHT_PROGBITS, _SHT_SYMTAB, _SHT_STRTAB, _SHT_NOBITS = 1, 2, 3, 8
_SHF_WRITE, _SHF_ALLOC, _SHF_EXEC = 1, 2, 4
_TEXT_ALIGN = 16


@dataclass
class Section:
    """Bytes (or, for .bss, only a size) at an address, and the symbols in it."""

    name: str
    flags: int
    data: bytearray = field(default_factory=bytearray)
    size: int = 0
    address: int = 0
    offset: int = 0
    symbols: dict[str, tuple[int, int]] = field(default_factory=dict)

    def place(self, name: str, contents: bytes | bytearray | None, size: int, align: int) -> None:
        """Adds a symbol at the section's end."""
        at = -(-self.size // align) * align
        if contents is not None:
            self.data += bytes(at - self.size) + contents
        self.symbols[name] = (at, size)
        self.size = at + size


def link(codes: Sequence[Code], data: Iterable[ir.Data], backend: type[Backend]) -> bytes:
    """The executable; codes[0] is the entry point. Raises IrError for what cannot be placed."""
    text = Section(".text", _SHF_ALLOC | _SHF_EXEC)
    rodata = Section(".rodata", _SHF_ALLOC)
    writable = Section(".data", _SHF_ALLOC | _SHF_WRITE)
    bss = Section(".bss", _SHF_ALLOC | _SHF_WRITE)
    for code in codes:
        text.place(code.name, code.data, len(code.data), _TEXT_ALIGN)
    # Never an empty file part in the writable segment: some loaders mishandle one.
    writable.place("crumble.data", bytes(8), 8, 8)
    for item in data:
        into = rodata if item.constant else writable if item.contents is not None else bss
        into.place(item.name, item.contents, item.size, item.align)
    sections = [text, rodata, writable, bss]
    _assign_addresses(sections, backend.base)
    _apply_fixups(codes, sections, backend)
    return _write(sections, backend)


def _assign_addresses(sections: list[Section], base: int) -> None:
    text, rodata, writable, bss = sections
    offset, address = _EHDR + 4 * _PHDR, base
    for section in (text, rodata, writable):
        offset = -(-offset // _TEXT_ALIGN) * _TEXT_ALIGN
        section.offset = offset
        section.address = address + offset % PAGE
        offset += section.size
        address = -(-(section.address + section.size) // PAGE) * PAGE
    bss.address = -(-(writable.address + writable.size) // 16) * 16
    bss.offset = writable.offset + writable.size


def _apply_fixups(codes: Sequence[Code], sections: list[Section], backend: type[Backend]) -> None:
    addresses = {
        name: section.address + at
        for section in sections
        for name, (at, _) in section.symbols.items()
    }
    text = sections[0]
    for code in codes:
        start = text.symbols[code.name][0]
        for fixup in code.fixups:
            at = start + fixup.offset
            distance = addresses[fixup.symbol] + fixup.addend - (text.address + at)
            if not backend.reaches(fixup.kind, distance):
                raise IrError(f"{fixup.symbol} is out of reach of {code.name}")
            backend.patch(text.data, at, fixup.kind, distance)


def _write(sections: list[Section], backend: type[Backend]) -> bytes:
    text, rodata, writable, bss = sections
    headers = b"".join(
        (
            _program_header(_X | _R, text, text.size, start=0),
            _program_header(_R, rodata, rodata.size),
            _program_header(_R | _W, writable, bss.address + bss.size - writable.address),
            struct.pack("<IIQQQQQQ", _PT_GNU_STACK, _R | _W, 0, 0, 0, 0, 0, 16),
        )
    )
    image = bytearray(_EHDR) + headers
    for section in (text, rodata, writable):
        image += bytes(section.offset - len(image)) + section.data
    tables = _tables(sections)
    offsets = []
    for _, _, contents, _ in tables:
        image += bytes(-len(image) % 8)
        offsets.append(len(image))
        image += contents
    image += bytes(-len(image) % 8)
    table_offset = len(image)
    image += _section_headers(sections, tables, offsets)
    image[:_EHDR] = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01" + bytes(9),
        2,
        backend.machine,
        1,
        text.address,
        _EHDR,
        table_offset,
        backend.elf_flags,
        _EHDR,
        _PHDR,
        4,
        _SHDR,
        1 + len(sections) + len(tables),
        len(sections) + len(tables),
    )
    return bytes(image)


def _program_header(flags: int, section: Section, memory: int, start: int | None = None) -> bytes:
    """PT_LOAD of a section; with `start` from that file offset on."""
    begin = section.offset if start is None else start
    before = section.offset - begin
    address = section.address - before
    return struct.pack(
        "<IIQQQQQQ", _PT_LOAD, flags, begin, address, address,
        len(section.data) + before, memory + before, PAGE,
    )  # fmt: skip


def _tables(sections: list[Section]) -> list[tuple[str, int, bytes, int]]:
    """(.name, type, contents, entry size) of the tables that are not loaded."""
    strings, symbols = bytearray(b"\0"), bytearray(_SYM)
    for index, section in enumerate(sections):
        kind = 2 if section.flags & _SHF_EXEC else 1
        for name, (at, size) in section.symbols.items():
            symbols += struct.pack(
                "<IBBHQQ", len(strings), 1 << 4 | kind, 0, index + 1, section.address + at, size
            )
            strings += name.encode() + b"\0"
    names = b"\0" + b"".join(
        name.encode() + b"\0"
        for name in [*(section.name for section in sections), ".symtab", ".strtab", ".shstrtab"]
    )
    return [
        (".symtab", _SHT_SYMTAB, bytes(symbols), _SYM),
        (".strtab", _SHT_STRTAB, bytes(strings), 0),
        (".shstrtab", _SHT_STRTAB, names, 0),
    ]


def _section_headers(
    sections: list[Section], tables: list[tuple[str, int, bytes, int]], offsets: list[int]
) -> bytes:
    names = tables[-1][2]
    out = bytearray(_SHDR)

    def add(name: str, kind: int, *rest: int) -> None:
        at = names.index(b"\0" + name.encode() + b"\0") + 1
        out.extend(struct.pack("<IIQQQQIIQQ", at, kind, *rest))

    for section in sections:
        kind = _SHT_NOBITS if section.name == ".bss" else _SHT_PROGBITS
        add(
            section.name,
            kind,
            section.flags,
            section.address,
            section.offset,
            section.size,
            0,
            0,
            16,
            0,
        )
    strtab = len(sections) + 2
    for (name, kind, contents, entry), offset in zip(tables, offsets, strict=True):
        # sh_info of a symbol table: the index of its first symbol that is not local.
        is_symbols = kind == _SHT_SYMTAB
        add(
            name,
            kind,
            0,
            0,
            offset,
            len(contents),
            strtab if is_symbols else 0,
            int(is_symbols),
            8,
            entry,
        )
    return bytes(out)
