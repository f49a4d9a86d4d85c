"""A VM's log: what its console and its main command printed, bounded, and who follows it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from crumble_common.messages.client import LogData

# Two files of at most this size, the older and the younger, bytes.
_LIMIT = 2 << 20


class VmLog:
    """Appends; forgets the oldest; brings what is new to its followers."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self.ended = False
        self._older = path.with_suffix(".log.1")
        self._file = path.open("wb", buffering=0)
        self._size = 0
        self._followers: list[Callable[[LogData], None]] = []

    def append(self, data: bytes) -> None:
        """Adds output."""
        if self.ended:
            return
        if self._size + len(data) > _LIMIT:
            self._rotate()
        with contextlib.suppress(OSError):  # a full disk costs the log, not the VM
            self._file.write(data)
        self._size += len(data)
        for follow in self._followers:
            follow(LogData(self.name, data))

    def read(self, tail: int = 0) -> bytes:
        """Everything kept, or the last `tail` lines."""
        data = b"".join(path.read_bytes() for path in (self._older, self.path) if path.exists())
        return b"".join(data.splitlines(keepends=True)[-tail:]) if tail > 0 else data

    def follow(self, follower: Callable[[LogData], None]) -> None:
        """Calls with what is appended from now on, then once with `eof`."""
        self._followers.append(follower)

    def end(self) -> None:
        """Nothing more comes; what is there can still be read."""
        if not self.ended:
            self.ended = True
            self._file.close()
            for follow in self._followers:
                follow(LogData(self.name, b"", eof=True))
            self._followers.clear()

    def remove(self) -> None:
        """Ends it and removes the files."""
        self.end()
        for path in (self.path, self._older):
            path.unlink(missing_ok=True)

    def _rotate(self) -> None:
        self._file.close()
        self.path.replace(self._older)
        self._file = self.path.open("wb", buffering=0)
        self._size = 0
