"""The installed `crumble` command over its real services and real guests, in a world of its own.

The kernel and Debian's userland come from the user's store, once downloaded: each world's store begins
as a copy of it by hard links (files of a store are replaced, never rewritten), so that a world can
spoil its own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crumble_common import paths
from framework import assets
from framework.command import World
from framework.leftovers import Leftovers, processes

IMAGE = "deb:trixie"
COMMAND = Path(sys.executable).with_name("crumble")
# What users of a store hold while they do; not theirs to take along.
_TRANSIENT = ("work", "leases", "lock", "debian")


class RealWorld(World):
    """A runtime and a data directory of the real command's. filled: with a kernel and IMAGE."""

    def __init__(self, where: Path, *, filled: bool = True) -> None:
        where.mkdir(parents=True, exist_ok=True)
        super().__init__(where)
        if filled:
            copy_store(self.data)
        self.leftovers = Leftovers(self.runtime, self.data, self.scratch)
        for name in ("CRUMBLE_DEBIAN_MIRROR", "CRUMBLE_INSECURE_REGISTRIES", "PYTHONPATH"):
            self.environment.pop(name, None)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        streams = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        given = {"env": self.environment, **streams, **options}
        return subprocess.Popen([str(COMMAND), *words], **given)

    def services(self) -> dict[str, int]:
        return {f"{name}/{pid}": pid for pid, name in processes(self.runtime).items()}

    def left(self) -> list[str]:
        return self.leftovers.found()

    def assert_nothing_left(self) -> None:
        self.leftovers.assert_none()


@contextlib.contextmanager
def real_world(where: Path, *, filled: bool = True) -> Iterator[RealWorld]:
    """A world; whatever is left of it at the end is ended, and is a failure."""
    world = RealWorld(where, filled=filled)
    try:
        yield world
        world.assert_nothing_left()
    finally:
        world.end()
        shutil.rmtree(where, ignore_errors=True)


@functools.cache
def _stocked() -> Path:
    """The user's store with a kernel and IMAGE in it; skips where they cannot be had."""
    assets.kernel()
    done = subprocess.run(
        [str(COMMAND), "pull", IMAGE], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no {IMAGE}: {done.stderr.strip()}")
    return paths.data_dir()


def copy_store(to: Path) -> None:
    """Fills a data directory from the user's, without copying bytes where the file system allows."""
    source = _stocked()
    for name in ("store", "guest"):
        ignore = shutil.ignore_patterns(*(_TRANSIENT if name == "store" else ("tmp*",)))
        if (source / name).is_dir():
            shutil.copytree(source / name, to / name, ignore=ignore, copy_function=_link)
    for place in (to, to / "store"):
        place.chmod(0o700)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def refused(world: World, *words: str, status: int = 125, says: str = "") -> str:
    """Runs what cannot work: checks its exit status and that it says one sentence and what to do.

    says: a regular expression. Returns what was said. Nothing on stdout, nothing left behind.
    """
    done = world.run(*words)
    assert done.returncode == status, done
    assert done.stdout == ""
    check_sentence(done.stderr, says)
    world.assert_nothing_left()
    return done.stderr


def check_sentence(text: str, says: str = "") -> None:
    """One line for a person: what is wrong, then what to do; never a stack."""
    assert re.fullmatch(r"crumble: \S[^\n]*\.\n", text), text
    assert "Traceback" not in text and "bug" not in text, text
    assert re.search(says, text), f"{says!r} is not said: {text}"
