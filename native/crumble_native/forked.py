"""Pages that a forked process has copied and that hold again what they held. See native/include/crumble/forked.h.

keep()         in the process that forks, before it does
give_back()    in a forked one, when it has nothing to do
"""

from __future__ import annotations

from typing import Any

from crumble_native._core import ffi, lib

# Bytes. A process with more has other things in it than Python's objects (a sanitizer's, say).
_MOST = 256 << 20

_ranges: Any = ffi.NULL
_count = 0
_kept = 0


def keep() -> int:
    """Keeps what this process' Python has in its memory; the bytes. Once, while there is one thread. OSError."""
    global _ranges, _count, _kept
    with open("/proc/self/maps") as maps:
        found = without(anonymous(maps.read(), int(lib.crb_forked_thread())), _segments())
    size = sum(end - start for start, end in found)
    if not 0 < size <= _MOST:
        return 0
    ranges = ffi.new("uint64_t[]", [address for item in found for address in item])
    kept = ffi.new("uint64_t *")
    status = lib.crb_forked_keep(ranges, len(found), kept)
    if status < 0:
        raise OSError(-status, "a copy of this process's memory could not be kept")
    _ranges, _count, _kept = ranges, len(found), kept[0]
    return size


def give_back() -> int:
    """Pages of a process forked off one that has kept its: those that hold the same are that one's again; how many were
    that, its own or not. No other thread may do anything meanwhile that writes to Python's objects.
    """
    return int(lib.crb_forked_return(_ranges, _count, _kept)) if _count else 0


def _segments() -> list[tuple[int, int]]:
    count = int(lib.crb_forked_segments(ffi.NULL, 0))
    ranges = ffi.new("uint64_t[]", 2 * count)
    lib.crb_forked_segments(ranges, count)
    return [(ranges[2 * number], ranges[2 * number + 1]) for number in range(count)]


def anonymous(maps: str, thread: int) -> list[tuple[int, int]]:
    """Of /proc/PID/maps (proc(5)): where an allocator has its memory. Not: the heap and the stack, where C libraries
    write, too, and where `thread` is.
    """
    found = []
    for line in maps.splitlines():
        span, rights, _, _, inode, *name = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in span.split("-"))
        if rights == "rw-p" and inode == "0" and not name and not start <= thread < end:
            found.append((start, end))
    return found


def without(spans: list[tuple[int, int]], others: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of `spans` is in none of `others`. [start, end) each."""
    for low, high in others:
        spans = [
            part
            for start, end in spans
            for part in ((start, min(end, low)), (max(start, high), end))
            if part[0] < part[1]
        ]
    return spans
