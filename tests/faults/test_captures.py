"""Captures and restores that fail at every step: the VM goes on or a sentence says what is wrong, nothing
half-written is ever picked up, and nothing stays behind.
"""

import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble.snapshots.store import Store
from framework.command import World, eventually
from framework.real_crumble import IMAGE, RealWorld, check_sentence, real_world


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[World]:
    """Over the fake services: deaths at a chosen step."""
    made = World(tmp_path)
    yield made
    made.run("down", "-t", "0")
    made.assert_nothing_left()
    assert not unfinished(made)


def unfinished(world: World) -> list[str]:
    return [path.name for path in (world.data / "snapshots").glob(".*")]


def names(world: World) -> list[str]:
    return Store(world.data / "snapshots").names()


@pytest.mark.parametrize("how", ["frozen", "saving"])
def test_a_vm_that_dies_while_its_boot_is_captured(fake: World, how: str) -> None:
    fake.up()
    done = fake.run("run", "--cmdline", f"fake={how}", "fake", "sleep", "60")
    assert done.returncode == 125
    check_sentence(done.stderr)
    assert "was killed by signal 9" in done.stderr
    assert names(fake) == []
    eventually(lambda: not unfinished(fake), "a draft is left")


@pytest.mark.parametrize("how", ["frozen", "saving"])
@pytest.mark.parametrize("words", [("snapshot", "create", "box", "one"), ("fork", "box")])
def test_a_vm_that_dies_while_somebody_captures_it(
    fake: World, how: str, words: tuple[str, ...]
) -> None:
    fake.up()
    fake.run(
        "run",
        "-d",
        "--no-snapshot",
        "--name",
        "box",
        "--cmdline",
        f"fake={how}",
        "fake",
        "sleep",
        "60",
    )
    done = fake.run(*words)
    assert done.returncode == 125
    check_sentence(done.stderr)
    assert names(fake) == []
    eventually(lambda: not unfinished(fake), "a draft is left")
    assert fake.run("run", "fake", "echo", "alive").stdout == "alive\n"


def test_clones_that_die_at_once(fake: World) -> None:
    fake.up()
    fake.run(
        "run",
        "-d",
        "--no-snapshot",
        "--name",
        "box",
        "--cmdline",
        "fake=frail",
        "fake",
        "sleep",
        "60",
    )
    done = fake.run("fork", "-n", "3", "box")
    assert done.returncode == 125
    check_sentence(done.stderr)
    assert [vm["name"] for vm in json.loads(fake.run("ps", "--json").stdout)] == ["box"]
    eventually(lambda: not unfinished(fake), "what the clones went on from is left")


def test_the_supervisor_is_killed_and_its_drafts_are_swept(fake: World) -> None:
    fake.up()
    fake.run("run", "-d", "--no-snapshot", "--name", "box", "fake", "sleep", "60")
    fake.run("fork", "box")
    assert unfinished(fake), "what the clone goes on from"
    link = fake.runtime / "daemon"
    pid = json.loads(fake.run("ps", "--json").stdout) and supervisor_pid(fake)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not link.exists(), "its directory stays")
    fake.up()
    eventually(lambda: not unfinished(fake), "nobody swept it at the start")


def supervisor_pid(world: World) -> int:
    """Who listens on the daemon's socket."""
    vm = next(pid for name, pid in world.services().items() if name.startswith("crumble-fork"))
    stat = Path(f"/proc/{vm}/stat").read_text().rpartition(")")[2].split()
    return int(stat[1])


def test_a_client_that_is_killed_while_it_waits(fake: World) -> None:
    fake.up()
    fake.run("run", "-d", "--no-snapshot", "--name", "box", "fake", "sleep", "60")
    for words in (("fork", "-n", "8", "box"), ("snapshot", "create", "box", "one")):
        process = fake.start(*words)
        process.kill()
        process.communicate()
    assert fake.run("exec", "box", "echo", "on").stdout == "on\n"
    assert fake.run("snapshot", "verify").returncode == 0


