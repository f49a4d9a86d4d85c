"""Advisory locks of one tree: POSIX (and OFD) record locks, and flock(2) locks, by inode.

Ranges are inclusive, as FUSE sends them. A lock's owner is the guest kernel's 64-bit owner id: a
process's files for POSIX locks, an open file for OFD and flock locks. The two families do not see
each other. This module only keeps the table; who waits is the session's business.
"""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from typing import NamedTuple

from crumble_fsd.filesystem import fail

READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
LAST = (1 << 63) - 1  # OFFSET_MAX: to the end of the file
# A guest can split ranges for ever; real programs hold a few, databases some hundreds.
MAX_LOCKS = 65_536


class Lock(NamedTuple):
    """One held range. pid: of the guest, for F_GETLK."""

    start: int
    end: int
    kind: int
    owner: int
    pid: int


Key = tuple[int, bool]
"""nodeid; True for flock."""


class LockTable:
    """Locks held, by inode and family. Ranges of one owner never overlap, and are in order."""

    def __init__(self, limit: int = MAX_LOCKS) -> None:
        self._held: dict[Key, list[Lock]] = {}
        self._count = 0
        self._limit = limit

    def __len__(self) -> int:
        """How many ranges are held."""
        return self._count

    def conflict(self, key: Key, wanted: Lock) -> Lock | None:
        """A lock of another owner that keeps `wanted` from being taken."""
        for lock in self._held.get(key, ()):
            if (
                lock.owner != wanted.owner
                and WRITE in (lock.kind, wanted.kind)
                and lock.start <= wanted.end
                and wanted.start <= lock.end
            ):
                return lock
        return None

    def set(self, key: Key, wanted: Lock) -> None:
        """Takes, changes or drops a range. EAGAIN when another holds it; ENOLCK at the limit."""
        if wanted.kind != UNLOCK and self.conflict(key, wanted) is not None:
            fail(errno.EAGAIN)
        before = self._held.get(key, [])
        after = _replaced(before, wanted)
        if len(after) > len(before) and self._count + len(after) - len(before) > self._limit:
            fail(errno.ENOLCK)
        self._store(key, before, after)

    def drop_owner(self, key: Key, owner: int) -> bool:
        """Drops all an owner holds on the inode; True when that was anything."""
        before = self._held.get(key)
        if not before:
            return False
        after = [lock for lock in before if lock.owner != owner]
        self._store(key, before, after)
        return len(after) < len(before)

    def items(self) -> Iterator[tuple[Key, Lock]]:
        """Every lock."""
        for key, held in self._held.items():
            for lock in held:
                yield key, lock

    def clear(self) -> None:
        """Drops everything."""
        self._held.clear()
        self._count = 0

    def _store(self, key: Key, before: list[Lock], after: list[Lock]) -> None:
        self._count += len(after) - len(before)
        if after:
            self._held[key] = after
        else:
            self._held.pop(key, None)


def _replaced(held: list[Lock], wanted: Lock) -> list[Lock]:
    """The locks once `wanted` takes the place of what its owner held there; neighbours merge."""
    kept: list[Lock] = []
    start, end = wanted.start, wanted.end
    for lock in held:
        if lock.owner != wanted.owner:
            kept.append(lock)
        elif lock.kind == wanted.kind and lock.start <= end + 1 and start <= lock.end + 1:
            start, end = min(start, lock.start), max(end, lock.end)
        elif lock.end < start or end < lock.start:
            kept.append(lock)
        else:
            if lock.start < wanted.start:
                kept.append(lock._replace(end=wanted.start - 1))
            if lock.end > wanted.end:
                kept.append(lock._replace(start=wanted.end + 1))
    if wanted.kind != UNLOCK:
        kept.append(wanted._replace(start=start, end=end))
    return sorted(kept)
