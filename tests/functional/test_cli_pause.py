"""`crumble pause` and `unpause`, and the SDK's, over the fake services."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.command import World


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.up()
    yield made
    made.end()


def state(daemon: World) -> str:
    (found,) = json.loads(daemon.run("ps", "--json").stdout)
    return str(found["state"])


def test_a_paused_vm_says_so_and_goes_on(daemon: World) -> None:
    daemon.run("run", "-d", "--name", "a", "fake", "sleep", "60")
    assert daemon.run("pause", "a").stdout == "a\n"
    assert state(daemon) == "paused"
    for words in (("pause", "a"), ("exec", "a", "true")):
        done = daemon.run(*words)
        assert done.returncode == 125
        assert "crumble: " in done.stderr
    assert "unpause a" in daemon.run("exec", "a", "true").stderr
    assert daemon.run("resume", "a").stdout == "a\n"
    assert state(daemon) == "running"
    assert daemon.run("unpause", "a").returncode == 125
    assert daemon.run("exec", "a", "echo", "on").stdout == "on\n"


def test_one_that_is_not_there_is_an_error_and_the_others_are_paused(daemon: World) -> None:
    daemon.run("run", "-d", "--name", "a", "fake", "sleep", "60")
    done = daemon.run("pause", "b", "a")
    assert (done.returncode, done.stdout) == (125, "a\n")
    assert "no VM b" in done.stderr
    assert state(daemon) == "paused"


def test_a_paused_vm_can_be_stopped_in_an_orderly_way(daemon: World) -> None:
    daemon.run("run", "-d", "--name", "a", "fake", "sleep", "60")
    daemon.run("pause", "a")
    assert daemon.run("stop", "a").stdout == "a\n"
    daemon.run("down")
    daemon.assert_nothing_left()
