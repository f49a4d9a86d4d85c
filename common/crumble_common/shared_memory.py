"""Anonymous shared memory: a file descriptor that vanishes with its last holder.

`posix_ipc` objects are unlinked as soon as they are open, so a crash leaves nothing in /dev/shm. Where that
is absent, too small, or where only memfds get huge pages, a memfd takes its place: it is the same to its users.
"""

from __future__ import annotations

import os
from pathlib import Path

import posix_ipc

from crumble_common.errors import HostError

_SHM = "/dev/shm"  # noqa: S108
_HUGE = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"


def create(size: int, label: str) -> int:
    """A zeroed object of `size` bytes; returns its fd (close-on-exec), the caller's to close.

    label: what /proc shows for it. Raises HostError when there is no room for it.
    """
    try:
        if huge_pages() or not _fits(size):
            return _memfd(size, label)
        return _posix(size, label)
    except OSError as error:
        raise HostError(
            f"Cannot make {size >> 20} MiB of shared memory: {error.strerror or error}.",
            code="host.shared_memory",
            hint="Ask for less memory, or free some.",
        ) from error


def huge_pages() -> bool:
    """True when MADV_HUGEPAGE has an effect on memfds here. Never on /dev/shm as distributions mount it."""
    try:
        return "[never]" not in Path(_HUGE).read_text() and "[deny]" not in Path(_HUGE).read_text()
    except OSError:
        return False


def _fits(size: int) -> bool:
    """True when /dev/shm is there and has room: in containers it often has 64 MiB."""
    try:
        info = os.statvfs(_SHM)
    except OSError:
        return False
    return info.f_bavail * info.f_frsize >= size


def _posix(size: int, label: str) -> int:
    name = f"/crumble-{label}-{os.urandom(8).hex()}"
    try:
        made = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600, size=size)
    except (posix_ipc.Error, PermissionError):
        return _memfd(size, label)
    made.unlink()
    fd: int = made.fd
    os.set_inheritable(fd, False)
    return fd


def _memfd(size: int, label: str) -> int:
    fd = os.memfd_create(f"crumble-{label}", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd
