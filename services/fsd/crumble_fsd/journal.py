"""An append-only record of changes that survives this process being killed at any instruction.

A frame is u32 length, u32 CRC-32, payload; one write(2) each, so the page cache holds all of it or, when
the host itself went down, a torn tail that is dropped when the file is read. Rewriting: temp, fsync,
rename.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable

from crumble_common import log

_FRAME = struct.Struct("<II")
# One request changes a few inodes; a compacted journal is written in frames of this size too.
MAX_FRAME = 16 << 20


class Journal:
    """The file `name` in directory `directory` (a descriptor)."""

    def __init__(self, directory: int, name: str) -> None:
        self._directory = directory
        self._name = name
        self._fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory)
        self.size = 0

    def read(self) -> list[bytes]:
        """The payloads, oldest first; what is torn at the end is cut off."""
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            data = file.read()
        payloads, at = [], 0
        while at + _FRAME.size <= len(data):
            length, check = _FRAME.unpack_from(data, at)
            payload = data[at + _FRAME.size : at + _FRAME.size + length]
            if length > MAX_FRAME or len(payload) < length or zlib.crc32(payload) != check:
                break
            payloads.append(payload)
            at += _FRAME.size + length
        if at < len(data):
            log.warning("upper: the journal's torn end is dropped", bytes=len(data) - at)
            os.ftruncate(self._fd, at)
        self.size = at
        return payloads

    def append(self, payload: bytes) -> None:
        """Adds a frame; on an error (a full disk) the file is as before."""
        frame = _FRAME.pack(len(payload), zlib.crc32(payload)) + payload
        try:
            done = os.pwrite(self._fd, frame, self.size)
            if done != len(frame):
                raise OSError(28, "No space left on device")
        except OSError:
            os.ftruncate(self._fd, self.size)
            raise
        self.size += done

    def sync(self) -> None:
        """What was appended is on stable storage."""
        os.fdatasync(self._fd)

    def rewrite(self, payloads: Iterable[bytes]) -> None:
        """Replaces all frames."""
        temporary = f"{self._name}.new"
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=self._directory)
        size = 0
        try:
            for payload in payloads:
                frame = _FRAME.pack(len(payload), zlib.crc32(payload)) + payload
                if os.write(fd, frame) != len(frame):
                    raise OSError(28, "No space left on device")
                size += len(frame)
            os.fsync(fd)
            here = self._directory
            os.rename(temporary, self._name, src_dir_fd=here, dst_dir_fd=here)
            os.fsync(self._directory)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd, self.size = fd, size

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)
