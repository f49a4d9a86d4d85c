"""kill -9 of each process while a real guest is captured or goes on, and many that go on with little memory.

Whoever waits is told in a sentence or gets what was asked for; what is in the store is whole; nothing is left.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble.snapshots.store import Store
from framework.command import eventually
from framework.real_crumble import IMAGE, RealWorld, real_world

pytestmark = [pytest.mark.guest, pytest.mark.slow]

CGROUP = Path("/sys/fs/cgroup/memory")
MIB = 1 << 20


@pytest.fixture
def world(tmp_path: Path) -> Iterator[RealWorld]:
    with real_world(tmp_path / "w") as made:
        yield made
        made.run("down", "-t", "0")


def whole(world: RealWorld) -> None:
    """Nothing is half there, and others work."""
    assert world.run("snapshot", "verify").returncode == 0  # takes away what was left half made
    place = world.data / "snapshots"
    eventually(lambda: not list(place.glob(".*")), "a draft is left")
    done = world.run("run", IMAGE, "echo", "alive")
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def check_line(text: str) -> None:
    """One line; who was killed may be quoted with the end of its log."""
    assert text.startswith("crumble: ") and text.count("\n") == 1 and "Traceback" not in text, text


def kill(world: RealWorld, service: str) -> None:
    for name, pid in world.services().items():
        if service in name:
            os.kill(pid, signal.SIGKILL)


def capture_and_kill(world: RealWorld, service: str) -> None:
    place = world.data / "snapshots"
    assert world.run("run", "-d", "--name", "box", IMAGE, "sleep", "9999").returncode == 0
    world.run("exec", "box", "sh", "-c", "head -c 24M /dev/zero | tr '\\0' x > /big")
    process = world.start("snapshot", "create", "box", "one")
    eventually(lambda: list(place.glob(".tmp-*/memory")) or process.poll() is not None, "never")
    kill(world, service)
    _, stderr = process.communicate(timeout=60)
    if process.returncode:
        check_line(stderr.decode())
        assert "one" not in Store(place).names()
    else:
        size = world.run("run", "--from", "one", "stat", "-c%s", "/big").stdout
        assert size == f"{24 * MIB}\n"
        world.run("snapshot", "rm", "one")
    whole(world)
    world.run("stop", "-t", "0", "box")


def test_a_process_that_dies_while_a_vm_is_captured(world: RealWorld) -> None:
    world.run("run", IMAGE, "true")  # the others go on from its boot
    world.up()
    for service in ("vmm.box", "fsd.box", "netd.box", "fork", "ocid"):
        capture_and_kill(world, service)


def run_and_kill(world: RealWorld, service: str) -> None:
    process = world.start("run", IMAGE, "echo", "two")
    eventually(
        lambda: process.poll() is not None or any(service in name for name in world.services()),
        "never",
    )
    if service:
        kill(world, service)
    else:
        process.kill()  # with the supervisor in it
    stdout, stderr = process.communicate(timeout=60)
    if process.returncode > 0:
        check_line(stderr.decode())
    elif process.returncode == 0:
        assert stdout == b"two\n"
    whole(world)


def test_a_process_that_dies_while_a_run_goes_on(world: RealWorld) -> None:
    world.run("run", IMAGE, "true")
    for service in ("netd", "fork", "vmm", ""):
        run_and_kill(world, service)


@pytest.fixture
def little(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A control group with so much memory."""
    group = CGROUP / f"crumble-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(request.param * MIB))
    except OSError:
        pytest.skip("no control group can be made here")
    yield group
    eventually(lambda: not (group / "cgroup.procs").read_text(), "somebody is left in it")
    group.rmdir()


@pytest.mark.parametrize(
    ("little", "count"),
    [(140, 12), pytest.param(700, 200, marks=pytest.mark.long)],
    indirect=["little"],
)
def test_many_that_go_on_with_little_memory(world: RealWorld, little: Path, count: int) -> None:
    """The kernel kills whom it likes: the command says so, those that are left answer, nothing leaks."""
    world.run("run", IMAGE, "true")

    def enter() -> None:
        (little / "cgroup.procs").write_text(str(os.getpid()))

    daemon = world.start("up", preexec_fn=enter)
    eventually(lambda: (world.runtime / "daemon").exists() or daemon.poll() is not None, "not up")
    made = world.run("run", "-d", "--name", "box", IMAGE, "sleep", "9999")
    assert made.returncode == 0, made.stderr
    done = world.run("fork", "-n", str(count), "box")
    if done.returncode:
        check_line(done.stderr)
    else:
        assert len(done.stdout.split()) == count
    listed = world.run("ps", "-q")
    for name in listed.stdout.split()[:4]:
        answer = world.run("exec", name, "echo", "on")
        if answer.returncode:
            check_line(answer.stderr)
    world.run("down", "-t", "0")
    daemon.terminate()
    daemon.communicate(timeout=60)
    assert not list((world.data / "snapshots").glob(".tmp-*/manifest.json"))
    whole(world)
