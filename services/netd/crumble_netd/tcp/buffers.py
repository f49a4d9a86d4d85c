"""What was written and is not acknowledged: bytes by sequence number."""

from __future__ import annotations

from collections import deque

from crumble_netd.tcp.sequence import add, distance


class SendBuffer:
    """Bytes from sequence number `start` on, in the pieces they came in."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.size = 0
        self._pieces: deque[memoryview] = deque()

    @property
    def end(self) -> int:
        """The sequence number after the last byte."""
        return add(self.start, self.size)

    def append(self, data: bytes | memoryview) -> None:
        """Adds bytes at the end."""
        if data:
            self._pieces.append(memoryview(data))
            self.size += len(data)

    def discard(self, seq: int) -> int:
        """Drops what is before `seq`; returns how many bytes that were."""
        count = left = min(max(0, distance(self.start, seq)), self.size)
        while left:
            piece = self._pieces.popleft()
            if len(piece) > left:
                self._pieces.appendleft(piece[left:])
                left = 0
            else:
                left -= len(piece)
        self.start = add(self.start, count)
        self.size -= count
        return count

    def peek(self, seq: int, count: int) -> list[memoryview]:
        """At most `count` bytes from `seq` on."""
        skip = distance(self.start, seq)
        found: list[memoryview] = []
        for piece in self._pieces:
            if skip >= len(piece):
                skip -= len(piece)
                continue
            part = piece[skip : skip + count]
            skip = 0
            found.append(part)
            count -= len(part)
            if count == 0:
                break
        return found
