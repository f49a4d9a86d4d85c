"""A root file system being finished: what maintainer scripts would create, put into a layer's tree."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from typing import IO, Any

from crumble_common.layer_index import Inode
from crumble_ocid.layer_builder import LayerBuilder
from crumble_ocid.tar_reader import Member

_READ = 16 << 10
_KINDS = {"file": "0", "link": "2", "directory": "5"}


class Tree:
    """Paths are text, without a leading "/". mtime_ns: the time given to all that is made here."""

    def __init__(self, builder: LayerBuilder, contents: IO[bytes], mtime_ns: int) -> None:
        self.builder = builder
        self._contents = contents
        self._mtime_ns = mtime_ns

    def find(self, path: str) -> Inode | None:
        """What is at a path."""
        return self.builder.find(path.encode())

    def exists(self, path: str) -> bool:
        """True when there is something at a path, be it a dangling link."""
        return self.find(path) is not None

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted; none when there is no such directory."""
        inode = self.find(path)
        names = inode.children if inode is not None and inode.children is not None else {}
        return sorted(name.decode("utf-8", "surrogateescape") for name in names)

    def read(self, path: str) -> bytes:
        """A file's bytes; none when it is not there."""
        inode = self.find(path)
        if inode is None or not stat.S_ISREG(inode.mode):
            return b""
        self._contents.flush()
        return os.pread(self._contents.fileno(), inode.size, inode.offset)

    def stream(self, path: str) -> IO[bytes]:
        """A file's bytes, to be read here and there; none when it is not there."""
        inode = self.find(path)
        if inode is None or not stat.S_ISREG(inode.mode):
            return io.BytesIO()
        self._contents.flush()
        return io.BufferedReader(_Part(self._contents.fileno(), inode.offset, inode.size), _READ)

    def lines(self, path: str) -> Iterator[str]:
        """A text file's lines, without comments and empty ones."""
        for line in self.read(path).decode("utf-8", "replace").splitlines():
            if (line := line.strip()) and not line.startswith("#"):
                yield line

    def write(self, path: str, data: bytes | str, mode: int = 0o644, gid: int = 0) -> None:
        """Makes or replaces a file."""
        data = data.encode() if isinstance(data, str) else data
        self._add(path, "file", mode, gid, len(data), data=data)

    def default(self, path: str, data: bytes | str, mode: int = 0o644, gid: int = 0) -> None:
        """Makes a file unless something is there."""
        if not self.exists(path):
            self.write(path, data, mode, gid)

    def copy(self, source: str, target: str) -> None:
        """Gives a file a second place, unless there is none or something is there."""
        if self.exists(source):
            self.default(target, self.read(source))

    def directory(self, path: str, mode: int = 0o755, gid: int = 0) -> None:
        """Makes a directory unless it is there."""
        if not self.exists(path):
            self._add(path, "directory", mode, gid)

    def link(self, path: str, target: str) -> None:
        """Makes a symlink, in place of whatever is there but a directory that is not empty."""
        if not self.names(path):
            self._add(path, "link", 0o777, target=target.encode())

    def _add(
        self,
        path: str,
        kind: str,
        mode: int,
        gid: int = 0,
        size: int = 0,
        data: bytes = b"",
        target: bytes = b"",
    ) -> None:
        name = path.encode("utf-8", "surrogateescape")
        member = Member(name, _KINDS[kind], mode, 0, gid, size, self._mtime_ns, target, 0, 0)
        self.builder.add(member, [data] if data else [])


class _Part(io.RawIOBase):
    """Bytes `start` to `start + size` of a file, as a file."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd, self._start, self._size = fd, start, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._at))
        count = os.preadv(self._fd, [memoryview(buffer)[:wanted]], self._start + self._at)
        self._at += count
        return count
