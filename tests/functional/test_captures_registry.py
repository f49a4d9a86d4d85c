"""An image from a real registry: everything that is done with captures, by the command."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.command import eventually
from framework.real_crumble import IMAGE, RealWorld, real_world
from framework.registry_process import real_registry

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[RealWorld]:
    for tool in ("docker-registry", "skopeo"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    with real_world(tmp_path / "w") as made:
        yield made
        made.run("down", "-t", "0")


def output(world: RealWorld, *words: str) -> str:
    done = world.run(*words)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def test_an_image_from_a_registry(world: RealWorld, tmp_path: Path) -> None:
    with real_registry(tmp_path / "registry") as registry:
        output(world, "save", "--format", "oci", "-o", str(tmp_path / "image"), IMAGE)
        image = registry.push(f"oci:{tmp_path / 'image'}", "base:1")
        world.environment["CRUMBLE_INSECURE_REGISTRIES"] = registry.host
        output(world, "up", "--detach")
        assert output(world, "run", image, "echo", "booted") == "booted\n"
    # The registry is gone, and its image's boot is kept.
    eventually(lambda: "boot-" in output(world, "snapshot", "ls", "-q"), "no boot snapshot")
    output(world, "run", "-d", "--name", "box", image, "sleep", "100000")
    output(world, "exec", "box", "sh", "-c", "echo mine > /note")
    output(world, "snapshot", "create", "box", "one")
    output(world, "exec", "box", "sh", "-c", "echo more >> /note")
    output(world, "snapshot", "create", "box", "two")
    assert output(world, "run", "--from", "one", "cat", "/note") == "mine\n"
    output(world, "fork", "--name", "clone", "box")
    output(world, "commit", "clone", "mine:1")
    file = tmp_path / "two.snapshot"
    output(world, "snapshot", "export", "two", str(file))
    output(world, "stop", "-t", "0", "box", "clone")
    output(world, "snapshot", "prune", "--all")
    output(world, "snapshot", "import", str(file))
    for words in (("--from", "two"), ("mine:1",)):
        assert output(world, "run", *words, "cat", "/note") == "mine\nmore\n"
