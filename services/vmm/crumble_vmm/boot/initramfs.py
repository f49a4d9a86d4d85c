"""initramfs writer: a cpio archive in the "newc" format (Linux, early-userspace/buffer-format).

Deterministic: inode numbers count up, times and owners are zero. The archive's size is known before
any content is written, so it goes straight into guest memory, with no copy of the whole in between.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass

from crumble_common.errors import InternalError

_TRAILER = "TRAILER!!!"
_HEADER_SIZE = 110


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the archive. data: a file's content or a link's target."""

    path: str
    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)


class Initramfs:
    """An archive under construction; parents of a path are added as needed."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Adds a directory."""
        self._add(Member(path, stat.S_IFDIR | mode))

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Adds a regular file."""
        self._add(Member(path, stat.S_IFREG | mode, data))

    def symlink(self, path: str, target: str) -> None:
        """Adds a symbolic link."""
        self._add(Member(path, stat.S_IFLNK | 0o777, target.encode()))

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Adds a device node."""
        self._add(Member(path, stat.S_IFCHR | mode, rdev=(major, minor)))

    def _add(self, member: Member) -> None:
        path = member.path
        if path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
            raise InternalError(f"{path!r} is no initramfs path.", code="vmm.initramfs")
        if path in self._members:
            raise InternalError(f"{path!r} is in the initramfs twice.", code="vmm.initramfs")
        parent = path.rpartition("/")[0]
        if parent and parent not in self._members:
            self.directory(parent)
        self._members[path] = member

    @property
    def size(self) -> int:
        """Bytes of the archive."""
        named = [(member.path, len(member.data)) for member in self._members.values()]
        return sum(_padded(path) + _up(size) for path, size in [*named, (_TRAILER, 0)])

    def chunks(self) -> Iterator[bytes]:
        """The archive, piece by piece."""
        for number, member in enumerate(self._members.values(), 1):
            yield _header(number, member)
            if member.data:
                yield member.data
                yield bytes(-len(member.data) % 4)
        yield _header(0, Member(_TRAILER, 0))

    def write_into(self, target: memoryview) -> int:
        """Writes the archive at the start of `target`; gives its size. ValueError when it is short."""
        if len(target) < self.size:
            raise ValueError(f"the initramfs needs {self.size} bytes, {len(target)} are there")
        at = 0
        for chunk in self.chunks():
            target[at : at + len(chunk)] = chunk
            at += len(chunk)
        return at


def _up(size: int) -> int:
    return (size + 3) & ~3


def _padded(path: str) -> int:
    return _up(_HEADER_SIZE + len(path.encode()) + 1)


def _header(number: int, member: Member) -> bytes:
    name = member.path.encode() + b"\0"
    links = 0 if member.path == _TRAILER else 2 if stat.S_ISDIR(member.mode) else 1
    fields = (
        number,
        member.mode,
        0,  # uid
        0,  # gid
        links,
        0,  # mtime
        len(member.data),
        0,  # major and minor of the archive's own device
        0,
        *member.rdev,
        len(name),
        0,  # check: only in the other format
    )
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return head + bytes(-len(head) % 4)
