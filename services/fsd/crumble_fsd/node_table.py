"""The inodes of a captured tree as one block of bytes that is mapped, and looked into one inode at a time.

    header    magic, token, number of records, number of mentions, bytes of the heap
    records   u64 nodeid (ascending) | u64 end of its record in the heap | u64 place of its data
    mentions  u64 nodeid (ascending) | u64 lookups
    heap      records (see node_record.py), one after the other

A record is an inode that differs from its layer, or any directory; a mention is a layer's file that the
guest only knows. Clones of one snapshot share the pages; restoring costs the same for ten inodes and for a
million. The place of data is an offset in the captured layer's contents, NO_DATA when there is none.
token: drawn anew for each capture; the state that goes with the table has it too.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator

_MAGIC = b"CRBNODES"
_HEADER = struct.Struct("<8s16sQQQ")
TOKEN_SIZE = 16
NO_DATA = (1 << 64) - 1
_MAX = (1 << 64) - 1


class NodeTableWriter:
    """Collects records and mentions in any order."""

    def __init__(self) -> None:
        self._records: list[tuple[int, bytes, int]] = []
        self._mentions: list[tuple[int, int]] = []

    def record(self, nodeid: int, record: bytes, data: int = NO_DATA) -> None:
        """An inode. data: where its contents are."""
        self._records.append((nodeid, record, data))

    def mention(self, nodeid: int, lookups: int) -> None:
        """A layer's file, known to the guest `lookups` times."""
        self._mentions.append((nodeid, min(lookups, _MAX)))

    def pack(self, token: bytes) -> bytes:
        """The block."""
        records, mentions = sorted(self._records), sorted(self._mentions)
        ends, end = [], 0
        for _, record, _ in records:
            end += len(record)
            ends.append(end)
        header = _HEADER.pack(_MAGIC, token, len(records), len(mentions), end)
        columns = (
            [nodeid for nodeid, _, _ in records], ends, [data for _, _, data in records],
            [nodeid for nodeid, _ in mentions], [lookups for _, lookups in mentions],
        )  # fmt: skip
        packed = [struct.pack(f"<{len(column)}Q", *column) for column in columns]
        return b"".join([header, *packed, *(record for _, record, _ in records)])


class NodeTableReader:
    """A block again. Each inode is taken once: then it lives in the session.

    Nothing is believed: what the block says never leads outside it. Raises ValueError.
    """

    def __init__(self, block: memoryview) -> None:
        try:
            self.token, sizes = _take_header(block)
        except ValueError:
            block.release()
            raise
        at, columns = _HEADER.size, []
        for size in sizes:
            columns.append(block[at : at + 8 * size].cast("Q"))
            at += 8 * size
        self._ids, self._ends, self._data, self._known, self._lookups = columns
        self._heap = block[at:]
        self._block = block
        self._taken: set[int] = set()

    def __len__(self) -> int:
        return len(self._ids) + len(self._known) - len(self._taken)

    def close(self) -> None:
        """Lets go of the block."""
        for view in (self._ids, self._ends, self._data, self._known, self._lookups, self._heap):
            view.release()
        self._block.release()

    def take(self, nodeid: int) -> tuple[bytes, int] | None:
        """A record and the place of its data; None when there is none, or it was taken."""
        at = self._find(self._ids, nodeid)
        if at is None:
            return None
        found = self._record(at)
        self._taken.add(nodeid)
        return found

    def take_mention(self, nodeid: int) -> int | None:
        """How often the guest was told of a layer's file."""
        at = self._find(self._known, nodeid)
        if at is None:
            return None
        self._taken.add(nodeid)
        return self._lookups[at]

    def left(self) -> Iterator[tuple[int, bytes, int]]:
        """(nodeid, record, place) of the records not taken."""
        for at, nodeid in enumerate(self._ids):
            if nodeid not in self._taken:
                yield (nodeid, *self._record(at))

    def mentions_left(self) -> Iterator[tuple[int, int]]:
        """(nodeid, lookups) of the mentions not taken."""
        for nodeid, lookups in zip(self._known, self._lookups, strict=True):
            if nodeid not in self._taken:
                yield nodeid, lookups

    def numbers(self) -> list[int]:
        """Of all records and mentions not taken."""
        return [nodeid for nodeid in (*self._ids, *self._known) if nodeid not in self._taken]

    def _find(self, column: memoryview[int], nodeid: int) -> int | None:
        at = bisect_left(column, nodeid)
        if at == len(column) or column[at] != nodeid or nodeid in self._taken:
            return None
        return at

    def _record(self, at: int) -> tuple[bytes, int]:
        start = self._ends[at - 1] if at else 0
        end = self._ends[at]
        if not start <= end <= len(self._heap):
            raise ValueError("the table of inodes places a record outside itself")
        return bytes(self._heap[start:end]), self._data[at]


def _take_header(block: memoryview) -> tuple[bytes, list[int]]:
    """The token, and how many numbers each column has."""
    if len(block) < _HEADER.size:
        raise ValueError("the table of inodes is too short")
    magic, token, records, mentions, heap = _HEADER.unpack_from(block)
    sizes = [records, records, records, mentions, mentions]
    if magic != _MAGIC or _HEADER.size + 8 * sum(sizes) + heap != len(block):
        raise ValueError("the table of inodes is none, or torn")
    return token, sizes
