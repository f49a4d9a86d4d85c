"""One supervisor's place in the runtime directory, and how the others find it.

    RUNTIME/run-1f2e3d4c/   sockets and logs of one supervisor, which holds a lock on the directory
    RUNTIME/daemon          link to the one that `crumble up` runs, which holds a lock on RUNTIME

Locks are flock on the directories themselves: they end with the process, however it ends, and leave
no file. A run-* directory that nobody has locked belonged to a supervisor that was killed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from pathlib import Path

from crumble.supervisor.locate import is_locked
from crumble_common import paths
from crumble_common.directories import lock
from crumble_common.errors import HostError, UsageError

# A directory being made is locked before it gets its name; one this old, s, was given up.
_UNFINISHED = 60.0


class Instance:
    """A directory of sockets, ours until `close`. Raises UsageError when a daemon runs already."""

    def __init__(self, *, daemon: bool = False) -> None:
        self.runtime = paths.runtime_dir()
        self.daemon = daemon
        self._locks: list[int] = []
        if daemon:
            self._locks.append(_be_the_daemon(self.runtime))
        remove_stale(self.runtime)
        self.path, held = _make(self.runtime)
        self._locks.append(held)
        self.logs.mkdir()

    @property
    def logs(self) -> Path:
        """Where services and VMs log."""
        return self.path / "logs"

    def address(self, socket: str) -> str:
        """The ZeroMQ address of one of our sockets."""
        return f"ipc://{self.path}/{socket}"

    def announce(self) -> None:
        """Lets clients find this daemon; its sockets must be bound."""
        link = self.path / "link"
        link.symlink_to(self.path.name)
        link.replace(self.runtime / "daemon")

    def close(self) -> None:
        """Removes the directory and gives up the locks."""
        link = self.runtime / "daemon"
        with contextlib.suppress(OSError):
            if self.daemon and link.readlink() == Path(self.path.name):
                link.unlink()
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Gives up the locks only: in a forked child, which must not keep them alive."""
        for held in self._locks:
            os.close(held)
        self._locks = []


def remove_stale(runtime: Path) -> None:
    """Removes what killed supervisors left."""
    for path in (*runtime.glob("run-*"), *runtime.glob("new-*")):
        with contextlib.suppress(OSError):
            young = time.time() - path.stat().st_mtime < _UNFINISHED
            unfinished = path.name.startswith("new-") and young
            if not unfinished and not is_locked(str(path)):
                shutil.rmtree(path, ignore_errors=True)
    link = runtime / "daemon"
    if link.is_symlink() and not link.exists():
        link.unlink(missing_ok=True)


def _make(runtime: Path) -> tuple[Path, int]:
    name = secrets.token_hex(4)
    new, final = runtime / f"new-{name}", runtime / f"run-{name}"
    try:
        new.mkdir(mode=0o700)
        held = lock(str(new))
        new.rename(final)
    except OSError as error:
        raise HostError(
            f"Cannot create {final}: {error.strerror}.",
            code="host.directory",
            hint="Set CRUMBLE_RUNTIME_DIR to a directory of yours on a disk with space.",
        ) from error
    assert held is not None
    return final, held


def _be_the_daemon(runtime: Path) -> int:
    held = lock(str(runtime))
    if held is None:
        raise UsageError(
            "A supervisor is running already.", code="up.running", hint="`crumble down` ends it."
        )
    return held
