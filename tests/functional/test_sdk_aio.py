"""The asyncio face of the SDK over the fake services."""

import asyncio
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import crumble
from crumble import aio
from crumble.sdk import session
from crumble.supervisor import table
from framework import fake_services
from framework.command import World


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)
    for name in ("CRUMBLE_RUNTIME_DIR", "CRUMBLE_DATA_DIR", "TMPDIR"):
        monkeypatch.setenv(name, made.environment[name])
    for name, row in fake_services.TABLE.items():
        monkeypatch.setitem(table.TABLE, name, row)
    yield made
    if session._session is not None:
        session._session.close()
    made.end()


def complete(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


def test_many_commands_in_many_vms_at_once() -> None:
    async def one(number: int) -> bytes:
        done = await aio.run("fake", f"sleep 0.2; echo {number}", capture_output=True)
        output: bytes = done.stdout
        return output

    async def work() -> list[bytes]:
        return await asyncio.gather(*(one(number) for number in range(6)))

    assert complete(work()) == [b"%d\n" % number for number in range(6)]


def test_a_vm_and_its_files_and_processes() -> None:
    async def work() -> None:
        async with aio.VM("fake") as vm:
            assert vm.info.state == "running"
            await vm.write_file("/x", b"data")
            assert await vm.read_file("/x") == b"data"
            process = await vm.popen(["cat"], stdin=aio.PIPE, stdout=aio.PIPE)
            await process.write(b"line\n")
            assert await process.readline() == b"line\n"
            await process.write(b"")
            assert await process.read() == b""
            assert await process.wait() == 0
            done = await vm.run("cat; exit 2", input="x", capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (2, "x")
            with pytest.raises(crumble.CommandError):
                await vm.run("exit 2", check=True)
            with pytest.raises(crumble.CommandTimeoutError):
                await vm.run(["sleep", "60"], timeout=0.2)

    complete(work())


def test_a_cancelled_command_is_killed_and_a_cancelled_start_stops_the_vm() -> None:
    async def work() -> None:
        async with aio.VM("fake") as vm:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(vm.run(["sleep", "60"]), 0.5)
            begun = time.monotonic()
            assert (await vm.run(["true"])).returncode == 0
            assert time.monotonic() - begun < 30
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(aio.VM("fake", cmdline="fake=silent").start(), 1)

    complete(work())


def test_images_and_errors() -> None:
    async def work() -> None:
        assert (await aio.pull("fake")).reference == "fake"
        assert len(await aio.images()) == 2
        with pytest.raises(crumble.RemoteError):
            await aio.run("unknown", "true")

    complete(work())
