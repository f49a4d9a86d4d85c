"""The order of a directory's names, for READDIR without a handle.

A guest that does not send OPENDIR resumes with nothing but a cookie, while names come and go. So each
name gets a cookie once, cookies only grow, and a name that stays keeps its own: nothing is given
twice or left out. Removed names leave gaps that are dropped when they outnumber the rest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator


class Listing:
    """Names in cookie order. Cookies start at `first`."""

    __slots__ = ("_at", "_cookies", "_names", "_next")

    def __init__(self, names: Iterable[bytes | None], first: int) -> None:
        """names: None holds the place (and cookie) of a name that is not shown."""
        self._names: list[bytes | None] = list(names)
        self._cookies = list(range(first, first + len(self._names)))
        self._at = {name: cookie for name, cookie in self._pairs() if name is not None}
        self._next = first + len(self._names)

    def __len__(self) -> int:
        """How many names there are."""
        return len(self._at)

    def add(self, name: bytes) -> None:
        """Adds a name at the end; nothing when it is there."""
        if name in self._at:
            return
        self._names.append(name)
        self._cookies.append(self._next)
        self._at[name] = self._next
        self._next += 1

    def remove(self, name: bytes) -> None:
        """Removes a name that is there."""
        cookie = self._at.pop(name)
        self._names[bisect_left(self._cookies, cookie)] = None
        if len(self._names) > 64 and len(self._names) > 3 * len(self._at):
            self._compact()

    def after(self, cookie: int) -> Iterator[tuple[int, bytes]]:
        """(cookie, name) for each name from `cookie` on; the next one resumes at cookie + 1."""
        start = bisect_left(self._cookies, cookie)
        for index in range(start, len(self._names)):
            name = self._names[index]
            if name is not None:
                yield self._cookies[index], name

    def _pairs(self) -> Iterator[tuple[bytes | None, int]]:
        return zip(self._names, self._cookies, strict=True)

    def _compact(self) -> None:
        kept = [(name, cookie) for name, cookie in self._pairs() if name is not None]
        self._names = [name for name, _ in kept]
        self._cookies = [cookie for _, cookie in kept]
