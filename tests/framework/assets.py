"""Real things that tests boot: a stock riscv64 kernel, its modules, a static busybox.

They come from `ocid`, as a user's would, into the user's store, once: the first test that asks
downloads them. A test that asks where the Debian archive cannot be reached is skipped with ocid's reason.
"""

from __future__ import annotations

import fcntl
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from crumble_common import paths
from crumble_common.layer_index import LayerIndex

# Loading them takes time, which most guests save.
_WATCHDOG = ("watchdog", "sunxi_wdt", "wdat_wdt")


@dataclass(frozen=True)
class KernelFiles:
    """A kernel image (raw `Image`) and its modules, dependencies first; those of a watchdog apart."""

    image: Path
    modules: tuple[Path, ...]
    watchdog: tuple[Path, ...]

    def module(self, name: str) -> bytes:
        """A module's contents, uncompressed."""
        (found,) = [path for path in self.modules if path.stem == name]
        return found.read_bytes()


@functools.cache
def kernel() -> KernelFiles:
    """Debian's newest riscv64 kernel."""
    answer = _ocid("kernel")
    modules = [Path(path) for path in answer["modules"]]
    watchdog = tuple(path for path in modules if path.stem in _WATCHDOG)
    others = tuple(path for path in modules if path not in watchdog)
    return KernelFiles(Path(answer["image"]), others, watchdog)


@functools.cache
def busybox() -> bytes:
    """A static riscv64 busybox."""
    answer = _ocid("pull", "deb:trixie/busybox-static")
    for layer in reversed(answer["layers"]):
        if data := _file(layer, b"usr/bin/busybox"):
            return data
    raise AssertionError("the image deb:trixie/busybox-static has no /usr/bin/busybox")


@functools.cache
def pulled(reference: str) -> None:
    """Makes sure that an image is in the user's store."""
    kernel()
    _ocid("pull", reference)


def _file(layer: dict[str, str], path: bytes) -> bytes:
    index = LayerIndex.open(layer["index"])
    row: int | None = 0
    for name in path.split(b"/"):
        row = index.find(row or 0, name)
        if row is None:
            return b""
    entry = index.entry(row or 0)
    with open(layer["contents"], "rb") as contents:
        contents.seek(entry.offset)
        return contents.read(entry.size)


def _ocid(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "crumble_ocid", arguments[0], "--json", *arguments[1:]]
    with _one_at_a_time():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no {' '.join(arguments)}: {done.stderr.strip()}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    with (paths.data_dir() / "tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
