"""The sandbox's system calls; each raises OSError. See native/include/crumble/sandbox.h."""

from __future__ import annotations

import os

from crumble_native._core import ffi, lib


def _checked(value: int) -> int:
    if value < 0:
        raise OSError(-value, os.strerror(-value))
    return value


def no_new_privs() -> None:
    """Neither this process nor its children gain rights by execve."""
    _checked(lib.crb_no_new_privs())


def drop_capabilities(keep: int = 0) -> None:
    """Leaves only the capabilities in the bit mask `keep`."""
    _checked(lib.crb_drop_capabilities(keep))


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(lib.crb_unshare(flags))


def landlock_abi() -> int:
    """The kernel's Landlock ABI; OSError ENOSYS or EOPNOTSUPP when there is none."""
    return _checked(lib.crb_landlock_abi())


def landlock_create(access_fs: int, access_net: int, scoped: int) -> int:
    """A new ruleset's fd."""
    return _checked(lib.crb_landlock_create(access_fs, access_net, scoped))


def landlock_allow_path(ruleset: int, path_fd: int, access: int) -> None:
    """Allows `access` below the directory (or to the file) behind `path_fd`."""
    _checked(lib.crb_landlock_allow_path(ruleset, path_fd, access))


def landlock_restrict(ruleset: int) -> None:
    """Confines this thread, and threads it starts later, to the ruleset."""
    _checked(lib.crb_landlock_restrict(ruleset))


def seccomp_load(program: bytes) -> None:
    """Loads a filter of struct sock_filter instructions for all threads."""
    _checked(lib.crb_seccomp_load(ffi.from_buffer(program), len(program) // 8))
