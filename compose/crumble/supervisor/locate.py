"""Where the daemon of this user is. Imports next to nothing: `crumble ps` begins here."""

from __future__ import annotations

import fcntl
import os

from crumble_common import paths
from crumble_common.directories import lock


def find_daemon() -> str:
    """The directory of the supervisor that `crumble up` runs; "" when none does."""
    link = f"{paths.runtime_place()}/daemon"
    try:
        path = os.path.realpath(link, strict=True)
    except OSError:
        return ""
    return path if is_locked(path) else ""


def is_locked(path: str) -> bool:
    """Somebody lives there. Shared, so that several may look at once."""
    fd = lock(path, fcntl.LOCK_SH)
    if fd is not None:
        os.close(fd)
    return fd is None
