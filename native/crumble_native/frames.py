"""Ethernet frames between a driver's rings and this process, a burst at a time. See native/include/crumble/frames.h."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from crumble_native._core import ffi, lib
from crumble_native.vring import Virtqueue

BURST: int = lib.CRB_BURST_CHAINS
MAX_FRAME: int = lib.CRB_FRAME_MAX
JOINED: int = lib.CRB_FRAME_JOINED
TOO_LARGE = 2
_PIECES: int = lib.CRB_FRAME_PIECES
_AT, _SIZE, _FRAMES, _HEADER = range(4)
_WORDS = 9


class Taken(NamedTuple):
    """A frame from the driver. frames: of the driver's that were joined. header: virtio_net_hdr's first six fields.

    data: right until the next burst.
    """

    data: memoryview
    frames: int
    header: tuple[int, ...]


class Incoming:
    """What a driver sends. Segments of one stream come as one, their checksums verified (DATA_VALID)."""

    def __init__(self) -> None:
        self._burst: Any = ffi.new("crb_burst *")
        self._area = memoryview(ffi.buffer(self._burst.area))
        self._words = ffi.cast("uint32_t *", self._burst.frames)

    def take(
        self, queue: Virtqueue, limit: int, mac: bytes | None, *, left: bool
    ) -> tuple[int, list[Taken]]:
        """Takes at most `limit` chains; how many there were, and their frames. Then `give` them back.

        mac: segments to it are joined; None: none are. left: the driver may leave checksums to us.
        Raises the queue's error when the ring is broken.
        """
        burst = self._burst
        chains = lib.crb_frames_take(
            queue.handle, burst, limit, ffi.NULL if mac is None else mac, left
        )
        if chains < 0:
            raise queue.broken(chains)
        if not chains:
            return 0, []
        words = ffi.unpack(self._words, _WORDS * burst.count)
        found = []
        for i in range(0, len(words), _WORDS):
            at = words[i + _AT]
            data = self._area[at : at + words[i + _SIZE]]
            found.append(Taken(data, words[i + _FRAMES], tuple(words[i + _HEADER : i + _WORDS])))
        return chains, found

    @property
    def size(self) -> int:
        """Bytes of all chains."""
        return int(self._burst.bytes)

    @property
    def left_out(self) -> tuple[int, int]:
        """Chains too short, and too long, for a frame."""
        return int(self._burst.too_short), int(self._burst.too_long)

    def give(self, queue: Virtqueue) -> None:
        """Gives the burst's chains back."""
        if lib.crb_frames_give(queue.handle, self._burst) != 0:
            raise ValueError("a chain is not in flight")


class Outgoing:
    """What a driver receives. merge: it may take several buffers for a frame."""

    def __init__(self, *, merge: bool) -> None:
        self._out: Any = ffi.new("crb_frame_out *")
        self._pieces: Any = self._out.pieces
        self._out.merge = merge

    @property
    def handle(self) -> Any:
        """For the C core; as long as this object is."""
        return self._out

    def put(
        self, queue: Virtqueue, parts: Sequence[bytes | memoryview], header: tuple[int, ...],
        *, cut: bool, fill: bool, done: int = 0,
    ) -> tuple[int, int]:  # fmt: skip
        """Puts a frame on the ring. cut: in pieces of the header's gso_size. fill: with its checksum.

        Returns 1, TOO_LARGE (for a buffer) or 0 when there is no room, and then what `done` is next
        time. Raises the queue's error.
        """
        if len(parts) > _PIECES:
            parts = (b"".join(parts),)
        out = self._out
        kept = []
        for piece, part in zip(self._pieces, parts, strict=False):
            view = ffi.from_buffer("uint8_t[]", part)
            kept.append(view)
            piece.at, piece.length = view, len(part)
        out.n_pieces = len(kept)
        out.cut, out.fill, out.done = cut, fill, done
        out.flags, out.gso_type, out.hdr_len, out.gso_size, out.csum_start, out.csum_offset = header
        result = lib.crb_frames_put(queue.handle, out)
        if result < 0:
            raise queue.broken(result)
        return result, out.done
