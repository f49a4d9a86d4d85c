"""`crumble snapshot` on a store, without a supervisor."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble.snapshots.store import Store
from framework import stored_snapshots as snapshots
from framework.command import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.data.mkdir(mode=0o700)
    yield made
    made.assert_nothing_left()


@pytest.fixture
def store(world: World) -> Store:
    return Store(world.data / "snapshots")


def test_an_empty_store(world: World) -> None:
    assert world.run("snapshot", "ls").stdout.startswith("NAME")
    assert world.run("snapshot", "verify").returncode == 0
    assert world.run("snapshot", "prune").stdout == "0 B freed\n"
    done = world.run("snapshot", "inspect", "none")
    assert done.returncode == 125
    assert "There is no snapshot none" in done.stderr


def test_listed_inspected_verified_removed(world: World, store: Store) -> None:
    for name in ("mine", "boot-1", "boot-2"):
        snapshots.snapshot(store, name)
    assert "mine" in world.run("snapshot", "ls").stdout
    listed = json.loads(world.run("snapshot", "ls", "--json").stdout)
    assert {item["name"]: item["kind"] for item in listed} == {
        "mine": "user",
        "boot-1": "boot",
        "boot-2": "boot",
    }
    shown = json.loads(world.run("snapshot", "inspect", "mine").stdout)
    assert shown["memory"] == snapshots.MEMORY
    (store.path / "boot-2/layer.index").write_bytes(b"INDEX")
    done = world.run("snapshot", "verify")
    assert done.returncode == 125
    assert done.stdout.splitlines() == ["boot-1: whole", "mine: whole"]
    assert "boot-2 is damaged: layer.index was changed" in done.stderr
    assert world.run("snapshot", "rm", "boot-2", "none").stdout == "boot-2\n"
    assert world.run("snapshot", "prune").stdout.startswith("boot-1\n")
    assert store.names() == ["mine"]
    assert world.run("snapshot", "prune", "--all").stdout.startswith("mine\n")


def test_export_and_import(world: World, store: Store, tmp_path: Path) -> None:
    snapshots.snapshot(store, "mine")
    file = tmp_path / "mine.snapshot"
    assert world.run("snapshot", "export", "mine", str(file)).stdout == f"{file}\n"
    assert world.run("snapshot", "import", str(file)).returncode == 125
    assert world.run("snapshot", "import", "--name", "yours", str(file)).stdout == "yours\n"
    assert world.run("snapshot", "verify", "yours").stdout == "yours: whole\n"
    file.write_bytes(file.read_bytes()[:-9])
    done = world.run("snapshot", "import", "--name", "third", str(file))
    assert "is damaged: it" in done.stderr
    assert store.names() == ["mine", "yours"]


def test_what_needs_a_supervisor_says_so(world: World) -> None:
    done = world.run("snapshot", "create", "vm", "name")
    assert done.returncode == 125
    assert "No supervisor is running" in done.stderr
