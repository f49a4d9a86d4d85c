"""The binary trace log: what a process did and when, cheap enough to stay on.

A trace is a ring of 32-byte records in a file or in shared memory that another process can read at
any time, also after the writer was killed. Layout, little-endian:

    header   64 bytes   magic, u32 version, u32 names used, u64 capacity, u64 records written
    names    256 × 64   u8 length, UTF-8
    records  capacity × {u64 time ns (CLOCK_MONOTONIC), u16 name, u16 kind, u32 thread, u64 a, u64 b}

`python -m crumble_common.trace FILE` prints one as text.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from crumble_common.errors import UsageError

MARK, BEGIN, END = 0, 1, 2
_MAGIC = b"CRBTRACE"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQQ")
_RECORD = struct.Struct("<QHHIQQ")
_COUNT = struct.Struct("<Q")
_HEADER_SIZE, _NAME_SIZE, _MAX_NAMES = 64, 64, 256
_NAMES_AT, _COUNT_AT, _USED_AT = _HEADER_SIZE, 24, 12
_RECORDS_AT = _HEADER_SIZE + _NAME_SIZE * _MAX_NAMES
_U64 = (1 << 64) - 1
# A trace bigger than this is a mistake or a damaged header.
_MAX_CAPACITY = 1 << 24


@dataclass(frozen=True)
class Record:
    """One record: kind is MARK, BEGIN or END; time in ns of CLOCK_MONOTONIC."""

    time: int
    name: str
    kind: int
    thread: int
    a: int
    b: int


@dataclass(frozen=True)
class Span:
    """A BEGIN and its END, in ns."""

    name: str
    start: int
    end: int


class Trace:
    """The writing side. Records may be written from any thread of the process that made it."""

    KINDS: ClassVar[dict[int, str]] = {MARK: "mark", BEGIN: "begin", END: "end"}

    def __init__(self, capacity: int = 4096, path: str = "") -> None:
        """A ring of `capacity` records in a new file at `path`, or in memory of its own."""
        if not 0 < capacity <= _MAX_CAPACITY:
            raise UsageError(f"A trace holds 1 to {_MAX_CAPACITY} records, not {capacity}.")
        size = _RECORDS_AT + capacity * _RECORD.size
        self._map = _map_new(path, size) if path else mmap.mmap(-1, size)
        self._capacity = capacity
        self._names: dict[str, int] = {}
        self._lock = threading.Lock()
        self._next = itertools.count()
        self._map[: _HEADER.size] = _HEADER.pack(_MAGIC, _VERSION, 0, capacity, 0)

    def mark(self, name: str, a: int = 0, b: int = 0) -> None:
        """Something happened, now."""
        self.write(name, MARK, time.monotonic_ns(), a, b)

    def write(self, name: str, kind: int, at: int, a: int = 0, b: int = 0) -> None:
        """One record at time `at` (ns): also for what was measured elsewhere."""
        number = self._names.get(name)
        if number is None:
            number = self._name(name)
        slot = next(self._next)
        where = _RECORDS_AT + slot % self._capacity * _RECORD.size
        thread = threading.get_native_id()
        _RECORD.pack_into(self._map, where, at, number, kind, thread, a & _U64, b & _U64)
        _COUNT.pack_into(self._map, _COUNT_AT, slot + 1)

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Brackets what is done inside."""
        self.write(name, BEGIN, time.monotonic_ns())
        try:
            yield
        finally:
            self.write(name, END, time.monotonic_ns())

    def records(self) -> list[Record]:
        """What is in the ring, oldest first."""
        return parse(self._map)

    def _name(self, name: str) -> int:
        with self._lock:
            if name in self._names:
                return self._names[name]
            # The last place is shared by all names that come when the table is full.
            number = min(len(self._names), _MAX_NAMES - 1)
            text = name.encode()[: _NAME_SIZE - 1] if number < _MAX_NAMES - 1 else b"(other)"
            at = _NAMES_AT + number * _NAME_SIZE
            self._map[at : at + 1 + len(text)] = bytes([len(text)]) + text
            self._names[name] = number
            struct.pack_into("<I", self._map, _USED_AT, number + 1)
            return number


def _map_new(path: str, size: int) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size)
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)


def parse(data: bytes | mmap.mmap) -> list[Record]:
    """The records of a trace, oldest first; raises UsageError when it isn't one."""
    if len(data) < _RECORDS_AT:
        raise UsageError("This is not a trace: it is too short.", code="trace.bad")
    magic, version, used, capacity, count = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise UsageError("This is not a trace of this version.", code="trace.bad")
    if used > _MAX_NAMES or not 0 < capacity <= _MAX_CAPACITY:
        raise UsageError("This trace is damaged: its header makes no sense.", code="trace.bad")
    if len(data) < _RECORDS_AT + capacity * _RECORD.size:
        raise UsageError("This trace is damaged: it is cut off.", code="trace.bad")
    names = [_read_name(data, number) for number in range(used)]
    found = []
    for slot in range(max(0, count - capacity), count):
        at = _RECORDS_AT + slot % capacity * _RECORD.size
        when, number, kind, thread, a, b = _RECORD.unpack_from(data, at)
        if number < len(names) and kind in Trace.KINDS:
            found.append(Record(when, names[number], kind, thread, a, b))
    return found


def _read_name(data: bytes | mmap.mmap, number: int) -> str:
    at = _NAMES_AT + number * _NAME_SIZE
    length = min(data[at], _NAME_SIZE - 1)
    return bytes(data[at + 1 : at + 1 + length]).decode(errors="replace")


def spans(records: list[Record]) -> list[Span]:
    """Every BEGIN with the END that closes it (same name and thread), in order of start."""
    opened: dict[tuple[str, int], list[int]] = {}
    found = []
    for record in records:
        key = (record.name, record.thread)
        if record.kind == BEGIN:
            opened.setdefault(key, []).append(record.time)
        elif record.kind == END and opened.get(key):
            found.append(Span(record.name, opened[key].pop(), record.time))
    return sorted(found, key=lambda span: span.start)


def main(arguments: list[str]) -> int:
    """Prints the trace at arguments[0]: ms since its first record, thread, kind, name, a, b."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m crumble_common.trace FILE\n")
        return 2
    try:
        with open(arguments[0], "rb") as file:
            records = parse(file.read())
    except (OSError, UsageError) as error:
        sys.stderr.write(f"trace: {error}\n")
        return 1
    first = records[0].time if records else 0
    for record in records:
        kind = Trace.KINDS[record.kind]
        when = (record.time - first) / 1e6
        sys.stdout.write(
            f"{when:12.3f}  {record.thread:7}  {kind:5}  {record.name}  {record.a} {record.b}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
