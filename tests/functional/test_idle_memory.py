"""A VM that has nothing to do gives memory back, and goes on as if it had not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble_common import paths
from framework import assets
from framework.command import World, eventually

pytestmark = [pytest.mark.guest, pytest.mark.slow]

IMAGE = "deb:trixie/busybox-static"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    assets.pulled(IMAGE)
    made = World(tmp_path, "crumble.cli.main")
    made.environment["CRUMBLE_DATA_DIR"] = str(paths.data_dir())
    made.environment["CRUMBLE_RESERVE"] = "0"
    made.up()
    yield made
    made.run("down")
    made.end()
    made.assert_nothing_left()


def copied(pid: int) -> int:
    """KiB of the forkserver's kept pages of which a process has its own copies."""
    total, kept = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:
            kept = "crumble-forked" in line and words[1] == "rw-p"
        elif kept and words[0] == "Anonymous:":
            total += int(words[1])
    return total


def test_a_quiet_vm_gives_memory_back(world: World) -> None:
    run = world.start("run", "--name", "box", IMAGE, "sh", "-c", "echo begun; exec sleep 1000")
    pids = [world.pid(f"{service}.box") for service in ("vmm", "fsd")]
    most = [0, 0]

    def less() -> bool:
        now = [copied(pid) for pid in pids]
        most[:] = map(max, most, now)
        return all(some < high * 0.9 for some, high in zip(now, most, strict=True))

    eventually(less, lambda: f"{most} KiB stay")
    done = world.run("exec", "box", "sh", "-c", "ls / >/l; busybox md5sum /l && cat /etc/hostname")
    assert done.returncode == 0, done.stderr
    assert "box" in done.stdout
    done = world.run("fork", "box", "--name", "other")
    assert done.returncode == 0, done.stderr
    for name in ("box", "other"):
        done = world.run("exec", name, "cat", "/etc/hostname")
        assert (done.returncode, done.stdout.strip()) == (0, name), done.stderr
    assert world.run("stop", "box").returncode == 0
    run.communicate(timeout=60)
