"""Runs the `crumble` command over the fake services, in a world of its own, and counts what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from framework.leftovers import KEPT
from framework.ready import readable

TESTS = Path(__file__).parents[1]
LIMIT = 120


def _default_signals() -> None:
    """Whoever runs the tests may ignore some: a shell's background job does."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class World:
    """A runtime and a data directory; commands run with them."""

    def __init__(self, where: Path, module: str = "framework.fake_crumble") -> None:
        self.runtime = where / "run"
        self.data = where / "data"
        self.scratch = where / "tmp"
        self.scratch.mkdir()
        self.module = module
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(TESTS),
            "CRUMBLE_RUNTIME_DIR": str(self.runtime),
            "CRUMBLE_DATA_DIR": str(self.data),
            "TMPDIR": str(self.scratch),
            # Tests count processes; those of the reserve (test_reserve.py) turn it on.
            "CRUMBLE_RESERVE": "0",
        }
        self.environment.pop("CRUMBLE_LOG", None)
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", self.module, *words],
            env=self.environment,
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "preexec_fn": _default_signals,
            }
            | options,
        )

    def run(self, *words: str, data: bytes | None = None) -> subprocess.CompletedProcess[str]:
        process = self.start(
            *words, stdin=subprocess.PIPE if data is not None else subprocess.DEVNULL
        )
        try:
            stdout, stderr = process.communicate(data, timeout=LIMIT)
        finally:
            process.kill()
        return subprocess.CompletedProcess(
            words, process.returncode, stdout.decode(), stderr.decode("utf-8", "replace")
        )

    def up(self) -> None:
        assert self.run("up", "--detach").returncode == 0

    def services(self) -> dict[str, int]:
        """The processes that belong to this world, by name and pid."""
        found = {}
        marker = f"CRUMBLE_RUNTIME_DIR={self.runtime}".encode()
        for entry in Path("/proc").iterdir():
            try:
                if marker in (entry / "environ").read_bytes():
                    name = (entry / "comm").read_text().strip()
                    if "Z" not in (entry / "stat").read_text().rpartition(")")[2][:3]:
                        found[f"{name}/{entry.name}"] = int(entry.name)
            except OSError:
                continue
        return found

    def pid(self, prefix: str) -> int:
        """The pid of a service: "vmm", "fsd", "ocid", "fork"."""
        pids: list[int] = []

        def there() -> bool:
            pids[:] = [
                pid for name, pid in self.services().items() if name.startswith(f"crumble-{prefix}")
            ]
            return bool(pids)

        eventually(there, f"no {prefix}")
        return pids[0]

    def left(self) -> list[str]:
        """What there still is of what was started: processes, runtime files, temporary files."""
        files = [*self.scratch.iterdir()]
        files += [*self.runtime.iterdir()] if self.runtime.exists() else []
        files = [path for path in files if path.name not in KEPT]
        return [*self.services(), *map(str, files)]

    def assert_nothing_left(self) -> None:
        eventually(lambda: not self.left(), lambda: f"left: {self.left()}")

    def end(self) -> None:
        for pid in self.services().values():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def eventually(condition: Callable[[], object], message: str | Callable[[], str]) -> None:
    """Waits for what another process is about to do."""
    deadline = time.monotonic() + LIMIT / 2
    while not condition():
        assert time.monotonic() < deadline, message if isinstance(message, str) else message()
        time.sleep(0.02)


def read_until(pipe: IO[bytes], text: bytes) -> bytes:
    """Reads a pipe until `text` has come."""
    data = b""
    while text not in data:
        assert readable(pipe, timeout=LIMIT / 2), f"only {data!r} came"
        more = os.read(pipe.fileno(), 4096)
        assert more, f"ended with {data!r}"
        data += more
    return data
