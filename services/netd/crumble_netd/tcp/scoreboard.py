"""What the peer says it has beyond snd_una (RFC 6675 §3, §4): which bytes are lost, how many on the way."""

from __future__ import annotations

from crumble_netd.tcp.sequence import at_most, before, distance, latest

DUP_THRESH = 3
# A receiver tells three or four blocks a segment; more ranges than this are not worth their memory.
MAX_RANGES = 256


class Scoreboard:
    """Sacked ranges, sorted and apart from each other, all between snd_una and snd_nxt."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.sacked = 0

    def update(self, una: int, nxt: int, blocks: tuple[tuple[int, int], ...]) -> bool:
        """Takes in an ACK's blocks, those that can be true; whether they told anything new."""
        kept = [(latest(s, una), e) for s, e in self.ranges if before(una, e)]
        self._sum(kept)
        before_blocks = self.sacked
        for start, end in blocks:
            if at_most(una, start) and before(start, end) and at_most(end, nxt):
                kept.append((start, end))
        if len(kept) <= MAX_RANGES:
            kept.sort(key=lambda item: distance(una, item[0]))
            self._sum(_merged(kept))
        return self.sacked > before_blocks

    def _sum(self, ranges: list[tuple[int, int]]) -> None:
        self.ranges = ranges
        self.sacked = sum(distance(start, end) for start, end in ranges)

    def clear(self) -> None:
        """Forgets all (the peer may, too: RFC 2018 §8)."""
        self._sum([])

    def lost_edge(self, una: int, mss: int) -> int:
        """Bytes before this one that are not sacked are lost (IsLost)."""
        size = 0
        for count, (start, end) in enumerate(reversed(self.ranges), 1):
            size += distance(start, end)
            if count >= DUP_THRESH or size > (DUP_THRESH - 1) * mss:
                return start
        return una

    def unsacked(self, start: int, end: int) -> int:
        """Bytes of [start, end) that are not sacked."""
        size = max(0, distance(start, end))
        for low, high in self.ranges:
            left = max(0, distance(start, low))
            right = min(distance(start, high), distance(start, end))
            size -= max(0, right - left)
        return size

    def hole(self, start: int, end: int) -> tuple[int, int] | None:
        """The first piece of [start, end) that is not sacked: where it starts, how long it is."""
        for low, high in self.ranges:
            if at_most(low, start) and before(start, high):
                start = high
        if not before(start, end):
            return None
        for low, _ in self.ranges:
            if before(start, low):
                end = low if before(low, end) else end
                break
        return start, distance(start, end)


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in ranges:
        if merged and at_most(start, merged[-1][1]):
            merged[-1] = (merged[-1][0], latest(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
