"""The order of a directory's names, for READDIR without a handle.

A guest that does not send OPENDIR resumes with nothing but a cookie, while names come and go. So each
name gets a cookie once, cookies only grow, and a name that stays keeps its own: nothing is given
twice or left out. Removed names leave gaps that are dropped when they outnumber the rest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any


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
        """Removes a name, if it is there."""
        cookie = self._at.pop(name, None)
        if cookie is None:
            return
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

    def pack(self) -> list[Any]:
        """For `unpack`: names, cookies (None: they follow each other from the first), the next cookie."""
        first = self._cookies[0] if self._cookies else self._next
        dense = self._next - first == len(self._cookies)
        return [self._names, None if dense else self._cookies, self._next]

    @classmethod
    def unpack(cls, packed: Any) -> Listing:
        """A listing again; ValueError for one that makes no sense."""
        if not isinstance(packed, list) or len(packed) != 3:
            raise ValueError("a listing makes no sense")
        names, cookies, following = packed
        if not isinstance(names, list) or type(following) is not int:
            raise ValueError("a listing makes no sense")
        made = cls((), 0)
        made._names = names
        made._cookies = (
            list(range(following - len(names), following)) if cookies is None else cookies
        )
        made._next = following
        made._check()
        made._at = {name: cookie for name, cookie in made._pairs() if name is not None}
        return made

    def _check(self) -> None:
        """ValueError unless cookies grow and names are names, each there once."""
        cookies = self._cookies
        shown = [name for name in self._names if name is not None]
        if (
            not isinstance(cookies, list)
            or len(cookies) != len(self._names)
            or not all(type(cookie) is int for cookie in cookies)
            or any(a >= b for a, b in pairwise([1, *cookies, self._next, 1 << 62]))
            or not all(isinstance(name, bytes) and 0 < len(name) < 256 for name in shown)
            or len(set(shown)) != len(shown)
        ):
            raise ValueError("a listing makes no sense")

    def _pairs(self) -> Iterator[tuple[bytes | None, int]]:
        return zip(self._names, self._cookies, strict=True)

    def _compact(self) -> None:
        kept = [(name, cookie) for name, cookie in self._pairs() if name is not None]
        self._names = [name for name, _ in kept]
        self._cookies = [cookie for _, cookie in kept]
