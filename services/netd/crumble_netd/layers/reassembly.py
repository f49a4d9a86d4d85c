"""Fragments to datagrams (RFC 791 §3.2, RFC 8200 §4.5); overlaps are refused, whole (RFC 5722)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from crumble_netd.header import Malformed

LIFETIME = 30.0
# Datagrams in pieces at once, and bytes in all of them, of one guest.
MAX_DATAGRAMS = 64
MAX_BYTES = 1 << 20
_MAX_PIECES = 1024


@dataclass(slots=True)
class _Partial:
    begun: float
    pieces: dict[int, bytes] = field(default_factory=dict)
    size: int = 0
    end: int | None = None
    refused: bool = False


class FragmentStore:
    """Datagrams that are not complete, by what identifies them."""

    def __init__(self) -> None:
        self._partial: dict[Hashable, _Partial] = {}
        self.size = 0

    def add(self, key: Hashable, offset: int, data: bytes, now: float, *, more: bool) -> bytes:
        """The whole payload when this piece was the last one missing, else b""; raises Malformed."""
        self._expire(now)
        partial = self._partial.get(key)
        if partial is None:
            if len(self._partial) >= MAX_DATAGRAMS:
                self._drop(next(iter(self._partial)))
            partial = self._partial[key] = _Partial(now)
        if partial.refused:
            raise Malformed("fragment.overlap")
        end = offset + len(data)
        if partial.pieces.get(offset) == data and (more or partial.end == end):
            return b""  # a copy is not an overlap
        if not data or self._clashes(partial, offset, end, more):
            self._refuse(partial)
            raise Malformed("fragment.overlap")
        if self.size + len(data) > MAX_BYTES or len(partial.pieces) >= _MAX_PIECES:
            self._drop(key)
            raise Malformed("fragment.limit")
        partial.pieces[offset] = data
        partial.size += len(data)
        self.size += len(data)
        if not more:
            partial.end = end
        return self._whole(key, partial)

    @staticmethod
    def _clashes(partial: _Partial, offset: int, end: int, more: bool) -> bool:
        if partial.end is not None and (end > partial.end or not more):
            return True
        if not more and any(at + len(piece) > end for at, piece in partial.pieces.items()):
            return True
        return any(offset < at + len(piece) and at < end for at, piece in partial.pieces.items())

    def _whole(self, key: Hashable, partial: _Partial) -> bytes:
        if partial.end is None or partial.size != partial.end:
            return b""
        whole = b"".join(partial.pieces[at] for at in sorted(partial.pieces))
        self._drop(key)
        return whole

    def _refuse(self, partial: _Partial) -> None:
        """Remembers that the datagram is bad, so that its later pieces are not a new one."""
        self.size -= partial.size
        partial.pieces.clear()
        partial.size = 0
        partial.refused = True

    def _drop(self, key: Hashable) -> None:
        self.size -= self._partial.pop(key).size

    def _expire(self, now: float) -> None:
        while self._partial:
            key, partial = next(iter(self._partial.items()))
            if now - partial.begun < LIFETIME:
                return
            self._drop(key)
