"""Bytes of a stream that are kept until they are not needed any more, in a ring, by sequence number.

A byte lies at its sequence number modulo the ring's size, wherever the ring is: in this process, or in an
arena that outlives it. So who finds the ring and knows the size and two numbers, has the bytes.
"""

from __future__ import annotations

from collections.abc import Callable

from crumble_netd.tcp.sequence import add, distance

# Bytes a ring begins with. Sizes are powers of two.
START = 1 << 16


class SendBuffer:
    """Bytes from sequence number `start` on, `size` of them; the ring has `room`.

    memory: where the ring is, as long as it may become; None for memory of its own. enlarged: told when
    `room` has grown, before a byte is put where it only now belongs.
    """

    def __init__(
        self,
        start: int,
        memory: memoryview | None = None,
        enlarged: Callable[[int], None] = lambda _: None,
        *,
        room: int = START,
        size: int = 0,
    ) -> None:
        self.start = start
        self.size = size
        self.room = room
        self._enlarged = enlarged
        self._own = memory is None
        self._memory = memoryview(bytearray(room)) if memory is None else memory

    @property
    def memory(self) -> memoryview:
        """The ring is at its beginning, until it is enlarged."""
        return self._memory

    @property
    def end(self) -> int:
        """The sequence number after the last byte."""
        return add(self.start, self.size)

    def append(self, data: bytes | memoryview) -> None:
        """Adds bytes at the end."""
        rest = memoryview(data)
        for piece in self.space(len(rest)):
            piece[:] = rest[: len(piece)]
            rest = rest[len(piece) :]
        self.size += len(data)

    def space(self, count: int) -> list[memoryview]:
        """Where the next `count` bytes belong: for one who puts them there, and then says `filled`."""
        while self.size + count > self.room:
            self.enlarge(2 * self.room)
        return self._pieces(self.start + self.size, count)

    def filled(self, count: int) -> None:
        """So many bytes have been put at the end."""
        self.size += count

    def discard(self, seq: int) -> int:
        """Drops what is before `seq`; returns how many bytes that were."""
        count = min(max(0, distance(self.start, seq)), self.size)
        self.start = add(self.start, count)
        self.size -= count
        return count

    def peek(self, seq: int, count: int) -> list[memoryview]:
        """At most `count` bytes from `seq` on: views, right until the bytes are discarded."""
        skip = distance(self.start, seq)
        return self._pieces(seq, min(count, self.size - skip))

    def enlarge(self, room: int) -> None:
        """Makes the ring larger. What was there can be found by the old size until `enlarged` is told."""
        while self.room < room:
            self._double()

    def _double(self) -> None:
        old = self._memory
        if self._own:
            self._memory = memoryview(bytearray(2 * self.room))
        elif 2 * self.room > len(old):
            raise MemoryError("a ring is full")
        for piece in _cut(self.start, self.size, self.room):
            # Now each byte has one of two places, of which one is where it is.
            for start, count in _cut(*piece, 2 * self.room):
                here, there = start % self.room, start % (2 * self.room)
                if self._own or here != there:
                    self._memory[there : there + count] = old[here : here + count]
        self.room *= 2
        self._enlarged(self.room)

    def _pieces(self, seq: int, count: int) -> list[memoryview]:
        memory, at = self._memory, seq % self.room
        end = at + count
        if count <= 0:
            return []
        if end <= self.room:
            return [memory[at:end]]
        return [memory[at : self.room], memory[: end - self.room]]


def _cut(seq: int, count: int, room: int) -> list[tuple[int, int]]:
    """The pieces, start and size, that lie in a ring without a break."""
    first = min(count, room - seq % room)
    pieces = [(seq, first), (seq + first, count - first)]
    return [piece for piece in pieces if piece[1]]
