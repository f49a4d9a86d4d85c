"""Directories as what is locked and made durable. Imports next to nothing."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def lock(path: str | Path, how: int = fcntl.LOCK_EX) -> int | None:
    """Locks a directory for as long as the returned fd is open; None when somebody else has."""
    fd = os.open(path, _OPEN | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def sync(path: str | Path) -> None:
    """Makes the names in a directory durable."""
    fd = os.open(path, _OPEN)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
