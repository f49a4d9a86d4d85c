"""The in-flight region: which chains a back end has taken and not given back.

Made by the back end, kept by the front end, handed to the back end's successor. One queue's part is
laid out as "Inflight I/O tracking" of the vhost-user protocol says, and is kept by native/src/vring.c.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Protocol

from crumble_common.vhost_user.wire import VhostUserError
from crumble_common.virtqueue import Virtqueue, inflight_size

_ALIGNMENT = 64  # as libvhost-user and rust-vmm align a queue's part
# crb_inflight and crb_inflight_entry of vring.h
_HEADER = struct.Struct("<QHHHH")  # features, version, entries, last batch's head, used index
_ENTRY = struct.Struct("<B5xHQ")  # in flight, next, counter


class Region(Protocol):
    """A region as the front end keeps it. size: of the largest queue."""

    fd: int
    offset: int
    size: int


def create(queues: int, size: int) -> tuple[int, int]:
    """A fresh region: its fd (the caller's) and length; raises VhostUserError for impossible numbers."""
    length = _check(queues, size)
    fd = os.memfd_create("crumble-inflight", os.MFD_CLOEXEC)
    os.ftruncate(fd, length)
    return fd, length


class Inflight:
    """A mapped in-flight region of `queues` queues with at most `size` entries each."""

    def __init__(self, region: mmap.mmap, offset: int, queues: int, size: int) -> None:
        self._region = region
        self._offset = offset
        self._queues = queues
        self._size = size

    @classmethod
    def attach(cls, fd: int, length: int, offset: int, queues: int, size: int) -> Inflight:
        """Maps a region that came back; raises VhostUserError when it cannot be one."""
        needed = _check(queues, size)
        if length < needed or offset % 8 or os.fstat(fd).st_size < offset + length:
            raise VhostUserError(
                f"An in-flight region of {length} bytes at {offset} cannot hold {queues} queues of {size}."
            )
        try:
            return cls(mmap.mmap(fd, offset + needed), offset, queues, size)
        except (OSError, ValueError, OverflowError) as error:
            raise VhostUserError(f"The in-flight region cannot be mapped: {error}.") from error

    def track(self, index: int, queue: Virtqueue) -> None:
        """Records `queue` in its part; raises VhostUserError when the part is not its own."""
        if index >= self._queues or queue.size > self._size:
            raise VhostUserError(f"Queue {index} has no room in the in-flight region.")
        try:
            queue.track(self._region, self._offset + index * _part(self._size))
        except ValueError as error:
            raise VhostUserError(f"Queue {index}: {error}.") from error


def unfinished(region: Region, index: int, ring: int) -> list[int]:
    """The heads a back end holds of queue `index`, of `ring` entries, oldest first. All rings are stopped."""
    data = os.pread(region.fd, inflight_size(ring), region.offset + index * _part(region.size))
    entries = list(_ENTRY.iter_unpack(data[_HEADER.size :]))
    held = [head for head, (mark, _, _) in enumerate(entries) if mark == 1]
    return sorted(held, key=lambda head: entries[head][2])


def hand_over(region: Region, index: int, ring: int, used: int, heads: list[int]) -> None:
    """Makes a fresh region's queue one whose back end left `heads` undone; used: its used index.

    The heads are the queue's own, each once.
    """
    entries = [(0, 0, 0)] * ring
    for counter, head in enumerate(heads):
        entries[head] = (1, 0, counter)
    data = _HEADER.pack(0, 1, ring, 0, used) + b"".join(_ENTRY.pack(*item) for item in entries)
    os.pwrite(region.fd, data, region.offset + index * _part(region.size))


def _part(size: int) -> int:
    return -(-inflight_size(size) // _ALIGNMENT) * _ALIGNMENT


def _check(queues: int, size: int) -> int:
    try:
        part = _part(size)
    except ValueError as error:
        raise VhostUserError(f"An in-flight region is impossible: {error}.") from error
    if not 0 < queues <= 256:
        raise VhostUserError(f"An in-flight region for {queues} queues is impossible.")
    return queues * part
