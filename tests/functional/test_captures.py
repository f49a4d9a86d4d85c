"""Snapshots, forks and commits of VMs over the fake services: by the command, and by the SDK."""

import json
import os
import pty
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble.snapshots.store import Store
from framework.command import World, eventually, read_until


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.run("down", "-t", "0")
    made.assert_nothing_left()
    assert not list((made.data / "snapshots").glob(".*"))


@pytest.fixture
def daemon(world: World) -> World:
    world.up()
    world.run("run", "-d", "--no-snapshot", "--name", "a", "fake", "sleep", "60")
    return world


def names(world: World) -> list[str]:
    return Store(world.data / "snapshots").names()


def snapshot_of(world: World, *words: str) -> str:
    """What the VM of a run went on from."""
    world.run("run", "-d", "--name", "x", *words, "fake", "sleep", "60")
    (vm,) = [vm for vm in json.loads(world.run("ps", "--json").stdout) if vm["name"] == "x"]
    world.run("stop", "-t", "0", "x")
    return str(vm["snapshot"])


def test_a_snapshot_is_made_and_gone_on_from(daemon: World) -> None:
    daemon.run("exec", "a", "sh", "-c", "echo before > note")
    made = json.loads(daemon.run("snapshot", "create", "--json", "a", "one").stdout)
    assert made["name"] == "one"
    assert 0 <= made["pause"] < 10
    daemon.run("exec", "a", "sh", "-c", "echo after > note")
    assert daemon.run("run", "--from", "one", "cat", "note").stdout == "before\n"
    assert daemon.run("run", "--from", "one").stdout == "default\n"
    assert daemon.run("exec", "a", "cat", "note").stdout == "after\n"
    assert names(daemon) == ["one"]
    assert daemon.run("snapshot", "verify").stdout == "one: whole\n"


def test_one_that_is_used_is_not_removed(daemon: World) -> None:
    daemon.run("snapshot", "create", "a", "one")
    daemon.run("run", "-d", "--from", "one", "--name", "b", "sleep", "60")
    done = daemon.run("snapshot", "rm", "one")
    assert done.returncode == 125
    assert "in use" in done.stderr
    daemon.run("stop", "b")
    assert daemon.run("snapshot", "rm", "one").returncode == 0


