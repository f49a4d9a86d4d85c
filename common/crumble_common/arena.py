"""Arenas: what a service must not lose when it dies, in shared memory that the supervisor holds.

An arena is one shared-memory object: a page of header with a table of named sections, then the sections.
A service takes its sections by name; its successor, given the same fd, takes the same ones and finds what
was in them. The header is validated on attach; what is in a section is its owner's to validate.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct

from crumble_common import shared_memory
from crumble_common.errors import InternalError

_HEADER = struct.Struct("<8sII16sQQ")  # magic, version, sections, kind, size, used
_COUNT = struct.Struct("<I")
_COUNT_AT = 12
_USED = struct.Struct("<Q")
_USED_AT = 40
_SECTION = struct.Struct("<16sQQ")  # name, offset, size
_MAGIC = b"CRBARENA"
_START = 4096
_SECTIONS_AT = 64
MAX_SECTIONS = (_START - _SECTIONS_AT) // _SECTION.size
_ALIGNMENT = 64


class Arena:
    """One arena of `kind` (its format's name, ≤ 16 bytes) and `version` of that format.

    fd: for the supervisor to hold and for `attach`. One process at a time changes the table.
    """

    def __init__(self, fd: int, kind: str, version: int) -> None:
        self.fd = fd
        self.kind = kind
        self.version = version
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)

    @classmethod
    def create(cls, kind: str, version: int, size: int) -> Arena:
        """A zeroed arena with room for `size` bytes of sections; raises HostError when there is no room."""
        name = _encode(kind)
        length = _START + -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        fd = shared_memory.create(length, f"arena-{kind}")
        os.pwrite(fd, _HEADER.pack(_MAGIC, version, 0, name, length, _START), 0)
        return cls(fd, kind, version)

    @classmethod
    def attach(cls, fd: int, kind: str, version: int) -> Arena:
        """The arena behind `fd`, which is taken over; InternalError when it is another or damaged."""
        _check(fd, kind, version)
        return cls(fd, kind, version)

    def section(self, name: str, size: int) -> memoryview:
        """The section `name`, made (zeroed) when it is not there yet.

        Raises InternalError when it is there with another size, or does not fit.
        """
        wanted = _encode(name)
        for number in range(self._count()):
            found, offset, length = _SECTION.unpack_from(self._map, _entry(number))
            if found == wanted:
                if length != size:
                    raise _damaged(f"its section {name} has {length} bytes instead of {size}")
                return memoryview(self._map)[offset : offset + length]
        return self._add(wanted, size)

    def release(self, name: str, offset: int, size: int) -> None:
        """Gives the whole pages in these bytes of a section back; they read as zeros then.

        A hint: some kernels, and kinds of memory, cannot.
        """
        wanted = _encode(name)
        for number in range(self._count()):
            found, start, length = _SECTION.unpack_from(self._map, _entry(number))
            if found == wanted and offset >= 0 and offset + size <= length:
                first = -(-(start + offset) // mmap.PAGESIZE) * mmap.PAGESIZE
                pages = (start + offset + size - first) // mmap.PAGESIZE
                if pages > 0:
                    with contextlib.suppress(OSError):
                        self._map.madvise(mmap.MADV_REMOVE, first, pages * mmap.PAGESIZE)
                return
        raise ValueError(f"there is no such part of a section {name}")

    def _add(self, name: bytes, size: int) -> memoryview:
        """Entry first, then the end of use, then the count: dying in between loses nothing but room."""
        number = self._count()
        (offset,) = _USED.unpack_from(self._map, _USED_AT)
        end = -(-(offset + size) // _ALIGNMENT) * _ALIGNMENT
        if size <= 0 or end > len(self._map) or number == MAX_SECTIONS:
            raise _damaged(f"it has no room for {size} bytes more")
        _SECTION.pack_into(self._map, _entry(number), name, offset, size)
        _USED.pack_into(self._map, _USED_AT, end)
        _COUNT.pack_into(self._map, _COUNT_AT, number + 1)
        return memoryview(self._map)[offset : offset + size]

    def _count(self) -> int:
        count: int = _COUNT.unpack_from(self._map, _COUNT_AT)[0]
        return count

    def close(self) -> None:
        """Closes the fd; sections stay mapped while they are used."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _entry(number: int) -> int:
    return _SECTIONS_AT + number * _SECTION.size


def _encode(name: str) -> bytes:
    encoded = name.encode()
    if not 0 < len(encoded) <= 16:
        raise ValueError(f"{name!r} is no arena or section name: it has 1 to 16 bytes")
    return encoded.ljust(16, b"\0")


def _damaged(why: str) -> InternalError:
    return InternalError(f"An arena cannot be used: {why}.", code="arena.damaged")


def _check(fd: int, kind: str, version: int) -> None:
    length = os.fstat(fd).st_size
    page = os.pread(fd, _START, 0)
    if len(page) < _START:
        raise _damaged("it is too short")
    magic, its_version, count, its_kind, size, used = _HEADER.unpack_from(page)
    if magic != _MAGIC or its_kind != _encode(kind):
        raise _damaged(f"it is not a {kind} arena")
    if its_version != version:
        raise _damaged(f"it has version {its_version} instead of {version}")
    if size != length or not _START <= used <= length or count > MAX_SECTIONS:
        raise _damaged("its header is wrong")
    end = _START
    for number in range(count):
        _, offset, room = _SECTION.unpack_from(page, _entry(number))
        if offset < end or room == 0 or offset + room > used:
            raise _damaged("its table of sections is wrong")
        end = offset + room
