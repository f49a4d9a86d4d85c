"""A snapshot that is being made; and what tells that nothing of one was changed since."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from crumble.snapshots.manifest import Manifest

# In a snapshot: the identity it had when all of it was verified.
TRUSTED = "trusted"
# How a snapshot's files are opened.
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Draft:
    """A snapshot being made, in a directory that nobody else looks at. `discard` it, or `Store.publish`."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self.fds: dict[str, int] = {}

    def create(self, name: str) -> int:
        """A new file of it; closed with the draft."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = self.fds[name] = os.open(name, flags, 0o600, dir_fd=self._fd)
        return fd

    def link(self, name: str, path: str) -> None:
        """A file that is elsewhere below our directory, and does not change."""
        os.link(path, name, dst_dir_fd=self._fd)
        self.fds[name] = os.open(name, READ, dir_fd=self._fd)

    def drop(self, name: str) -> None:
        """Removes a file that turned out not to be needed."""
        os.close(self.fds.pop(name))
        os.unlink(name, dir_fd=self._fd)

    def write(self, name: str, data: bytes) -> None:
        """A small file, whole."""
        fd = self.create(name)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def trust(self, about: Manifest) -> None:
        """Everything in it is what its manifest says: nobody needs to look at that again."""
        self.write(TRUSTED, identity(self._fd, about))

    def sync(self) -> None:
        """On disk, all of it."""
        for fd in (*self.fds.values(), self._fd):
            os.fsync(fd)

    def close(self) -> None:
        """Closes the files, and gives up the lock."""
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def discard(self) -> None:
        """Nothing of it stays. Fine when it was published."""
        if self._fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
        self.close()


def identity(directory: int, about: Manifest) -> bytes:
    """Other bytes when a file of a snapshot was replaced or, as far as its time of change tells, written, or the
    machine was started anew.
    """
    lines = [_BOOT.read_text().strip()]
    for name in sorted(about.files):
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        lines.append(f"{name} {info.st_ino} {info.st_size} {info.st_mtime_ns}")
    return "\n".join(lines).encode()
