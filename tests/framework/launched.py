"""The launcher, beside a Python that has the fake services, in a world of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from framework.command import World, _default_signals, eventually

BUILT = Path(sys.executable).with_name("crumble")
# What it becomes where nobody serves it, once `begin_nothing` was called.
ALONE = 99
_PYTHON = """#!{}
import sys
from framework.fake_crumble import main
sys.exit(main())
"""


class LaunchedWorld(World):
    """Commands are begun by a copy of the launcher."""

    def __init__(self, where: Path) -> None:
        super().__init__(where)
        self.launcher = install(where / "bin")

    def start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        return self.start_by([str(self.launcher), *words], **options)

    def start_by(self, words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """The same by something before the launcher: nohup, setpriv."""
        pipe = subprocess.PIPE
        given = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe}
        given |= {"preexec_fn": _default_signals, "env": self.environment} | options
        return subprocess.Popen(words, **given)

    def serve(self) -> None:
        """`up`; from then on who is not served ends with ALONE."""
        self.up()
        self.waiting()
        _write(self.launcher.with_name("crumble-python"), f"#!/bin/sh\nexit {ALONE}\n")

    def end_by_down(self) -> None:
        """`down`, by a Python that is one."""
        _write(self.launcher.with_name("crumble-python"), _PYTHON.format(sys.executable))
        assert self.run("down").returncode == 0

    def waiting(self) -> int:
        """The pid of the process that waits to be a command."""
        found: list[int] = []

        def there() -> bool:
            parents = {pid: parent(pid) for pid in self._commands()}
            found[:] = [pid for pid, above in parents.items() if above in parents]
            return bool(found)

        eventually(there, "nobody waits")
        return found[-1]

    def server(self) -> int:
        """The pid of the process that makes them."""
        self.waiting()
        commands = self._commands()
        return next(pid for pid in commands if parent(pid) not in commands)

    def _commands(self) -> list[int]:
        return [p for name, p in self.services().items() if name.startswith("crumble-command")]


def install(place: Path) -> Path:
    """A copy of the launcher, with a Python beside it."""
    place.mkdir()
    launcher = place / "crumble"
    launcher.write_bytes(BUILT.read_bytes())
    launcher.chmod(0o755)
    _write(place / "crumble-python", _PYTHON.format(sys.executable))
    return launcher


def parent(pid: int) -> int:
    """0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o755)
    new.replace(path)
