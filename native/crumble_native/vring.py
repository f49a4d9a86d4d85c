"""A split virtqueue, device side, over guest memory. See native/include/crumble/vring.h.

`Virtqueue.pop` costs one call into C: it fills one reused struct, which is unpacked at once into the
chain's memoryviews. Services use `crumble_common.virtqueue`, whose errors are GuestErrors.
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import Any, ClassVar

from crumble_native._core import ffi, lib
from crumble_native.memory import Memory

MAX_SIZE: int = lib.CRB_RING_MAX_SIZE
_HEADER_WORDS = 5
# Of which only what was written is read: 64 KiB that are not zeroed are no memory until then.
_scratch = ffi.new_allocator(should_clear_after_alloc=False)
# One view over the whole address space: a slice of it costs a third of ffi.buffer() and memoryview().
# Sliced only at what the C core returned, after its checks; it cannot start at NULL.
_HOST = memoryview(ffi.buffer(ffi.cast("char *", 1), sys.maxsize - 1))

# By crb_ring_error: stable code, sentence.
_ERRORS: dict[int, tuple[str, str]] = {
    lib.CRB_RING_AVAIL_JUMP: ("avail_jump", "the avail index is more than a queue ahead"),
    lib.CRB_RING_HEAD: ("head", "a head index is outside the descriptor table"),
    lib.CRB_RING_BUSY_HEAD: ("busy_head", "a chain was made available again before it was used"),
    lib.CRB_RING_NEXT: ("next", "a next index is outside the descriptor table"),
    lib.CRB_RING_LOOP: ("loop", "a descriptor chain has a loop"),
    lib.CRB_RING_TOO_LONG: ("too_long", "a descriptor chain is too long"),
    lib.CRB_RING_ORDER: ("order", "a readable buffer follows a writable one"),
    lib.CRB_RING_EMPTY_BUFFER: ("empty_buffer", "a buffer has no bytes"),
    lib.CRB_RING_ADDRESS: ("address", "a buffer is outside guest memory"),
    lib.CRB_RING_INDIRECT: ("indirect", "an indirect table is used without being negotiated"),
    lib.CRB_RING_INDIRECT_NESTED: ("indirect_nested", "an indirect table is inside another"),
    lib.CRB_RING_INDIRECT_NEXT: ("indirect_next", "an indirect descriptor has a next one"),
    lib.CRB_RING_INDIRECT_SIZE: ("indirect_size", "an indirect table has an impossible size"),
}  # fmt: skip


class MalformedRingError(Exception):
    """The guest broke a rule of its ring; `code` names the rule."""

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


def inflight_size(size: int) -> int:
    """Bytes of the in-flight region of a split queue of `size` entries; ValueError when there is none."""
    found: int = lib.crb_inflight_size(size if 0 < size <= MAX_SIZE else 0)
    if found == 0:
        raise ValueError(f"{size} is not a queue size: it is a power of two up to {MAX_SIZE}")
    return found


class Chain:
    """One request: what the driver lets the device read, then what it lets it write.

    `readable` and `writable` are views straight into guest memory, in order; they are valid while the
    queue's Memory lives. The driver may change readable bytes at any time: copy before checking.
    """

    __slots__ = ("_at", "_from", "_into", "_readable", "_to", "_words", "_writable", "head",
                 "readable_len", "writable_len")  # fmt: skip

    def __init__(self, words: list[int]) -> None:
        """From the words of a crb_chain, up to its last segment."""
        self.head, _, _, self.readable_len, self.writable_len = words[:_HEADER_WORDS]
        self._words = words
        self._readable: list[memoryview] | None = None  # views are made when first asked for
        self._writable: list[memoryview] | None = None
        self._from = self._at = 0  # view index and offset of the next byte to read
        self._into = self._to = 0  # and to write

    @property
    def readable(self) -> list[memoryview]:
        """What the driver lets the device read."""
        if self._readable is None:
            self._readable = self._views(_HEADER_WORDS, _HEADER_WORDS + 2 * self._words[1])
        return self._readable

    @property
    def writable(self) -> list[memoryview]:
        """What the driver lets the device write."""
        if self._writable is None:
            self._writable = self._views(_HEADER_WORDS + 2 * self._words[1], len(self._words))
        return self._writable

    def _views(self, start: int, end: int) -> list[memoryview]:
        words = self._words
        return [_HOST[words[i] - 1 : words[i] - 1 + words[i + 1]] for i in range(start, end, 2)]

    def read(self, n: int = -1) -> bytes:
        """The next `n` bytes of the readable part (all that are left when n < 0); short at its end."""
        parts: list[memoryview] = []
        views = self.readable
        left = n if n >= 0 else self.readable_len
        while left > 0 and self._from < len(views):
            part = views[self._from][self._at : self._at + left]
            parts.append(part)
            left -= len(part)
            self._at += len(part)
            if self._at == len(views[self._from]):
                self._from, self._at = self._from + 1, 0
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Puts `data` into the next bytes of the writable part; returns how many fitted."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        views = self.writable
        while rest and self._into < len(views):
            view = views[self._into]
            room = min(len(view) - self._to, len(rest))
            view[self._to : self._to + room] = rest[:room]
            rest = rest[room:]
            self._to += room
            if self._to == len(view):
                self._into, self._to = self._into + 1, 0
        return size - len(rest)


class Virtqueue:
    """The device side of a split virtqueue at the guest-physical addresses `desc`, `avail`, `used`.

    `base` is the avail index to start from. Raises ValueError when the size is not a power of two up
    to 32768, a part is misaligned, or a part is not in one piece of guest memory. One thread at a time.
    """

    error: ClassVar[Any] = MalformedRingError  # takes a sentence and code=

    def __init__(
        self,
        memory: Memory,
        size: int,
        desc: int,
        avail: int,
        used: int,
        *,
        event_idx: bool,
        indirect: bool = True,
        base: int = 0,
    ) -> None:
        inflight_size(size)
        if not all(0 <= gpa < 1 << 64 for gpa in (desc, avail, used)) or not 0 <= base < 1 << 16:
            raise ValueError("a ring address or index is out of range")
        handle = lib.crb_vring_new(
            memory.handle, size, desc, avail, used, base, event_idx, indirect
        )
        if handle == ffi.NULL:
            raise ValueError(
                f"the ring at {desc:#x}, {avail:#x}, {used:#x} cannot be used: {os.strerror(ffi.errno)}"
            )
        self.size = size
        self._memory = memory  # kept alive: the ring points into it
        self._inflight: Any = None
        self.handle: Any = ffi.gc(handle, lib.crb_vring_free)
        self._chain: Any = _scratch("crb_chain *")
        self._words: Any = ffi.cast("uint64_t *", self._chain)

    def track(self, region: mmap.mmap, offset: int = 0) -> None:
        """Records chains in flight in `region`, and takes over those a predecessor left there.

        Raises ValueError when the region is too small, misaligned, or belongs to another kind of ring.
        """
        needed = inflight_size(self.size)
        if offset < 0 or offset % 8 or offset + needed > len(region):
            raise ValueError(f"an in-flight region of {needed} bytes does not fit at {offset}")
        view = ffi.from_buffer(region)
        if lib.crb_vring_track(self.handle, ffi.cast("uint8_t *", view) + offset) != 0:
            raise ValueError("the in-flight region is not one of this queue")
        self._inflight = (view, region)

    def pop(self) -> Chain | None:
        """Takes the next chain; None when there is none.

        Raises `error` (the guest's fault) when the ring or chain is malformed: the ring is then broken
        for good, and the device needs a reset.
        """
        n: int = lib.crb_vring_pop(self.handle, self._chain)
        if n <= 0:
            if n == 0:
                return None
            raise self.broken(n)
        return Chain(ffi.unpack(self._words, _HEADER_WORDS + 2 * n))

    def broken(self, number: int) -> Exception:
        """The error for a crb_ring_error."""
        code, sentence = _ERRORS[number]
        error: Exception = self.error(f"Broken virtqueue: {sentence}.", code=f"ring.{code}")
        return error

    def push(self, chain: Chain, written: int) -> None:
        """Gives `chain` back, `written` bytes having been put at the start of its writable part.

        Raises ValueError (our fault) when it is not in flight or `written` is more than it can hold.
        """
        if not 0 <= written <= chain.writable_len:
            raise ValueError(f"{written} bytes do not fit a chain of {chain.writable_len}")
        if lib.crb_vring_push(self.handle, chain.head, written) != 0:
            raise ValueError(f"chain {chain.head} is not in flight")

    def push_all(self, chains: list[Chain], written: list[int]) -> None:
        """`push`, of several at once: the driver sees all or none, whenever this process is killed."""
        if len(chains) == 1:
            self.push(chains[0], written[0])
            return
        if any(w > chain.writable_len for chain, w in zip(chains, written, strict=True)):
            raise ValueError("more bytes than a chain can hold")
        used = [(chain.head, w) for chain, w in zip(chains, written, strict=True)]
        if lib.crb_vring_push_batch(self.handle, ffi.new("crb_used[]", used), len(used)) != 0:
            raise ValueError("a chain is not in flight")

    def should_notify(self) -> bool:
        """True when the driver wants an interrupt for what was pushed since the last call."""
        return bool(lib.crb_vring_should_notify(self.handle))

    def enable_kicks(self) -> bool:
        """Asks for kicks; True when chains are already waiting: pop again instead of sleeping."""
        return bool(lib.crb_vring_enable_kicks(self.handle))

    def want_more(self) -> bool:
        """Asks for a kick when there is more than the last pop saw, taken or not; True when there is already."""
        return bool(lib.crb_vring_want_more(self.handle))

    def disable_kicks(self) -> None:
        """Asks for no kicks; one more may still come."""
        lib.crb_vring_disable_kicks(self.handle)

    def pending(self) -> bool:
        """True when pop would not return None."""
        return bool(lib.crb_vring_pending(self.handle))

    @property
    def last_avail(self) -> int:
        """Index of the next avail entry to pop: GET_VRING_BASE's answer."""
        return int(self.handle.last_avail)

    @property
    def used_idx(self) -> int:
        """Index of the next used entry to fill."""
        return int(self.handle.used_idx)

    @property
    def in_flight(self) -> int:
        """Chains popped and not pushed."""
        return int(self.handle.in_flight)
