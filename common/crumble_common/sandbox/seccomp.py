"""The seccomp filter: an allow list as classic BPF (seccomp(2), Linux Documentation/userspace-api).

Order: wrong architecture or x32 → kill; allowed → allow, `socket` only for the profile's families,
`clone` only for threads, `ioctl` not for putting input into a terminal; KILL list → kill the process; anything else → EPERM (ENOSYS for clone3 and
other calls libc probes for, so that it falls back).
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterable

from crumble_common.sandbox.syscalls import KILL, NUMBERS

_LOAD, _EQUAL, _GREATER_EQUAL, _SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
# struct seccomp_data: nr at 0, arch at 4, args from 16; the low half of an argument comes first.
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24
_X32_BIT = 0x40000000
_CLONE_THREAD = 0x10000
# ioctls that put input into a terminal, as if typed: TIOCSTI, TIOCLINUX.
_TYPING = (0x5412, 0x541C)
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3}
_PROBED_BY_LIBC = ("clone3", "openat2", "futex_waitv", "faccessat2", "epoll_pwait2", "fchmodat2")


def supported(machine: str = "") -> bool:
    """True when there is a table of system calls for this architecture."""
    return (machine or platform.machine()) in _AUDIT_ARCH


def _op(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, true, false, value)


def numbers(names: Iterable[str], machine: str) -> list[int]:
    """The numbers of the calls that exist on `machine`; KeyError for a name not in the table."""
    column = 0 if machine == "x86_64" else 1
    found = [NUMBERS[name][column] for name in names]
    return sorted(number for number in found if number is not None)


def _when(number: int, verdict: int) -> bytes:
    return _op(_EQUAL, number, 0, 1) + _op(_RETURN, verdict)


def _sockets(number: int, families: Iterable[int]) -> bytes:
    """`socket` with one of the families: allow; another: EPERM."""
    body = _op(_LOAD, _ARG0)
    for family in sorted(families):
        body += _when(family, _ALLOW)
    body += _op(_RETURN, _ERRNO | errno.EPERM)
    return _op(_EQUAL, number, 0, len(body) // 8) + body


def _threads(number: int) -> bytes:
    """`clone` of a thread: allow; of a process: kill."""
    body = _op(_LOAD, _ARG0) + _op(_SET, _CLONE_THREAD, 0, 1) + _op(_RETURN, _ALLOW)
    body += _op(_RETURN, _KILL)
    return _op(_EQUAL, number, 0, len(body) // 8) + body


def _ioctls(number: int) -> bytes:
    """`ioctl`: all but a few."""
    body = _op(_LOAD, _ARG1)
    for request in _TYPING:
        body += _when(request, _ERRNO | errno.EPERM)
    body += _op(_RETURN, _ALLOW)
    return _op(_EQUAL, number, 0, len(body) // 8) + body


def denying(names: Iterable[str], machine: str = "") -> bytes:
    """A filter on top of another: these calls get EPERM, all others what the other says."""
    code = _op(_LOAD, _NR)
    for number in numbers(names, machine or platform.machine()):
        code += _when(number, _ERRNO | errno.EPERM)
    return code + _op(_RETURN, _ALLOW)


def only_sockets(families: Iterable[int], machine: str = "") -> bytes:
    """A filter on top of another: sockets of other families, and pairs of them, get EPERM."""
    machine = machine or platform.machine()
    code = _op(_LOAD, _NR)
    for number in numbers(["socketpair"], machine):
        code += _when(number, _ERRNO | errno.EPERM)
    code += _sockets(numbers(["socket"], machine)[0], families)
    return code + _op(_RETURN, _ALLOW)


def program(allowed: Iterable[str], families: Iterable[int], machine: str = "") -> bytes:
    """The filter for `machine` (default: this one) as struct sock_filter instructions."""
    machine = machine or platform.machine()
    code = _op(_LOAD, _ARCH) + _op(_EQUAL, _AUDIT_ARCH[machine], 1, 0) + _op(_RETURN, _KILL)
    code += _op(_LOAD, _NR)
    if machine == "x86_64":
        code += _op(_GREATER_EQUAL, _X32_BIT, 0, 1) + _op(_RETURN, _KILL)
    listed = set(allowed)
    for number in numbers(listed - {"socket", "clone", "ioctl"}, machine):
        code += _when(number, _ALLOW)
    code += _sockets(numbers(["socket"], machine)[0], families)
    code += _ioctls(numbers(["ioctl"], machine)[0])
    code += _threads(numbers(["clone"], machine)[0])
    for number in numbers(set(_PROBED_BY_LIBC) - listed, machine):
        code += _when(number, _ERRNO | errno.ENOSYS)
    for number in numbers(KILL - listed, machine):
        code += _when(number, _KILL)
    return code + _op(_RETURN, _ERRNO | errno.EPERM)