def test_a_snapshot_whose_image_is_gone(fake: World) -> None:
    fake.up()
    fake.run("run", "-d", "--no-snapshot", "--name", "box", "fake", "sleep", "60")
    fake.run("snapshot", "create", "box", "one")
    path = fake.data / "snapshots/one/manifest.json"
    about = json.loads(path.read_text())
    about.pop("checksum")
    about["image"]["layers"] = ["sha256-gone"]
    from crumble.snapshots import manifest as form

    path.write_text(json.dumps({**about, "checksum": form._checksum(about)}))
    done = fake.run("run", "--from", "one", "true")
    assert done.returncode == 125
    assert "is not in the store" in done.stderr
    check_sentence(done.stderr)


# Real guests.


@pytest.fixture
def world(tmp_path: Path) -> Iterator[RealWorld]:
    with real_world(tmp_path / "w") as made:
        yield made
        assert not unfinished(made)


@pytest.fixture
def full_disk(world: RealWorld) -> Iterator[RealWorld]:
    """8 MiB for snapshots."""
    place = world.data / "snapshots"
    place.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield world
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.guest
@pytest.mark.slow
def test_a_disk_that_is_full(full_disk: RealWorld) -> None:
    world = full_disk
    done = world.run("run", IMAGE, "echo", "on")
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")
    world.up()
    world.run("run", "-d", "--name", "box", IMAGE, "sleep", "1000")
    for words in (("snapshot", "create", "box", "one"), ("fork", "box")):
        done = world.run(*words)
        assert done.returncode == 125, words
        check_sentence(done.stderr)
        assert "room" in done.stderr or "space" in done.stderr
    assert world.run("exec", "box", "echo", "on").stdout == "on\n"
    world.run("down", "-t", "0")


@pytest.mark.guest
@pytest.mark.slow
def test_damaged_snapshots_never_run(world: RealWorld) -> None:
    world.up()
    world.run("run", "-d", "--no-snapshot", "--name", "box", IMAGE, "sleep", "1000")
    world.run("snapshot", "create", "box", "whole")
    place = world.data / "snapshots"
    dice = random.Random(1)
    for name in ("state.msgpack", "layer.index", "layer.contents", "memory", "manifest.json"):
        bad = place / "bad"
        shutil.copytree(place / "whole", bad)
        size = (bad / name).stat().st_size
        if size:
            os.truncate(bad / name, dice.randrange(size))
        done = world.run("run", "--from", "bad", "echo", "alive")
        assert done.returncode == 125 or not size, name
        if size:
            check_sentence(done.stderr)
            assert "damaged" in done.stderr
        shutil.rmtree(bad)
    assert world.run("run", "--from", "whole", "echo", "alive").stdout == "alive\n"
    world.run("down", "-t", "0")


@pytest.mark.guest
@pytest.mark.slow
@pytest.mark.parametrize("service", ["vmm", "fsd"])
def test_a_service_killed_while_a_run_goes_on_from_its_boot(world: RealWorld, service: str) -> None:
    """It boots instead, and nobody notices."""
    assert world.run("run", IMAGE, "echo", "one").stdout == "one\n"
    assert len(names(world)) == 1
    process = world.start("run", IMAGE, "echo", "two")
    os.kill(world.pid(service), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=60)
    if process.returncode:  # it was up already
        check_sentence(stderr.decode())
    else:
        assert stdout == b"two\n"
    assert world.run("run", IMAGE, "echo", "three").stdout == "three\n"


@pytest.mark.guest
@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_a_run_killed_while_it_captures(world: RealWorld, delay: float) -> None:
    """kill -9 of the command with its supervisor in it, around the capture: the next run is none the wiser."""
    process = world.start("run", IMAGE, "sleep", "60")
    place = world.data / "snapshots"
    eventually(lambda: list(place.glob(".tmp-*/*")) or names(world), "no capture begins")
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    assert world.run("run", IMAGE, "echo", "alive").stdout == "alive\n"
    assert world.run("snapshot", "verify").returncode == 0
