"""Packet captures in the classic pcap format (draft-ietf-opsawg-pcap), to a file or a pipe."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable

_HEADER = struct.Struct("<IHHiIII")
_RECORD = struct.Struct("<IIII")
_MAGIC_NANOSECONDS, _ETHERNET = 0xA1B23C4D, 1
MAX_SNAPLEN = 262_144


def _begun(fd: int) -> bool:
    """A predecessor wrote to it; a pipe does not tell, and gets another header."""
    try:
        return os.fstat(fd).st_size > 0
    except OSError:
        return False


class Capture:
    """Writes frames to `fd`, which is taken over. A pipe whose reader is slow loses frames: `lost`."""

    def __init__(self, fd: int, snaplen: int = MAX_SNAPLEN) -> None:
        self._fd = fd
        self._snaplen = snaplen
        self.frames = self.lost = 0
        os.set_blocking(fd, False)
        self._rest = b""
        if not _begun(fd):
            self._write(_HEADER.pack(_MAGIC_NANOSECONDS, 2, 4, 0, 0, snaplen, _ETHERNET))

    def frame(self, parts: Iterable[bytes | memoryview]) -> None:
        """One frame, as it was on the wire."""
        data = b"".join(parts)
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        kept = data[: self._snaplen]
        self.frames += 1
        self._write(_RECORD.pack(seconds, nanoseconds, len(kept), len(data)) + kept)

    def _write(self, record: bytes) -> None:
        """Whole records only: what a full pipe took half of is finished first."""
        if self._fd < 0:
            return
        try:
            if self._rest:
                self._rest = self._rest[os.write(self._fd, self._rest) :]
            if self._rest:
                self.lost += 1
                return
            self._rest = record[os.write(self._fd, record) :]
        except BlockingIOError:
            self.lost += 1
        except OSError:  # the reader has gone, or the disk is full
            self.lost += 1
            self.close()

    def close(self) -> None:
        """Ends it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
