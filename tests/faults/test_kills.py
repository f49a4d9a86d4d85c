"""kill -9 of each process at many moments: who waits is told why in a sentence, and nothing is left.

Kills under a plain `crumble run` are in tests/functional/test_crumble_guest.py.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.command import World, eventually, read_until
from framework.real_crumble import IMAGE, RealWorld, check_sentence, real_world
from framework.registry import Fault, Registry, make_image, running_registry
from framework.registry_archives import Item, sha256, tar

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]

# Its kernel never reaches its init.
SILENT = ("--cmdline", "rdinit=/none panic=-1")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[RealWorld]:
    with real_world(tmp_path / "w") as made:
        yield made


@pytest.fixture
def daemon(world: RealWorld) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor in the foreground."""
    process = world.start("up")
    assert process.stderr is not None
    read_until(process.stderr, b"is running in")
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


@pytest.fixture
def box(world: RealWorld, daemon: subprocess.Popen[bytes]) -> RealWorld:
    """A VM "box" in it that sleeps."""
    assert daemon.poll() is None
    done = world.run("run", "-d", "--name", "box", IMAGE, "sleep", "100000")
    assert done.returncode == 0, done.stderr
    return world


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running_registry() as made:
        yield made


def stalled(registry: Registry) -> tuple[str, str]:
    """An image whose layer stops coming in the middle, and the name of its partial download."""
    archive = tar(Item("file", random.Random(1).randbytes(300_000)))
    layer = gzip.compress(archive)
    registry.faults = {sha256(layer): Fault("stall")}
    reference = registry.add(make_image(layer, diff_ids=[sha256(archive)]))
    return reference, f"{sha256(layer).replace(':', '-')}.partial"


def kill(world: World, prefix: str) -> None:
    os.kill(world.pid(prefix), signal.SIGKILL)


def ends(process: subprocess.Popen[bytes], says: str, status: int = 125) -> None:
    """The command ends with a sentence."""
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == status, (stdout, stderr)
    check_sentence(stderr.decode(), says)


def begun(world: World, *words: str) -> subprocess.Popen[bytes]:
    """A command that has begun in a guest."""
    process = world.start(*words, "sh", "-c", "echo ready; exec sleep 4242")
    assert process.stdout is not None
    read_until(process.stdout, b"ready\n")
    return process


def no_vms(world: World) -> None:
    eventually(lambda: not world.run("ps", "-q").stdout, "a VM stayed")


@pytest.mark.parametrize("service", ["vmm.box", "fsd.box", "fork"])
def test_a_service_under_exec(box: RealWorld, service: str) -> None:
    """The exec ends with the reason; the supervisor goes on, with a new forkserver if need be."""
    process = begun(box, "exec", "box")
    kill(box, service)
    ends(process, "killed by signal 9")
    no_vms(box)
    (vm,) = json.loads(box.run("ps", "-a", "--json").stdout)
    assert vm["state"] == "failed" and "killed by signal 9" in vm["detail"]
    done = box.run("run", IMAGE, "echo", "alive")
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_a_host_that_takes_a_guests_memory_away(
    box: RealWorld, daemon: subprocess.Popen[bytes]
) -> None:
    """What is left of a file in /dev/shm that was cut off is a SIGBUS for whoever touches it; told as on KVM."""
    process = begun(box, "exec", "box")
    held = Path(f"/proc/{daemon.pid}/fd")
    (memory,) = [fd for fd in held.iterdir() if "crumble-memory" in str(fd.readlink())]
    os.truncate(memory, 0)
    ends(
        process,
        "The guest cannot go on: the host's memory behind the guest's is gone.*Look whether /dev/shm",
    )
    no_vms(box)


@pytest.mark.parametrize("service", ["vmm.box", "fsd.box"])
def test_a_service_while_its_vm_stops(box: RealWorld, service: str) -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 1; done"
    process = box.start("exec", "box", "sh", "-c", script)
    assert process.stdout is not None
    read_until(process.stdout, b"ready\n")
    stop = box.start("stop", "-t", "50", "box")
    eventually(lambda: "stopping" in box.run("ps", "-a").stdout, "it does not stop")
    kill(box, service)
    assert stop.communicate(timeout=30) == (b"box\n", b"")
    process.communicate(timeout=30)
    assert process.returncode not in (0, None)
    no_vms(box)


