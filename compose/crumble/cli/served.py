"""Commands that began before they were asked for: what `crumble up` keeps for the launcher.

`main` is a process of the supervisor's forkserver that has imported what `run` and `exec` need. It forks one
that waits on the socket `commands`; that one becomes the command of the launcher (native/launcher/crumble.c,
where the messages are) that comes, and the next is forked. What the command is, where and under which
limits, the kernel says in /proc/PID of the launcher. Who differs from us in a way that cannot be taken over (another
root, another Crumble, more rights) is declined, and does it itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path

from crumble.cli.main import finished
from crumble.supervisor.locate import is_locked

MODULES = (
    "crumble.cli.run",
    "crumble.cli.run_vm",
    "crumble.cli.exec",
    "crumble.sdk.wires",
    "termios",
)
_STREAMS = 3
_STATUS = struct.Struct("=i")
_CREDENTIALS = struct.Struct("=iII")
# Only processes that share these see the same files, users and hosts, and may the same: proc(5).
_SEEN = ("root", "ns/mnt", "ns/user", "ns/net", "ns/pid", "ns/uts", "ns/ipc", "ns/time")
_RIGHTS = ("Uid", "Gid", "Groups", "CapEff", "NoNewPrivs", "Seccomp")
_UTF8 = ("utf-8", "utf8")
# After a command was taken, s: it needs the processor more than the next one that waits.
_QUIET = 0.02


def main() -> int:
    """Keeps one waiting until we are ended, or one could not even wait."""
    given = json.loads(os.environ["CRUMBLE_FDS"])
    listener = socket.socket(fileno=given["commands"])
    lifeline = int(os.environ["CRUMBLE_LIFELINE"])
    launcher = _identity(os.environ["CRUMBLE_LAUNCHER"])
    listener.setblocking(False)
    for name in MODULES:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    signal.signal(signal.SIGTERM, _end)
    while _one_more(listener, lifeline, launcher):
        time.sleep(_QUIET)
    return 1


def _end(_number: int, _frame: object) -> None:
    raise SystemExit(0)


def _one_more(listener: socket.socket, lifeline: int, launcher: tuple[int, ...]) -> bool:
    """Forks one, and waits until it is taken; False when it ended without."""
    reader, writer = os.pipe()
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(reader)
        os._exit(_wait(listener, lifeline, launcher, writer))
    os.close(writer)
    try:
        return os.read(reader, 1) == b"t"
    except SystemExit:
        os.kill(pid, signal.SIGTERM)  # politely: it may just have become somebody's command
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        raise
    finally:
        os.close(reader)


def _wait(listener: socket.socket, lifeline: int, launcher: tuple[int, ...], taken: int) -> int:
    """One command's whole life, in the forked process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection = None
    while connection is None:
        ready, _, _ = select.select([listener.fileno(), lifeline], [], [])
        if lifeline in ready:
            return 0
        with contextlib.suppress(OSError):  # somebody else took it, or it has gone
            connection, _ = listener.accept()
    with contextlib.suppress(BrokenPipeError):  # our maker was killed
        os.write(taken, b"t")
    home = Path(listener.getsockname()).parent
    for fd in (taken, lifeline, listener.detach()):
        os.close(fd)
    connection.setblocking(True)
    with contextlib.suppress(OSError):  # the launcher is gone
        if _become(connection, home, launcher):
            connection.send(_STATUS.pack(_status()))
        else:
            connection.send(b"d")
    return 0


def _status() -> int:
    try:
        return finished()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def _become(connection: socket.socket, home: Path, launcher: tuple[int, ...]) -> bool:
    """Takes over what the launcher is; False, with nothing done, when that cannot be."""
    if not is_locked(str(home)):
        return False  # our supervisor is gone
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, *ids = _CREDENTIALS.unpack(credentials)
    place = f"/proc/{pid}"
    if not pid or ids != [os.geteuid(), os.getegid()]:
        return False
    try:
        status = _fields(place)
        environment, arguments = _words(f"{place}/environ"), _words(f"{place}/cmdline")
        if not _alike(place, launcher, status) or not _utf8(environment):
            return False
        _take_limits(pid)
        os.chdir(f"{place}/cwd")
    except (OSError, ValueError, KeyError):
        return False
    streams = _agreed(connection)
    _take_environment(environment)
    _take_streams(streams, environment)
    os.umask(int(status["Umask"], 8))
    _take_signals(int(status["SigIgn"], 16))
    sys.argv[:] = ["crumble", *map(os.fsdecode, arguments[1:])]
    return True


