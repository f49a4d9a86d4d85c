"""The driver's side of a split virtqueue, as a guest kernel would play it, over a plain `Memory`.

    driver = VirtqueueDriver(memory, size=64, at=0x1000, arena=(0x10000, 1 << 20))
    head = driver.submit([b"request"], [4096])      # True from driver.kick_wanted(): signal the kick
    ...                                             # the device pops, works, pushes
    for head, written, data in driver.collect(): ...

Everything a driver may do wrong can be written with `set_descriptor`, `set_available` and
`set_avail_idx`. Fast enough for benches: rings are views, not copies.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass

from crumble_native.memory import Memory

NEXT, WRITE, INDIRECT = 1, 2, 4
_DESC = struct.Struct("<QIHH")
_USED = struct.Struct("<II")


def _up(value: int, to: int) -> int:
    return (value + to - 1) // to * to


class Arena:
    """Guest memory handed out in powers of two from `start`; freed pieces are reused by size."""

    def __init__(self, start: int, size: int) -> None:
        self._next, self._end = start, start + size
        self._free: dict[int, list[int]] = {}

    def take(self, size: int) -> tuple[int, int]:
        """Address and real size of a piece of at least `size` bytes; MemoryError when none is left."""
        real = 1 << max(size - 1, 15).bit_length()
        free = self._free.get(real)
        if free:
            return free.pop(), real
        at = self._next
        if at + real > self._end:
            raise MemoryError(f"the driver's arena has no {real} bytes left")
        self._next += real
        return at, real

    def give(self, piece: tuple[int, int]) -> None:
        """Takes a piece back."""
        self._free.setdefault(piece[1], []).append(piece[0])


@dataclass
class _Submitted:
    descriptors: list[int]
    pieces: list[tuple[int, int]]
    writable: list[tuple[int, int]]  # address, length


class VirtqueueDriver:
    """One queue of `size` entries laid out from `at`; buffers come from `arena` (start, size)."""

    def __init__(
        self,
        memory: Memory,
        *,
        size: int,
        at: int,
        arena: tuple[int, int] | Arena,
        event_idx: bool = True,
        indirect: bool = False,
    ) -> None:
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        self.indirect = indirect
        self.arena = arena if isinstance(arena, Arena) else Arena(*arena)
        self.desc = _up(at, 16)
        self.avail = self.desc + 16 * size
        self.used = _up(self.avail + 6 + 2 * size, 4)
        self.end = self.used + 6 + 8 * size
        self._desc = self._view(self.desc, 16 * size)
        # Indices as 16-bit words: struct would write and read them byte by byte, torn.
        self._avail = self._view(self.avail, 6 + 2 * size).cast("H")
        self._used = self._view(self.used, 6 + 8 * size)
        self._used_words = self._used.cast("H")
        self._fence = threading.Lock()
        self._free = list(range(size - 1, -1, -1))
        self._waiting: dict[int, _Submitted] = {}
        self._avail_idx = self._kicked_idx = self._used_seen = 0

    def _view(self, gpa: int, length: int) -> memoryview:
        views = self.memory.views(gpa, length, write=True)
        if len(views) != 1:
            raise ValueError("the driver wants memory in one piece")
        return views[0]

    # What a driver does.

    def submit(
        self, readable: list[bytes], writable: list[int], *, indirect: bool | None = None
    ) -> int:
        """Makes one chain available; returns its head. Raises IndexError when the table is full."""
        one_table = self.indirect if indirect is None else indirect
        if len(self._free) < (1 if one_table else len(readable) + len(writable)):
            raise IndexError("the descriptor table is full")
        buffers = [(*self._fill(data), 0) for data in readable]
        for size in writable:
            at, real = self.arena.take(size)
            buffers.append(((at, real), size, WRITE))
        chain = _Submitted(
            descriptors=[],
            pieces=[piece for piece, _, _ in buffers],
            writable=[(piece[0], size) for piece, size, flags in buffers if flags],
        )
        rows = [(piece[0], size, flags) for piece, size, flags in buffers]
        head = self._submit_indirect(chain, rows) if one_table else self._submit_direct(chain, rows)
        self._waiting[head] = chain
        self.make_available(head)
        return head

    def _fill(self, data: bytes) -> tuple[tuple[int, int], int]:
        piece = self.arena.take(len(data))
        self.memory.write(piece[0], data)
        return piece, len(data)

    def _submit_direct(self, chain: _Submitted, rows: list[tuple[int, int, int]]) -> int:
        chain.descriptors = [self._free.pop() for _ in rows]
        following = [*chain.descriptors[1:], None]
        for index, (addr, size, flags), after in zip(
            chain.descriptors, rows, following, strict=True
        ):
            more = 0 if after is None else NEXT
            self.set_descriptor(index, addr, size, flags | more, after or 0)
        return chain.descriptors[0]

    def _submit_indirect(self, chain: _Submitted, rows: list[tuple[int, int, int]]) -> int:
        table = b"".join(
            _DESC.pack(addr, size, flags | (NEXT if i + 1 < len(rows) else 0), i + 1)
            for i, (addr, size, flags) in enumerate(rows)
        )
        piece, length = self._fill(table)
        chain.pieces.append(piece)
        chain.descriptors = [self._free.pop()]
        self.set_descriptor(chain.descriptors[0], piece[0], length, INDIRECT, 0)
        return chain.descriptors[0]

    def make_available(self, head: int) -> None:
        """Puts `head` into the avail ring and publishes it."""
        self.set_available(self._avail_idx, head)
        self._avail_idx = (self._avail_idx + 1) & 0xFFFF
        self.set_avail_idx(self._avail_idx)

    def kick_wanted(self) -> bool:
        """True when the device wants a kick for what was submitted since the last call."""
        with self._fence:  # the lock is the full barrier of section 2.7.13.4.1
            old, new = self._kicked_idx, self._avail_idx
        self._kicked_idx = new
        if old == new:
            return False
        if not self.event_idx:
            return not self._used_words[0] & 1
        event = self._used_words[2 + 4 * self.size]
        return ((new - event - 1) & 0xFFFF) < ((new - old) & 0xFFFF)

    def interrupts(self, wanted: bool) -> None:
        """Asks the device for an interrupt at the next used chain, or for none."""
        if self.event_idx:
            event = self._used_seen if wanted else (self._used_seen - 1) & 0xFFFF
            self._avail[2 + self.size] = event
        else:
            self._avail[0] = not wanted
        with self._fence:
            pass

    def used_idx(self) -> int:
        """The device's used index."""
        return self._used_words[1]

    @property
    def more(self) -> bool:
        """`collect` would give something."""
        return self._used_seen != self.used_idx()

    def collect(self) -> list[tuple[int, int, bytes]]:
        """Chains the device gave back since the last call: head, bytes written, those bytes."""
        done: list[tuple[int, int, bytes]] = []
        while self.more:
            slot = 4 + 8 * (self._used_seen % self.size)
            head, written = _USED.unpack_from(self._used, slot)
            self._used_seen = (self._used_seen + 1) & 0xFFFF
            chain = self._waiting.pop(head)  # KeyError: the device gave back what it never had
            done.append((head, written, self._gather(chain, written)))
            self._free += chain.descriptors
            for piece in chain.pieces:
                self.arena.give(piece)
        return done

    def _gather(self, chain: _Submitted, written: int) -> bytes:
        data = b""
        for addr, size in chain.writable:
            if len(data) >= written:
                break
            data += self.memory.read(addr, min(size, written - len(data)))
        return data

    @property
    def waiting(self) -> int:
        """Chains submitted and not collected."""
        return len(self._waiting)

    # What a hostile driver does.

    def set_descriptor(self, index: int, addr: int, length: int, flags: int, after: int) -> None:
        """Writes a row of the descriptor table as it is given."""
        _DESC.pack_into(self._desc, 16 * index, addr, length, flags, after)

    def set_available(self, slot: int, head: int) -> None:
        """Writes an entry of the avail ring."""
        self._avail[2 + slot % self.size] = head

    def set_avail_idx(self, value: int) -> None:
        """Writes the avail index."""
        self._avail[1] = value
