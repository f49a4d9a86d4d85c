"""Many commands at once, with a supervisor and without: each has its own output and end, nothing is left."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.real_crumble import IMAGE, RealWorld, real_world

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[RealWorld]:
    with real_world(tmp_path / "w") as made:
        yield made


@pytest.mark.parametrize("supervisor", [True, False])
@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.long)])
def test_many_runs_at_once(world: RealWorld, supervisor: bool, count: int) -> None:
    if supervisor:
        world.up()
    many = [
        world.start("run", "-m", "96m", IMAGE, "sh", "-c", f"echo {number}; exit {number}")
        for number in range(count)
    ]
    for number, process in enumerate(many):
        stdout, stderr = process.communicate(timeout=200)
        assert (process.returncode, stdout, stderr) == (number, f"{number}\n".encode(), b"")
    if supervisor:
        assert world.run("down").returncode == 0


def test_many_that_are_interrupted_at_once(world: RealWorld) -> None:
    """At whatever stage each of them is."""
    many = [world.start("run", "-m", "96m", IMAGE, "sleep", "600") for _ in range(6)]
    world.pid("vmm")
    for process in many:
        process.send_signal(signal.SIGINT)
    for process in many:
        assert process.communicate(timeout=100) == (b"", b"")
        assert process.returncode in (130, -signal.SIGINT)  # before it could take signals
