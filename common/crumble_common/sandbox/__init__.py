"""A service's sandbox, in two stages.

`isolate` (wide) at the very start, while there is one thread: namespaces, no_new_privs.
`apply` (narrow) after everything is opened and before guest or network bytes are read: rlimits,
capabilities, Landlock, seccomp. `seal`, when the control plane is connected. Each layer is reported as "on" or with the reason it is not; one that
the kernel lacks never stops a service, and `crumble doctor` shows it (`probe`).
"""

from __future__ import annotations

import errno
import functools
import os
import resource
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crumble_common.sandbox import landlock, namespaces, seccomp
from crumble_common.sandbox.syscalls import BASE, WRITE_FILES
from crumble_native import sandbox as native

# What Python, libc and name resolution read after start-up, beside Python's own folders.
_SYSTEM_PATHS = (
    "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", "/etc/ld.so.cache", "/etc/localtime",
    "/lib", "/lib64", "/usr/lib", "/usr/share/zoneinfo", "/proc/self", "/proc/cpuinfo",
    "/proc/meminfo", "/sys/devices/system/cpu",
)  # fmt: skip
_NETWORK_PATHS = (
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/ssl",
    "/run/systemd/resolve",
)


@dataclass(frozen=True)
class Profile:
    """What a service may still touch.

    read, write: paths. network: internet sockets. syscalls: names beside BASE (and WRITE_FILES when
    there is anything to write). nofile: limit on open files, 0 keeps it. capabilities: bit mask kept.
    families: of sockets that may still be made when the control plane is connected, without any of
    `network`'s files. sealed: system calls refused from then on.
    """

    read: Sequence[str] = ()
    write: Sequence[str] = ()
    network: bool = False
    syscalls: frozenset[str] = frozenset()
    nofile: int = 0
    capabilities: int = 0
    families: Sequence[int] = ()
    sealed: frozenset[str] = frozenset()


def isolate(*, network: bool = False, keep_ids: bool = False) -> dict[str, str]:
    """The wide stage. Only while the process has one thread. Never raises."""
    return {
        "no_new_privs": _layer(_no_new_privs),
        "namespaces": _layer(lambda: namespaces.isolate(network=network, keep_ids=keep_ids)),
    }


def apply(profile: Profile) -> dict[str, str]:
    """The narrow stage, of the calling thread and those it starts (seccomp: all). Never raises."""
    layers = {
        "no_new_privs": _layer(_no_new_privs),
        "rlimits": _layer(lambda: _limit(profile)),
        "landlock": _layer(lambda: _confine(profile)),
        "capabilities": _layer(lambda: _drop(profile)),
    }
    layers["seccomp"] = _layer(lambda: _filter(profile))
    return layers


def seal(profile: Profile) -> dict[str, str]:
    """After the last connection was made: no socket is made or connected any more. Never raises.

    Landlock does not cover connecting to Unix sockets by path, and behind those of a user's session
    (a message bus, an ssh agent, a container engine) is all that the user may do.
    """
    if profile.network:
        return {}
    return {"sockets": _layer(lambda: _seal(profile))}


def _seal(profile: Profile) -> str:
    if profile.families:
        native.seccomp_load(seccomp.only_sockets(profile.families))
    else:
        native.seccomp_load(_without_sockets())
    if profile.sealed:
        native.seccomp_load(seccomp.denying(profile.sealed))
    return "on"


@functools.cache
def _without_sockets() -> bytes:
    return seccomp.denying(["socket", "connect", "bind", "listen"])


def _layer(enter: Callable[[], str]) -> str:
    try:
        return enter()
    except OSError as error:
        return _reason(error)


def _reason(error: OSError) -> str:
    known = {
        errno.ENOSYS: "off: this kernel does not have it",
        errno.EOPNOTSUPP: "off: disabled when this kernel was started",
        errno.EPERM: "off: not permitted here",
        errno.EINVAL: "off: refused by this kernel (not single-threaded, or not configured)",
        errno.ENOSPC: "off: the host's limit on namespaces is reached or zero",
        errno.EUSERS: "off: namespaces are nested too deep",
    }
    return known.get(error.errno or 0, f"off: {error.strerror}")


def _no_new_privs() -> str:
    native.no_new_privs()
    return "on"


def _drop(profile: Profile) -> str:
    native.drop_capabilities(profile.capabilities)
    return "on"


def _limit(profile: Profile) -> str:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if profile.nofile:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        least = profile.nofile if hard == resource.RLIM_INFINITY else min(profile.nofile, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, least))
    return "on"


def python_paths() -> list[str]:
    """Where modules not imported yet may be read from."""
    # An editable install's packages lie elsewhere: the rooms of those that were imported.
    rooms = [f"{room}/.." for room in _packages()]
    return _folders((*filter(None, sys.path), *rooms, sys.prefix, sys.base_prefix))


@functools.lru_cache(maxsize=4)
def _folders(paths: tuple[str, ...]) -> list[str]:
    folders = {os.path.realpath(path) for path in paths}
    return sorted(path for path in folders if Path(path).is_dir() and path != "/")


def _packages() -> list[str]:
    ours = (
        "crumble",
        "crumble_common",
        "crumble_native",
        "crumble_vmm",
        "crumble_fsd",
        "crumble_ocid",
        "crumble_netd",
    )
    found = [sys.modules[name] for name in ours if name in sys.modules]
    return [path for module in found for path in getattr(module, "__path__", ())]


def _confine(profile: Profile) -> str:
    read = [*_SYSTEM_PATHS, *python_paths(), *profile.read]
    if profile.network:
        read += _NETWORK_PATHS
    internet = profile.network or bool(profile.families)
    return landlock.restrict(read, ["/dev/null", *profile.write], network=internet)


def _filter(profile: Profile) -> str:
    if not seccomp.supported():
        raise OSError(errno.ENOSYS, "no table of system calls for this architecture")
    native.seccomp_load(
        _program(profile.syscalls, bool(profile.write), profile.network, tuple(profile.families))
    )
    return "on"


@functools.lru_cache(maxsize=8)
def _program(syscalls: frozenset[str], writes: bool, network: bool, more: tuple[int, ...]) -> bytes:
    families: list[int] = [socket.AF_UNIX, *more]
    if network:
        families += [socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK]
    allowed = BASE | syscalls | (WRITE_FILES if writes else frozenset())
    return seccomp.program(allowed, families)


def warm(profile: Profile) -> None:
    """For a process that forks others: has at hand what `apply` and `seal` would work out in each."""
    python_paths()
    if seccomp.supported():
        _program(profile.syscalls, bool(profile.write), profile.network, tuple(profile.families))
        _without_sockets()


def probe() -> dict[str, str]:
    """Each layer, "on" or why not, found by entering it in a child process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            layers = {**isolate(), **apply(Profile()), **seal(Profile())}
            os.write(
                writer, "\n".join(f"{name}={state}" for name, state in layers.items()).encode()
            )
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return dict(line.split("=", 1) for line in text.splitlines())
