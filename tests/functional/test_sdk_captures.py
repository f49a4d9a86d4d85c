"""Snapshots, forks and built images for programs, over the fake services."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import crumble
from crumble import aio
from crumble.sdk import session
from crumble.supervisor import table
from framework import fake_services
from framework.command import World, eventually


@pytest.fixture(autouse=True, params=["embedded", "daemon"])
def world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[World]:
    made = World(tmp_path)
    for name in ("CRUMBLE_RUNTIME_DIR", "CRUMBLE_DATA_DIR", "TMPDIR"):
        monkeypatch.setenv(name, made.environment[name])
    for name, row in fake_services.TABLE.items():
        monkeypatch.setitem(table.TABLE, name, row)
    if request.param == "daemon":
        made.up()
    yield made
    if session._session is not None:
        session._session.close()
    made.run("down", "-t", "0")
    eventually(lambda: not left(made), lambda: f"left: {left(made)}")
    made.end()


def left(world: World) -> list[str]:
    found = [item for item in world.left() if f"/{os.getpid()}" not in item]
    return found + [str(path) for path in (world.data / "snapshots").glob(".*")]


def note(vm: crumble.VM) -> str:
    return str(vm.run("cat note", capture_output=True, text=True).stdout)


def test_a_snapshot_is_gone_on_from_and_travels(tmp_path: Path) -> None:
    with crumble.VM("fake", boot_snapshot=False) as vm:
        vm.run("echo before > note")
        made = vm.snapshot("one")
        assert made.pause < 10
        with pytest.raises(crumble.UsageError, match="There is a snapshot one already"):
            vm.snapshot("one")
        vm.run("echo after > note")
        with crumble.VM(snapshot="one") as clone:
            assert (note(clone), note(vm)) == ("before\n", "after\n")
            with pytest.raises(crumble.UsageError, match="in use"):
                made.remove()
    made.verify()
    made.export(tmp_path / "file")
    made.remove()
    assert [item.name for item in crumble.Snapshot.list()] == []
    crumble.Snapshot.load(tmp_path / "file", "two").verify()
    with crumble.VM(snapshot="two") as clone:
        assert note(clone) == "before\n"


def test_forks_end_with_their_program() -> None:
    with crumble.VM("fake") as vm:
        vm.run("echo before > note")
        clones = vm.fork(3)
        assert len({clone.name for clone in (*clones, vm)}) == 4
        with clones[0] as clone:
            clone.run("echo mine > note")
            assert note(clone) == "mine\n"
        assert note(clones[1]) == "before\n"


def test_asyncio_programs() -> None:
    async def work() -> None:
        async with aio.VM("fake") as vm:
            await vm.run("echo before > note")
            assert (await vm.snapshot("three")).name == "three"
            for clone in await vm.fork(2):
                async with clone:
                    done = await clone.run("cat note", capture_output=True, text=True)
                    assert done.stdout == "before\n"
            assert await vm.snapshot_filesystem("mine:1") == "mine:1"

    asyncio.run(asyncio.wait_for(work(), 60))


def test_a_recipe_is_built_once(capfd: pytest.CaptureFixture[str]) -> None:
    """The fake store knows every image, so it is the commands that tell whether it was built."""
    recipe = crumble.Snapshot.from_("fake").run("echo built").exclude("/tmp")
    image = recipe.build(rebuild=True)
    assert capfd.readouterr().out == "built\n"
    assert recipe.build() == image
    assert capfd.readouterr().out == ""
    others = [recipe.run("true"), recipe.exclude("/var"), crumble.Snapshot.from_("entry")]
    assert len({other.key() for other in (recipe, *others)}) == 4
    with pytest.raises(crumble.CommandError):
        recipe.run("exit 3").build(rebuild=True)
