"""Files as a crash-only store needs them: durable renames, locks, and the host's errors in a sentence."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from crumble_common import directories
from crumble_common.errors import HostError

_FULL = {errno.ENOSPC: "The disk is full", errno.EDQUOT: "Your disk quota is used up"}


@contextlib.contextmanager
def host_errors(doing: str, path: Path) -> Iterator[None]:
    """Turns an OSError of the block into a HostError: "Cannot {doing} {path}: …"."""
    try:
        yield
    except OSError as error:
        raise as_host_error(error, doing, path) from error


def as_host_error(error: OSError, doing: str, path: Path) -> HostError:
    """The HostError that says what the file system refused."""
    if error.errno in _FULL:
        return HostError(
            f"{_FULL[error.errno]}: cannot {doing} {path}.",
            code="host.disk_full",
            hint="Free some space (crumble rmi removes images), or set CRUMBLE_DATA_DIR to another disk.",
        )
    hint = ""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "Set CRUMBLE_DATA_DIR to a directory you may write to."
    why = error.strerror or str(error)
    return HostError(f"Cannot {doing} {path}: {why}.", code="host.file", hint=hint)


def commit(file: IO[bytes], temporary: Path, final: Path) -> None:
    """Makes what was written to `temporary` durable and gives it its name."""
    file.flush()
    os.fsync(file.fileno())
    temporary.replace(final)
    directories.sync(final.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file's content, all of it or nothing."""
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            commit(file, temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def try_lock(file: IO[bytes] | int) -> bool:
    """Takes the exclusive lock of an open file; false when somebody else has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_same_file(file: IO[bytes], path: Path) -> bool:
    """True when `path` still names the open file, so that a lock on it means something."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def discard_if_unused(path: Path) -> bool:
    """Removes a file or directory nobody holds locked; true when it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        if not try_lock(fd):
            return False
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    finally:
        os.close(fd)
    return True
