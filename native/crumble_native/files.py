"""File system calls that the os module lacks: openat2, fallocate, renameat2, syncfs. All raise OSError."""

from __future__ import annotations

import os

from crumble_native._core import ffi, lib

# openat2(2): no magic links (/proc/*/fd), no symbolic links at all, stay beneath the directory.
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x02, 0x04, 0x08
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 0x01, 0x02, 0x10


def open_beneath(directory: int, path: bytes, flags: int, mode: int = 0) -> int:
    """Opens `path` below `directory` following no symbolic link; ".." cannot lead out of it."""
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
    return _check(lib.crb_openat2(directory, _name(path), flags | os.O_CLOEXEC, mode, resolve))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with FALLOC_* modes."""
    _check(lib.crb_fallocate(fd, mode, offset, length))


def punch(fd: int, offset: int, length: int) -> None:
    """Makes [offset, offset + length) a hole that reads as zeros; the size stays."""
    _check(lib.crb_fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, length))


def allocate(fd: int, offset: int, length: int) -> None:
    """Gives [offset, offset + length) space; the size stays."""
    _check(lib.crb_fallocate(fd, FALLOC_KEEP_SIZE, offset, length))


def renameat2(
    old_directory: int, old_name: bytes, new_directory: int, new_name: bytes, flags: int
) -> None:
    """renameat2(2)."""
    _check(lib.crb_renameat2(old_directory, _name(old_name), new_directory, _name(new_name), flags))


def birth_time(fd: int) -> int:
    """When the inode was made, ns since the epoch; 0 when not known. O_PATH will do."""
    found = int(lib.crb_birth_time(fd))
    return max(found, 0)


def syncfs(fd: int) -> None:
    """syncfs(2): what was written to the file system of `fd` reaches stable storage."""
    _check(lib.crb_syncfs(fd))


def _name(path: bytes) -> object:
    if b"\0" in path:
        raise ValueError("a path holds a NUL")
    return ffi.from_buffer(path + b"\0")


def _check(value: int) -> int:
    if value < 0:
        raise OSError(-value, os.strerror(-value))
    return value