def _agreed(connection: socket.socket) -> list[int]:
    """Its streams, when the launcher says go; from then on its end is ours."""
    own = os.pidfd_open(os.getpid())
    socket.send_fds(connection, [b"r"], [own])
    os.close(own)
    go, streams, _, _ = socket.recv_fds(connection, 1, _STREAMS)
    if go != b"g" or len(streams) != _STREAMS:
        # It has lost patience, or gone: then what we read may be of another with its pid.
        os._exit(0)
    threading.Thread(target=_watch, args=(connection,), daemon=True).start()
    return streams


def _watch(connection: socket.socket) -> None:
    """Ends us as the launcher ended: without a word, as whoever is killed."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    os._exit(128 + signal.SIGKILL)


def _alike(place: str, launcher: tuple[int, ...], status: dict[str, str]) -> bool:
    """The launcher is of our installation, sees what we see, and has our rights."""
    own = _fields("/proc/self")
    return (
        _identity(f"{place}/exe") == launcher
        and all(_same(f"{place}/{what}", f"/proc/self/{what}") for what in _SEEN)
        and all(status[name] == own[name] for name in _RIGHTS)
        and _label(place) == _label("/proc/self")
    )


def _label(place: str) -> bytes:
    """What a security module (AppArmor, SELinux) confines it by."""
    try:
        return Path(f"{place}/attr/current").read_bytes()
    except OSError:
        return b""  # there is none


def _same(one: str, other: str) -> bool:
    return Path(one).samefile(other)


def _identity(path: str) -> tuple[int, ...]:
    """A file that was replaced is another one."""
    found = Path(path).stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _words(path: str) -> list[bytes]:
    """What is NUL-terminated there."""
    with open(path, "rb") as file:
        return file.read().split(b"\0")[:-1]


def _fields(place: str) -> dict[str, str]:
    """Its status, by the names of proc(5)."""
    with open(f"{place}/status", encoding="ascii", errors="replace") as file:
        fields = (line.partition(":") for line in file)
        return {name: value.strip() for name, _, value in fields}


def _variable(environment: list[bytes], name: str) -> str:
    mark = f"{name}=".encode()
    return next((os.fsdecode(it[len(mark) :]) for it in environment if it.startswith(mark)), "")


def _locale(environment: list[bytes]) -> str:
    found = (_variable(environment, name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    return next(filter(None, found), "C")


def _utf8(environment: list[bytes]) -> bool:
    """Python of its own would have UTF-8 there, as we have (PEP 538, 540)."""
    locale = _locale(environment)
    codeset = locale.partition(".")[2].partition("@")[0].lower()
    return locale in ("C", "POSIX") or codeset in _UTF8


def _take_limits(pid: int) -> None:
    """ValueError where the launcher may more than we."""
    for name in dir(resource):
        if name.startswith("RLIMIT_"):
            kind = getattr(resource, name)
            resource.setrlimit(kind, resource.prlimit(pid, kind))


def _take_environment(environment: list[bytes]) -> None:
    os.environb.clear()
    for word in environment:
        name, equals, value = word.partition(b"=")
        if name and equals:
            os.environb[name] = value
    time.tzset()


def _take_streams(fds: list[int], environment: list[bytes]) -> None:
    errors = "surrogateescape" if _locale(environment) in ("C", "POSIX") else "strict"
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    lines = 1 if os.isatty(1) else -1
    sys.stdin = open(0, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", lines, "utf-8", errors, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115


def _take_signals(ignored: int) -> None:
    """What our caller has ignored stays so; Python's own choice else."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}:
        ignore = ignored >> (number - 1) & 1
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_IGN if ignore else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