def test_a_snapshot_of_a_vm_that_went_on_from_one_needs_it_no_more(daemon: World) -> None:
    daemon.run("snapshot", "create", "a", "one")
    daemon.run("run", "-d", "--from", "one", "--name", "b", "sleep", "60")
    daemon.run("exec", "b", "sh", "-c", "echo second > note")
    assert daemon.run("snapshot", "create", "b", "two").stdout == "two\n"
    daemon.run("stop", "b")
    daemon.run("snapshot", "rm", "one")
    assert daemon.run("run", "--from", "two", "cat", "note").stdout == "second\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("snapshot", "create", "a", "boot-x"), "cannot be a snapshot's name"),
        (("snapshot", "create", "b", "one"), "no VM b"),
        (("run", "--from", "none", "true"), "no snapshot none"),
        (("run",), "The image is missing"),
        (("fork", "b"), "no VM b"),
        (("fork", "-n", "0", "a"), "cannot be forked 0 times"),
        (("commit", "b", "image"), "no VM b"),
    ],
)
def test_what_cannot_be_says_so(daemon: World, words: tuple[str, ...], says: str) -> None:
    done = daemon.run(*words)
    assert (done.returncode, done.stdout) == (125, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_name_is_taken_once(daemon: World) -> None:
    daemon.run("snapshot", "create", "a", "one")
    done = daemon.run("snapshot", "create", "a", "one")
    assert "There is a snapshot one already" in done.stderr


def test_forks_live_on_their_own(daemon: World) -> None:
    daemon.run("exec", "a", "sh", "-c", "echo before > note")
    made = json.loads(daemon.run("fork", "--json", "-n", "3", "--name", "b", "a").stdout)
    assert [vm["name"] for vm in made["vms"]] == ["b-1", "b-2", "b-3"]
    assert made["pause"] < 10
    daemon.run("exec", "b-1", "sh", "-c", "echo mine > note")
    assert daemon.run("exec", "b-2", "cat", "note").stdout == "before\n"
    assert len(list((daemon.data / "snapshots").iterdir())) == 1, "what they go on from"
    assert daemon.run("snapshot", "ls", "-q").stdout == "", "it has no name"
    daemon.run("stop", "-t", "0", "a", "b-2", "b-3")
    assert daemon.run("fork", "--name", "c", "b-1").stdout == "c\n"
    assert daemon.run("exec", "c", "cat", "note").stdout == "mine\n"


@pytest.mark.parametrize("words", [("snapshot", "create", "VM", "VM"), ("fork", "VM")])
def test_progress_is_for_terminals(daemon: World, words: tuple[str, ...]) -> None:
    for name in ("piped", "shown"):
        daemon.run("run", "-d", "--cmdline", "fake=held", "--name", name, "fake", "sleep", "60")
        eventually(lambda: not list((daemon.data / "snapshots").glob(".*")), "still capturing")
    drafts = daemon.data / "snapshots"
    piped = daemon.start(*(word.replace("VM", "piped") for word in words))
    eventually(lambda: list(drafts.glob(".tmp-*/memory")), "no capture began")
    master, terminal = pty.openpty()
    shown = daemon.start(*(word.replace("VM", "shown") for word in words), stderr=terminal)
    os.close(terminal)
    with os.fdopen(master, "rb", buffering=0) as screen:
        assert b"memory" in read_until(screen, b"4.1 kB of 4.1 kB")
        for name in ("piped", "shown"):
            daemon.run("exec", name, "true")
        assert shown.wait(60) == 0
    assert piped.communicate(timeout=60)[1] == b""
    assert piped.returncode == 0


def test_commit_makes_an_image(daemon: World) -> None:
    assert daemon.run("commit", "a", "mine:latest").stdout.startswith("sha256:")
    made = json.loads(daemon.run("commit", "--json", "-x", "/tmp", "a", "mine:2").stdout)
    assert made["reference"] == "mine:2"


def test_the_first_run_boots_and_the_next_ones_go_on(world: World) -> None:
    world.up()
    assert snapshot_of(world) == ""
    eventually(lambda: names(world), "none")
    (name,) = names(world)
    assert name.startswith("boot-")
    assert snapshot_of(world) == name
    assert snapshot_of(world, "--no-snapshot") == ""
    assert snapshot_of(world, "-m", "600m") == "", "another machine"
    eventually(lambda: len(names(world)) == 2, "no second one")


def test_a_run_of_its_own_leaves_a_boot_snapshot_and_uses_it(world: World) -> None:
    assert world.run("run", "fake", "echo", "one").stdout == "one\n"
    (name,) = names(world)
    used = (world.data / "snapshots" / name).stat().st_mtime_ns
    assert world.run("run", "fake", "echo", "two").stdout == "two\n"
    assert (world.data / "snapshots" / name).stat().st_mtime_ns > used
    assert world.run("run", "--no-snapshot", "fake", "echo", "three").stdout == "three\n"
    world.assert_nothing_left()


@pytest.mark.parametrize("how", ["unfrozen", "unsaved"])
def test_a_capture_that_fails_costs_nothing_but_itself(world: World, how: str) -> None:
    done = world.run("run", "--cmdline", f"fake={how}", "fake", "echo", "on")
    assert (done.returncode, done.stdout) == (0, "on\n")
    assert names(world) == []


def test_a_boot_snapshot_that_is_no_good_is_dropped_and_the_run_boots(world: World) -> None:
    world.up()
    for number in range(3):
        done = world.run("run", "--cmdline", "fake=frail", "fake", "echo", "on")
        assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", ""), number
        eventually(lambda: not list((world.data / "snapshots").glob(".*")), "unfinished")
    log = next(world.runtime.glob("run-*/logs/supervisor.log")).read_text()
    assert "boot snapshot dropped" in log


@pytest.mark.parametrize("name", ["manifest.json", "state.msgpack", "memory", "layer.index"])
def test_a_damaged_boot_snapshot_is_dropped_and_made_anew(world: World, name: str) -> None:
    world.run("run", "fake", "true")
    (snapshot,) = names(world)
    path = world.data / "snapshots" / snapshot / name
    os.truncate(path, path.stat().st_size // 2)
    assert world.run("run", "fake", "echo", "on").stdout == "on\n"
    assert names(world) == [snapshot]
    assert world.run("snapshot", "verify").returncode == 0


def test_little_room_for_boot_snapshots(world: World) -> None:
    world.environment["CRUMBLE_SNAPSHOT_LIMIT"] = "0"
    world.run("run", "fake", "true")
    assert names(world) == []
