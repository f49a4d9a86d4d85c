"""Bytes that came before those in front of them: kept, bounded by the window, and told in SACK blocks."""

from __future__ import annotations

from crumble_netd.tcp.sequence import add, at_most, before, distance

# Ranges kept; a sender that cuts its data into more pieces than this has to send some again.
MAX_RANGES = 128


class Reassembly:
    """Ranges above rcv_nxt, sorted and apart from each other. `size`: bytes held."""

    def __init__(self) -> None:
        self.size = 0
        self.fin: int | None = None
        self._ranges: list[tuple[int, bytes]] = []
        self._recent = 0

    def insert(self, seq: int, data: bytes) -> None:
        """Keeps what of `data` is new; bytes that are here already stay as they came first."""
        pieces = [(seq, data)]
        for start, held in self._ranges:
            pieces = [rest for piece in pieces for rest in _without(piece, start, len(held))]
        self._recent = seq
        for piece in pieces:
            if len(self._ranges) >= MAX_RANGES:
                return
            self._ranges.append(piece)
            self.size += len(piece[1])
        if self._ranges:
            origin = add(self._ranges[0][0], -(1 << 30))
            self._ranges.sort(key=lambda item: distance(origin, item[0]))

    def take(self, rcv_nxt: int) -> list[bytes]:
        """What follows `rcv_nxt` without a gap."""
        found = []
        while self._ranges and at_most(self._ranges[0][0], rcv_nxt):
            start, data = self._ranges.pop(0)
            self.size -= len(data)
            fresh = data[distance(start, rcv_nxt) :]
            if fresh:
                found.append(fresh)
                rcv_nxt = add(rcv_nxt, len(fresh))
        return found

    def blocks(self) -> tuple[tuple[int, int], ...]:
        """SACK blocks, the one with the latest arrival first (RFC 2018 §4)."""
        merged: list[tuple[int, int]] = []
        for start, data in self._ranges:
            end = add(start, len(data))
            if merged and merged[-1][1] == start:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        for index, (start, end) in enumerate(merged):
            if at_most(start, self._recent) and before(self._recent, end):
                merged.insert(0, merged.pop(index))
                break
        return tuple(merged[:4])

    def __bool__(self) -> bool:
        return bool(self._ranges)


def _without(piece: tuple[int, bytes], start: int, length: int) -> list[tuple[int, bytes]]:
    """The piece less what the range [start, start + length) has."""
    seq, data = piece
    left, right = distance(seq, start), distance(seq, start) + length
    if right <= 0 or left >= len(data):
        return [piece]
    rest = []
    if left > 0:
        rest.append((seq, data[:left]))
    if right < len(data):
        rest.append((add(seq, right), data[right:]))
    return rest
