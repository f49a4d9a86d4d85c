"""Snapshots, forks and commits of real guests, by the command and by the SDK."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble.snapshots import manifest as form
from crumble.snapshots.store import Store
from framework.command import eventually
from framework.real_crumble import IMAGE, RealWorld, check_sentence, real_world

pytestmark = [pytest.mark.guest, pytest.mark.slow]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealWorld]:
    with real_world(tmp_path_factory.mktemp("captures") / "world") as made:
        made.up()
        made.run("run", "-d", "--name", "box", IMAGE, "sleep", "100000")
        made.run("exec", "box", "sh", "-c", "echo before > /note; (while :; do sleep 1; done) &")
        yield made
        made.run("down", "-t", "0")


def names(world: RealWorld) -> list[str]:
    return Store(world.data / "snapshots").names()


def test_later_runs_go_on_from_the_first_ones_boot(world: RealWorld) -> None:
    eventually(lambda: any(name.startswith("boot-") for name in names(world)), "no boot snapshot")
    script = "hostname; cat /etc/hostname; grep -c $(hostname) /etc/hosts; date +%s"
    seen = []
    for name in ("one", "two"):
        done = world.run("run", "--name", name, IMAGE, "sh", "-c", script)
        hostname, file, hosts, now = done.stdout.split()
        assert (hostname, file, hosts) == (name, name, "1"), done.stderr
        assert abs(int(now) - time.time()) < 5
        seen.append(world.run("run", IMAGE, "cat", "/proc/sys/kernel/random/uuid").stdout)
    assert len(set(seen)) == 2, "two clones draw different numbers"
    assert world.run("snapshot", "verify").returncode == 0


def test_a_snapshot_by_name_survives_the_supervisor_and_a_journey(
    world: RealWorld, tmp_path: Path
) -> None:
    made = json.loads(world.run("snapshot", "create", "--json", "box", "mine").stdout)
    assert made["pause"] < 1
    assert made["size"] < 200 << 20
    world.run("exec", "box", "sh", "-c", "echo after > /note")
    assert world.run("run", "--from", "mine", "cat", "/note").stdout == "before\n"
    file = tmp_path / "mine.snapshot"
    assert world.run("snapshot", "export", "mine", str(file)).returncode == 0
    assert world.run("snapshot", "rm", "mine").returncode == 0
    assert world.run("snapshot", "import", "--name", "yours", str(file)).returncode == 0
    script = "cat /note; pgrep -c sleep || ls /proc | grep -c ^[0-9]"
    done = world.run("run", "--from", "yours", "sh", "-c", script)
    assert done.stdout.startswith("before\n"), done.stderr


def test_a_snapshot_of_a_vm_that_went_on_from_one_has_only_what_was_written_since(
    world: RealWorld,
) -> None:
    """Three over one another, the last of which survives the others and a journey of its own."""
    world.run("snapshot", "create", "box", "c1")
    for number in (2, 3):
        vm = f"v{number}"
        assert world.run(
            "run", "-d", "--name", vm, "--from", f"c{number - 1}", "sleep", "999"
        ).stdout
        world.run("exec", vm, "sh", "-c", f"echo {number} > /n{number}; seq {number}0000 > /big")
        assert world.run("snapshot", "create", vm, f"c{number}").returncode == 0
        world.run("stop", "-t", "0", vm)
    place = world.data / "snapshots"
    about = [form.decode((place / n / "manifest.json").read_bytes(), n) for n in ("c1", "c2", "c3")]
    assert [made.parent for made in about[1:]] == ["c1", "c2"]
    assert [made.parent_digest for made in about[1:]] == [made.digest for made in about[:2]]
    written = (place / "c3/memory").stat().st_blocks * 512
    assert written < (place / "c3/parent-0.memory").stat().st_blocks * 512 / 3
    assert world.run("snapshot", "rm", "c1", "c2").returncode == 0
    script = "cat /n2 /n3; md5sum < /big; cat /bin/* | md5sum"
    done = world.run("run", "--from", "c3", "sh", "-c", script)
    expected = world.run("run", IMAGE, "sh", "-c", "seq 30000 | md5sum; cat /bin/* | md5sum").stdout
    assert done.stdout == "2\n3\n" + expected, done.stderr
    bad = place / "c3/parent-0.memory"
    flip(bad)
    for name in ("c3", "c3"):
        done = world.run("run", "--from", name, "true")
        assert done.returncode == 125
        check_sentence(done.stderr, "parent-0.memory, which it builds on, was changed")
    flip(bad)
    assert world.run("run", "--from", "c3", "cat", "/n3").stdout == "3\n"
    bad.unlink()
    check_sentence(world.run("run", "--from", "c3", "true").stderr, "parent-0.memory.* cannot be")
    world.run("snapshot", "rm", "c3")


def flip(path: Path) -> None:
    """Another value for a bit that was written; or the one it had."""
    with path.open("r+b") as file:
        file.seek(os.lseek(file.fileno(), 0, os.SEEK_DATA) + 100)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def test_forks_are_apart_and_can_be_forked(world: RealWorld) -> None:
    world.run("exec", "box", "sh", "-c", "echo forked > /note")
    made = json.loads(world.run("fork", "--json", "-n", "2", "--name", "f", "box").stdout)
    assert made["pause"] < 1
    world.run("exec", "f-1", "sh", "-c", "echo mine > /note")
    assert world.run("fork", "--name", "g", "f-1").stdout == "g\n"
    shown = {
        name: world.run("exec", name, "sh", "-c", "cat /note; hostname").stdout.split()
        for name in ("f-1", "f-2", "g")
    }
    assert shown == {"f-1": ["mine", "f-1"], "f-2": ["forked", "f-2"], "g": ["mine", "g"]}
    drawn = {
        world.run("exec", name, "od", "-An", "-N8", "-tx1", "/dev/urandom").stdout for name in shown
    }
    assert len(drawn) == 3
    world.run("stop", "-t", "0", "f-1", "f-2", "g")


def test_an_image_of_a_vms_files(world: RealWorld) -> None:
    world.run("exec", "box", "sh", "-c", "echo kept > /kept; echo left > /tmp/left")
    done = world.run("commit", "-x", "/tmp/left", "box", "mine:1")
    assert done.returncode == 0, done.stderr
    assert world.run("run", "mine:1", "cat", "/kept").stdout == "kept\n"
    assert world.run("run", "mine:1", "ls", "/tmp/left").returncode != 0


# Writes through a mapping, which is in the guest's memory until somebody asks for it, and goes on.
MAPPED = """open(F, "+>", "/mapped"); truncate(F, 4096); pipe(R, W); syswrite(W, "through a mapping");
$mmap = syscall(222, 0, 4096, 3, 1, fileno(F), 0); syscall(63, fileno(R), $mmap, 17);
open(G, ">", "/mapped.ready"); close(G); sleep 1000"""


def test_an_image_has_what_was_written_and_not_synced(world: RealWorld) -> None:
    world.run("run", "-d", "--name", "mapping", IMAGE, "perl", "-e", MAPPED)
    world.run("exec", "mapping", "sh", "-c", "until [ -e /mapped.ready ]; do sleep 0.01; done")
    assert world.run("commit", "mapping", "mine:mapped").returncode == 0
    assert world.run("run", "mine:mapped", "head", "-c17", "/mapped").stdout == "through a mapping"
    world.run("pause", "mapping")
    check_sentence(world.run("commit", "mapping", "mine:2").stderr, "The VM mapping is paused")
    world.run("stop", "-t", "0", "mapping")


def test_a_paused_guest_stands_still(world: RealWorld) -> None:
    world.run("pause", "box")
    before = world.run("ps", "--json").stdout
    assert '"paused"' in before
    assert world.run("unpause", "box").returncode == 0
    assert world.run("exec", "box", "echo", "on").stdout == "on\n"
