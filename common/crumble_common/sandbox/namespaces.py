"""Namespaces of a service's own (namespaces(7)): user, IPC, UTS, and net where it needs no network.

Must run while the process has one thread (the kernel refuses a user namespace otherwise). In a new
user namespace this user's ids map to themselves, so files and fds stay usable.
"""

from __future__ import annotations

import os

from crumble_native import sandbox as native

_NEWUTS, _NEWIPC, _NEWUSER, _NEWNET = 0x04000000, 0x08000000, 0x10000000, 0x40000000


def isolate(*, network: bool, keep_ids: bool) -> str:
    """Enters the namespaces. Returns which; raises OSError when the kernel or policy refuses.

    network: stay in the host's net namespace. keep_ids: stay in the host's user namespace when that
    is possible (root, serving files of other users).
    """
    flags = _NEWIPC | _NEWUTS | (0 if network else _NEWNET)
    names = "ipc, uts" + ("" if network else ", net")
    if keep_ids and os.geteuid() == 0:
        try:
            native.unshare(flags)
        except PermissionError:
            pass
        else:
            return f"on ({names})"
    uid, gid = os.geteuid(), os.getegid()
    native.unshare(flags | _NEWUSER)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")
    return f"on (user, {names})"


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # a text file would import its encoding first
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
