"""Kernels that are none, guests that end in every way and eat what they have: said, contained, cleared.

Panics and wrong files as kernels are in tests/functional/test_crumble_guest.py, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from framework import assets
from framework.command import eventually
from framework.real_crumble import IMAGE, RealWorld, real_world, refused
from framework.tiny_kernel import TinyKernel

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealWorld]:
    with real_world(tmp_path_factory.mktemp("guests") / "w") as made:
        yield made


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("spin", "agent did not answer within 1 s. See with --dmesg"),
        ("wait", "agent did not answer within 1 s. See with --dmesg"),
        ("power_off", "The guest powered off before it was ready. Run with --dmesg"),
        ("reset", "The guest was reset before it was ready. Run with --dmesg"),
        ("crash", "The guest crashed: .* Run with --dmesg"),
    ],
)
def test_kernels_that_never_come_to_an_agent(
    world: RealWorld, tmp_path: Path, does: str, says: str
) -> None:
    kernel = TinyKernel()
    getattr(kernel, does)()
    path = tmp_path / "kernel"
    path.write_bytes(kernel.image())
    refused(world, "run", "--kernel", str(path), "--boot-timeout", "1", IMAGE, "true", says=says)


def test_kernels_that_are_none_or_cut_off(world: RealWorld, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    whole = assets.kernel().image.read_bytes()
    for data, why in (
        (b"", "it is too short"),
        (whole[:40], "it is too short"),
        (whole[: len(whole) // 2], "it is cut off"),
        (whole[:-1], "it is cut off"),
        (b"\x1f\x8b\x08" + bytes(500), "its gzip data is damaged"),
        (b"\x7fELF" + bytes(500), "it has no riscv64 Image header"),
    ):
        path.write_bytes(data)
        says = f"is not a riscv64 Linux kernel: {why}.*Give the path of a riscv64 Image"
        refused(world, "run", "--kernel", str(path), IMAGE, "true", says=says)
    for path in (tmp_path, tmp_path / "none", Path("/dev/zero")):
        says = "There is no kernel .* Give the path of"
        refused(world, "run", "--kernel", str(path), IMAGE, "true", says=says)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("b", "The guest was reset from inside"),
        ("o", "The guest powered off from inside"),
        ("c", "panicked"),
    ],
)
def test_ends_from_inside(world: RealWorld, key: str, says: str) -> None:
    script = f"echo {key} > /proc/sysrq-trigger; sleep 600"
    refused(world, "run", IMAGE, "sh", "-c", script, says=says)


def test_memory_that_runs_out_is_the_guests(world: RealWorld) -> None:
    """The guest's kernel ends the eater, and what is left of the guest goes on."""
    script = "tail /dev/zero; echo ended with $?"
    done = world.run("run", "-m", "128m", IMAGE, "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, "ended with 137\n"), done
    done = world.run("run", "-m", "128m", IMAGE, "tail", "/dev/zero")
    assert done.returncode == 137
    world.assert_nothing_left()


def test_a_file_system_that_is_full_is_the_guests(world: RealWorld) -> None:
    """What it writes is bounded; what goes on then finds room again."""
    script = "fallocate -l 9G /big; echo $?; echo small > /small; cat /small; fallocate -l 1G /part"
    done = world.run("run", IMAGE, "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, "1\nsmall\n"), done
    assert "No space left on device" in done.stderr
    world.assert_nothing_left()


def test_a_fork_bomb_stays_in_the_guest(world: RealWorld) -> None:
    """The host has no process more, and the command ends in its time."""
    process = world.start(
        "run", "-m", "192m", "--timeout", "3", IMAGE, "bash", "-c", ":(){ :|:& };:; sleep 600"
    )
    world.pid("vmm")
    most = 0

    def ended() -> bool:
        nonlocal most
        most = max(most, len(world.services()))
        return process.poll() is not None

    eventually(ended, "it does not end")
    assert process.returncode == 124
    assert most <= 10  # the command, the forkserver, and a few of each service
    world.assert_nothing_left()


def test_processes_a_guest_needs_cannot_be_killed_from_inside(world: RealWorld) -> None:
    script = "kill -9 -1; kill -9 1; kill -SEGV 1; for p in /dev/vport*; do (true > $p); done; echo alive"
    done = world.run("run", IMAGE, "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done
    world.assert_nothing_left()