def test_the_supervisor_under_everybody(
    box: RealWorld, daemon: subprocess.Popen[bytes], registry: Registry
) -> None:
    """exec, run, a run that boots, a pull, down: each says so; the next run has a clean start."""
    reference, partial = stalled(registry)
    waiting = [
        begun(box, "exec", "box"),
        begun(box, "run", IMAGE),
        box.start("run", *SILENT, IMAGE, "true"),
        box.start("pull", reference),
        box.start("logs", "-f", "box"),
    ]
    path = box.data / "store" / "work" / partial
    eventually(lambda: path.exists() and path.stat().st_size, "no download")
    box.pid("vmm.box")
    daemon.kill()
    for process in waiting:
        ends(process, "supervisor has ended")
    box.assert_nothing_left()
    assert box.run("run", IMAGE, "echo", "alive").stdout == "alive\n"


@pytest.mark.parametrize("moment", ["booting", "running"])
def test_a_client_under_a_supervisor(
    world: RealWorld, daemon: subprocess.Popen[bytes], moment: str
) -> None:
    """Its VM ends with it; the supervisor stays."""
    assert daemon.poll() is None
    if moment == "booting":
        process = world.start("run", *SILENT, IMAGE, "true")
        world.pid("vmm")
    else:
        process = begun(world, "run", IMAGE)
    process.kill()
    process.communicate()
    no_vms(world)
    eventually(lambda: not any("vmm" in name for name in world.services()), "its vmm stayed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("verb", ["pull", "run"])
def test_a_client_that_pulls(
    world: RealWorld, daemon: subprocess.Popen[bytes], registry: Registry, verb: str, number: int
) -> None:
    """ocid gives up its download, and has it resumed by the next."""
    assert daemon.poll() is None
    reference, partial = stalled(registry)
    process = world.start(verb, reference)
    path = world.data / "store" / "work" / partial
    eventually(lambda: path.exists() and path.stat().st_size, "no download")
    process.send_signal(number)
    process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -9)
    registry.faults = {}
    assert world.run("pull", reference).returncode == 0
    assert world.run("rmi", reference).returncode == 0


@pytest.mark.parametrize("supervisor", [True, False])
def test_ocid_while_it_pulls(
    world: RealWorld, registry: Registry, request: pytest.FixtureRequest, supervisor: bool
) -> None:
    if supervisor:
        request.getfixturevalue("daemon")
    reference, partial = stalled(registry)
    processes = [world.start("pull", reference), world.start("run", reference, "true")]
    path = world.data / "store" / "work" / partial
    eventually(lambda: path.exists() and path.stat().st_size, "no download")

    def killed() -> bool:
        for name, pid in world.services().items():
            if name.startswith("crumble-ocid"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return all(process.poll() is not None for process in processes)

    eventually(killed, "somebody still waits")  # again for who asked only after the first time
    for process in processes:
        ends(process, "ocid was killed by signal 9")
    registry.faults = {}
    assert world.run("pull", reference).returncode == 0


def test_what_a_supervisor_that_was_killed_with_all_its_processes_left(world: RealWorld) -> None:
    """A stale directory and a stale link are nobody's; the next to come cleans them up."""
    process = world.start("up")
    assert process.stderr is not None
    read_until(process.stderr, b"is running in")
    assert world.run("run", "-d", "--name", "box", IMAGE, "sleep", "1000").returncode == 0
    everyone = list(world.services().values())
    for number in (signal.SIGSTOP, signal.SIGKILL):  # so that nobody sees another one end
        for pid in everyone:
            os.kill(pid, number)
    process.communicate()
    eventually(lambda: not world.services(), "not all ended")
    assert (world.runtime / "daemon").is_symlink()
    assert list(world.runtime.glob("run-*"))
    assert world.run("ps").returncode == 0
    check_sentence(world.run("exec", "box", "true").stderr, "No supervisor is running")
    assert world.run("run", IMAGE, "echo", "alive").stdout == "alive\n"
    world.assert_nothing_left()


def test_two_supervisors(world: RealWorld, daemon: subprocess.Popen[bytes]) -> None:
    for words in (["up"], ["up", "--detach"]):
        done = world.run(*words)
        assert done.returncode == 125
        check_sentence(done.stderr, "A supervisor is running already. `crumble down` ends it")
    assert daemon.poll() is None
    assert world.run("run", IMAGE, "echo", "alive").stdout == "alive\n"
