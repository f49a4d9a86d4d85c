"""Files through snapshots, forks and commits of real guests: what was written, renamed, removed, open."""

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.command import World
from framework.real_crumble import IMAGE, real_world

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]

# A process that keeps a removed file open and writes to it when it is told to.
MAIN = """mkdir /data; echo before > /data/f; echo log > /data/x.log
exec 3<>/data/open; rm /data/open; printf unlinked >&3; touch /ready
while ! [ -e /go ]; do sleep 0.1; done; printf ' and on' >&3; cat /proc/self/fd/3 > /data/was-open
touch /done; sleep 100000"""
CHANGES = """until [ -e /ready ]; do sleep 0.1; done; seq 200000 > /data/big
mv /usr/share/doc /moved; chmod 700 /usr/bin/env; rm /etc/issue
mkdir /etc/apt/new; ln /data/f /etc/hard; setfattr -n user.a -v 1 /data/f 2>/dev/null; mkfifo /data/pipe; sync"""
LOOK = """cat /data/f /etc/hard; md5sum < /data/big; ls /moved | wc -l; stat -c %a /usr/bin/env
stat -c '%F %h' /data/pipe /etc/hard; ls -d /etc/issue /usr/share/doc 2>/dev/null; ls /etc/apt"""
OPEN = "touch /go; until [ -e /done ]; do sleep 0.1; done; cat /data/was-open"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with real_world(tmp_path_factory.mktemp("files") / "w") as made:
        made.up()
        output(made, "run", "-d", "--name", "first", IMAGE, "sh", "-c", MAIN)
        output(made, "exec", "first", "sh", "-c", CHANGES)
        output(made, "snapshot", "create", "first", "shot")
        yield made
        output(made, "down")


def output(world: World, *words: str) -> str:
    done = world.run(*words)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def test_a_restored_guest_has_the_same_files(world: World) -> None:
    before = output(world, "exec", "first", "sh", "-c", LOOK)
    assert hashlib.md5(b"".join(b"%d\n" % n for n in range(1, 200_001))).hexdigest() in before
    output(world, "run", "-d", "--name", "again", "--from", "shot", "sleep", "100000")
    assert output(world, "exec", "again", "sh", "-c", LOOK) == before
    assert output(world, "exec", "again", "sh", "-c", OPEN) == "unlinked and on"
    output(world, "exec", "again", "sh", "-c", "echo again > /data/f; rm -r /moved")
    assert output(world, "exec", "first", "sh", "-c", LOOK) == before


def test_a_fork_of_a_restored_guest_goes_on(world: World) -> None:
    output(world, "run", "-d", "--name", "middle", "--from", "shot", "sleep", "100000")
    output(world, "exec", "middle", "sh", "-c", "echo middle >> /data/f; mv /moved /etc/moved")
    (name,) = output(world, "fork", "middle").split()
    look = "cat /data/f; ls /etc/moved | wc -l; md5sum < /data/big"
    assert output(world, "exec", name, "sh", "-c", look) == output(
        world, "exec", "middle", "sh", "-c", look
    )
    assert output(world, "exec", name, "sh", "-c", OPEN) == "unlinked and on"
    output(world, "stop", "-t", "1", name)
    assert "middle" in output(world, "exec", "middle", "cat", "/data/f")


def test_a_commit_is_an_image(world: World, tmp_path: Path) -> None:
    output(world, "commit", "--exclude", "*.log", "--exclude", "/go", "first", "mine:1")
    expected = output(world, "exec", "first", "sh", "-c", LOOK)
    assert output(world, "run", "--no-snapshot", "mine:1", "sh", "-c", LOOK) == expected
    left_out = "ls /data/x.log /etc/resolv.conf"
    done = world.run("run", "mine:1", "sh", "-c", left_out)
    assert done.stdout == "/etc/resolv.conf\n"  # this run's own
    if shutil.which("skopeo") is None:
        return
    for form in ("docker-archive", "oci"):
        path = tmp_path / "out.tar" if form == "docker-archive" else tmp_path / "out"
        output(world, "save", "--format", form, "-o", str(path), "mine:1")
        source = f"{form}:{path}" + (":1" if form == "oci" else "")
        subprocess.run(
            ["skopeo", "--insecure-policy", "copy", "-q", source, f"dir:{tmp_path}/{form}"],
            check=True, timeout=120,
        )  # fmt: skip
