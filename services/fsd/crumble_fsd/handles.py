"""Open-file handles: numbers the guest holds for things that need more than a nodeid."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from crumble_fsd.filesystem import Handle, Node, fail

# A handle costs a descriptor; RLIMIT_NOFILE is 20,000 where it is lowest, and the rest needs some.
MAX_HANDLES = 16_384


class HandleTable:
    """fh → Handle. fh 0 means "no handle"; numbers are not reused."""

    def __init__(self, limit: int = MAX_HANDLES) -> None:
        self._handles: dict[int, Handle] = {}
        self._next = 1
        self._limit = limit

    def __len__(self) -> int:
        """How many are open."""
        return len(self._handles)

    def check_room(self) -> None:
        """ENFILE when no more can be opened."""
        if len(self._handles) >= self._limit:
            fail(errno.ENFILE)

    def add(self, handle: Handle | None) -> int:
        """The number of a new handle; 0 for None."""
        if handle is None:
            return 0
        number = self._next
        self._next += 1
        self._handles[number] = handle
        return number

    def get(self, number: int, node: Node) -> Handle | None:
        """The handle, which must be of that node; None for 0. EBADF."""
        if number == 0:
            return None
        handle = self._handles.get(number)
        if handle is None or handle.node is not node:
            fail(errno.EBADF)
        return handle

    def release(self, number: int, node: Node) -> Handle | None:
        """Closes one. EBADF."""
        handle = self.get(number, node)
        if handle is not None:
            del self._handles[number]
            handle.close()
        return handle

    def items(self) -> Iterator[tuple[int, Handle]]:
        """Number and handle of each."""
        return iter(self._handles.items())

    @property
    def next(self) -> int:
        """The number of the next one."""
        return self._next

    def restore(self, handles: dict[int, Handle], following: int) -> None:
        """Has these and no others; the next one gets the number `following`."""
        self._handles = handles
        self._next = following

    def close(self) -> None:
        """Closes all (the guest is gone)."""
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()
