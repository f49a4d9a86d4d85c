"""/etc/ld.so.cache: where the dynamic linker finds libraries, as ldconfig would have written it.

Without one the linker asks for each library in each directory, and ctypes.util.find_library finds nothing.
The format is glibc's "1.1" (elf/dl-cache.h): a header, entries in descending order, strings.
"""

from __future__ import annotations

import re
import stat
import struct
from typing import IO, Any

from crumble_ocid.debian.tree import Tree

_PATH = "etc/ld.so.cache"
_HEADER = struct.Struct("<17s3sIIB3xI12x")
_ENTRY = struct.Struct("<iIIIQ")
_LITTLE_ENDIAN = 2
# Flags of a library of each architecture: the ABI's, and "libc6's" (sysdeps/generic/ldconfig.h).
_FLAGS = {"riscv64": 0x1003, "arm64": 0x0A03, "amd64": 0x0303}
_CLASSES = {"riscv64": "EM_RISCV", "arm64": "EM_AARCH64", "amd64": "EM_X86_64"}
# As of trusted directories: the linker's own, after what ld.so.conf.d names.
_TRUSTED = ("/lib", "/usr/lib")
_NAME = re.compile(r"(lib|ld-).*\.so")
_MAX_SONAME = 255


def write_cache(tree: Tree, architecture: str) -> None:
    """Makes the cache of what is in the tree, unless it is there or there is no glibc of an architecture known here."""
    if architecture not in _FLAGS or not tree.exists("etc/ld.so.conf.d") or tree.exists(_PATH):
        return
    found: dict[str, str] = {}
    for directory in _directories(tree):
        for name in _libraries(tree, directory, architecture):
            found.setdefault(name, f"{directory}/{name}")
    if found:
        tree.write(_PATH, pack_cache(found, _FLAGS[architecture]))


def pack_cache(libraries: dict[str, str], flags: int) -> bytes:
    """The file. libraries: name to path."""
    names = sorted(libraries, key=sort_key, reverse=True)
    start = _HEADER.size + _ENTRY.size * len(names)
    entries, strings = bytearray(), bytearray()
    for name in names:
        # A path ends with its name, whose bytes serve as both.
        path = libraries[name].encode() + b"\0"
        at = start + len(strings)
        key = at + len(path) - 1 - len(name.encode())
        entries += _ENTRY.pack(flags, key, at, 0, 0)
        strings += path
    header = _HEADER.pack(b"glibc-ld.so.cache", b"1.1", len(names), len(strings), _LITTLE_ENDIAN, 0)
    return bytes(header + entries + strings)


def sort_key(name: str) -> list[tuple[int, int]]:
    """glibc's _dl_cache_libcmp: numbers count as such, and come behind whatever is none."""
    parts = re.findall(r"\d+|\D", name)
    return [(1, int(part)) if part.isdecimal() else (0, ord(part)) for part in parts]


def _directories(tree: Tree) -> list[str]:
    """In the order of precedence, none twice."""
    lines = [
        line
        for name in tree.names("etc/ld.so.conf.d")
        if name.endswith(".conf")
        for line in tree.lines(f"etc/ld.so.conf.d/{name}")
    ]
    return list(dict.fromkeys(line.rstrip("/") for line in (*lines, *_TRUSTED) if line[0] == "/"))


def _libraries(tree: Tree, directory: str, architecture: str) -> list[str]:
    """The names by which a directory's libraries are asked for, for which there is a file or a link."""
    place = _real(tree, directory)
    read: dict[str, str | None] = {}  # a file is read once, however many links lead to it
    wanted = set()
    for name in tree.names(place):
        if _NAME.match(name):
            path = _behind(tree, place, name)
            if path not in read:
                with tree.stream(path) as file:
                    read[path] = soname(file, architecture)
            if (said := read[path]) is not None:
                wanted.add(said or name)
    return sorted(name for name in wanted if tree.exists(f"{place}/{name}"))


def _behind(tree: Tree, place: str, name: str) -> str:
    """The path of a file, or of what a link to below its own directory leads to."""
    inode = tree.find(f"{place}/{name}")
    if inode is None or not stat.S_ISLNK(inode.mode):
        return f"{place}/{name}"
    return f"{place}/{inode.target.decode('utf-8', 'surrogateescape')}"


def _real(tree: Tree, directory: str) -> str:
    """Merged /usr's links are followed: /lib is usr/lib."""
    first, _, rest = directory[1:].partition("/")
    inode = tree.find(first)
    if inode is not None and stat.S_ISLNK(inode.mode):
        first = inode.target.decode("utf-8", "surrogateescape").strip("/")
    return f"{first}/{rest}".rstrip("/")


def soname(file: IO[bytes], architecture: str) -> str | None:
    """What a shared object says it is called, "" when it says nothing; None for what is none or says nonsense."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile

    try:
        elf = ELFFile(file)
        if elf["e_machine"] != _CLASSES[architecture] or elf["e_type"] != "ET_DYN":
            return None
        for segment in elf.iter_segments("PT_DYNAMIC"):
            assert isinstance(segment, DynamicSegment)
            tag: Any
            for tag in segment.iter_tags("DT_SONAME"):
                said = str(tag.soname)
                usable = said.isascii() and "/" not in said and len(said) <= _MAX_SONAME
                return said if said and usable else None
    except (ELFError, ValueError, OverflowError, UnicodeDecodeError, KeyError, AttributeError):
        return None
    return ""
