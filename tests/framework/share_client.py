"""A FUSE client for host shares, where contents need an open file: each call opens one and closes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from framework.fuse_client import DirEntry, FuseClient


def failing(number: int) -> Any:
    """Expects a reply of this errno."""
    return pytest.raises(OSError, match=f"Errno {number}]")


class ShareClient(FuseClient):
    """As FuseClient; fh 0 stands for "open it for this call"."""

    def _with(self, nodeid: int, flags: int, call: Any) -> Any:
        fh = self.open(nodeid, flags)
        try:
            return call(fh)
        finally:
            self.release(nodeid, fh)

    def read(self, nodeid: int, offset: int, size: int, fh: int = 0) -> bytes:
        """READ."""
        if fh:
            return super().read(nodeid, offset, size, fh)
        read = super().read
        return self._with(nodeid, os.O_RDONLY, lambda fh: read(nodeid, offset, size, fh))

    def write(self, nodeid: int, offset: int, data: bytes, fh: int = 0, flags: int = 0) -> int:
        """WRITE."""
        if fh:
            return super().write(nodeid, offset, data, fh, flags)
        write = super().write
        return self._with(nodeid, os.O_RDWR, lambda fh: write(nodeid, offset, data, fh, flags))

    def fallocate(self, nodeid: int, mode: int, offset: int, length: int, fh: int = 0) -> None:
        """FALLOCATE."""
        call = super().fallocate
        self._with(nodeid, os.O_RDWR, lambda fh: call(nodeid, mode, offset, length, fh))

    def lseek(self, nodeid: int, offset: int, whence: int, fh: int = 0) -> int:
        """LSEEK."""
        call = super().lseek
        return self._with(nodeid, os.O_RDONLY, lambda fh: call(nodeid, offset, whence, fh))

    def copy_range(
        self, nodeid: int, offset: int, to: int, to_offset: int, length: int, fh: int = 0, to_fh: int = 0
    ) -> int:  # fmt: skip
        """COPY_FILE_RANGE."""
        call = super().copy_range

        def copy(fh: int) -> int:
            return self._with(
                to, os.O_RDWR, lambda to_fh: call(nodeid, offset, to, to_offset, length, fh, to_fh)
            )

        return self._with(nodeid, os.O_RDONLY, copy)

    def create(
        self, parent: int, name: bytes, mode: int = 0o644, flags: int = os.O_RDWR | os.O_CREAT
    ) -> Any:
        """CREATE; the file is closed again (fh 0)."""
        entry, fh = super().create(parent, name, mode, flags | os.O_RDWR)
        self.release(entry.nodeid, fh)
        return entry, 0

    def listdir(
        self, nodeid: int, size: int = 4096, fh: int = 0, *, plus: bool = False
    ) -> list[DirEntry]:
        """All entries, of an open directory."""
        listed = super().listdir
        fh = self.opendir(nodeid)
        try:
            return listed(nodeid, size, fh, plus=plus)
        finally:
            self.release(nodeid, fh)


Sharing = Callable[..., ShareClient]  # of shares, and of a layer below them
