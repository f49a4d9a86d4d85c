"""Landlock: which paths may be read and written (Linux Documentation/userspace-api/landlock.rst).

Rights are named as in linux/landlock.h; what an older kernel's ABI lacks is left out, and said.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from crumble_native import sandbox as native

# Access rights to files: bit numbers of LANDLOCK_ACCESS_FS_*.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_ABI1 = (1 << 13) - 1
_NET_TCP = 0b11  # bind and connect
_SCOPED = 0b11  # abstract Unix sockets and signals to outside

READ = _READ_FILE | _READ_DIR
WRITE = (_ABI1 | _REFER | _TRUNCATE) & ~_EXECUTE & ~_MAKE_BLOCK & ~_MAKE_CHAR
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV


def handled(abi: int) -> int:
    """All file rights the ABI knows: what is not allowed by a rule is refused."""
    rights = _ABI1
    rights |= _REFER if abi >= 2 else 0
    rights |= _TRUNCATE if abi >= 3 else 0
    return rights | (_IOCTL_DEV if abi >= 5 else 0)


def restrict(read: Iterable[str], write: Iterable[str], *, network: bool) -> str:
    """Confines this thread and those it starts. Returns "on", with what the ABI lacks if anything.

    read, write: paths of files or directories; those that do not exist are passed over. Raises OSError.
    """
    abi = native.landlock_abi()
    rights = handled(abi)
    tcp = _NET_TCP if abi >= 4 and not network else 0
    ruleset = native.landlock_create(rights, tcp, _SCOPED if abi >= 6 else 0)
    try:
        for path in read:
            _allow(ruleset, path, READ & rights)
        for path in write:
            _allow(ruleset, path, (READ | WRITE) & rights)
        native.landlock_restrict(ruleset)
    finally:
        os.close(ruleset)
    lacks = [name for least, name in ((3, "truncate"), (4, "tcp"), (6, "signals")) if abi < least]
    return f"on (ABI {abi}: no control of {', '.join(lacks)})" if lacks else "on"


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _FILE_RIGHTS
        native.landlock_allow_path(ruleset, fd, rights)
    finally:
        os.close(fd)
