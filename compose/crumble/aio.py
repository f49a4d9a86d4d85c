"""The SDK for asyncio programs: the same, awaited.

    async with crumble.aio.VM("deb:trixie") as vm:
        done = await vm.run(["uname", "-a"], capture_output=True, text=True)

Calls wait in threads of their own, so any number of VMs and commands may go on at once. A cancelled
`run` kills its command; a cancelled start stops the VM.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from subprocess import CompletedProcess
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from crumble.sdk import images as _images
from crumble.sdk import vm as _vm
from crumble.sdk.captured import Snapshot
from crumble.sdk.process import PIPE, CommandError, CommandTimeoutError
from crumble.sdk.process import Process as _Process
from crumble_common.messages import image as image_messages
from crumble_common.messages.client import VmInfo

if TYPE_CHECKING:
    from crumble.sdk.network import Kind

T = TypeVar("T")

# A thread does nothing but wait; this many waits may go on at once.
_THREADS = 256
_pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="crumble-aio")


async def _wait(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_pool, lambda: call(*arguments, **options))


class Process:
    """A process in a guest. Its streams, where PIPE was asked for, are read and written by awaiting."""

    def __init__(self, process: _Process) -> None:
        self.inner = process

    @property
    def pid(self) -> int:
        """The guest's."""
        return self.inner.pid

    @property
    def returncode(self) -> int | None:
        """As crumble.Process has it."""
        return self.inner.returncode

    async def wait(self, timeout: float | None = None) -> int:
        """Waits for its end; CommandTimeoutError."""
        return await _wait(self.inner.wait, timeout)

    async def communicate(self, data: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Sends `data`, reads everything, waits; kills it when it is late, or when cancelled."""
        try:
            return await _wait(self.inner.communicate, data, timeout)
        except asyncio.CancelledError:
            await asyncio.shield(_wait(self.inner.kill))
            raise

    async def read(self, size: int = -1) -> Any:
        """The next of stdout; empty at its end."""
        assert self.inner.stdout is not None
        return await _wait(self.inner.stdout.read, size)

    async def readline(self) -> Any:
        """The next line of stdout; empty at its end."""
        assert self.inner.stdout is not None
        return await _wait(self.inner.stdout.readline)

    async def write(self, data: Any) -> None:
        """Sends all of `data` to stdin; empty data ends it."""
        stdin = self.inner.stdin
        assert stdin is not None
        if not data:
            await _wait(stdin.close)
            return
        await _wait(stdin.write, data)
        await _wait(stdin.flush)

    async def send_signal(self, number: int) -> None:
        """Sends a signal to it."""
        await _wait(self.inner.send_signal, number)

    async def kill(self) -> None:
        """SIGKILL."""
        await _wait(self.inner.kill)


class VM:
    """crumble.VM, awaited. Takes the same options."""

    def __init__(self, image: str = "", **options: Any) -> None:
        self.inner = _vm.VM(image, **options)

    @property
    def info(self) -> VmInfo:
        """What it is."""
        return self.inner.info

    async def start(self) -> Self:
        """Boots it."""
        try:
            await _wait(self.inner.start)
        except asyncio.CancelledError:
            await asyncio.shield(_wait(self.inner.stop, 0))
            raise
        return self

    async def snapshot(self, name: str) -> Snapshot:
        """Captures it under a name; it goes on running."""
        return await _wait(self.inner.snapshot, name)

    async def fork(self, count: int = 1, *, name: str = "") -> list[VM]:
        """More VMs like this one, running from this moment on."""
        made = []
        for clone in await _wait(self.inner.fork, count, name=name):
            made.append(VM())
            made[-1].inner = clone
        return made

    async def snapshot_filesystem(self, reference: str = "", **options: Any) -> str:
        """Makes an image of what its files are now; its name."""
        return await _wait(self.inner.snapshot_filesystem, reference, **options)

    async def connect(self, network: str) -> None:
        """Moves its interface to a network."""
        await _wait(self.inner.connect, network)

    async def disconnect(self) -> None:
        """Takes it off its network."""
        await _wait(self.inner.disconnect)

    async def dial(self, kind: Kind, port: int, timeout: float | None = None) -> socket.socket:
        """A socket, connected to a port of the guest, which does not block: for loop.sock_recv or open_connection."""
        sock = await _wait(self.inner.dial, kind, port, timeout)
        sock.setblocking(False)
        return sock

    async def listen(self, kind: Kind, port: int, backlog: int = 128) -> socket.socket:
        """A listening socket that the guest reaches at host.internal, which does not block: for asyncio.start_server."""
        sock = await _wait(self.inner.listen, kind, port, backlog)
        sock.setblocking(False)
        return sock

    async def pause(self) -> None:
        """Lets it stand still."""
        await _wait(self.inner.pause)

    async def resume(self) -> None:
        """Lets it go on."""
        await _wait(self.inner.resume)

    async def stop(self, grace: float = 5.0) -> None:
        """Ends it."""
        await asyncio.shield(_wait(self.inner.stop, grace))

    async def __aenter__(self) -> Self:
        return self if self.inner.started else await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        await self.stop()

    async def popen(self, command: _vm.Command = (), **options: Any) -> Process:
        """Starts a command; the options are those of crumble.VM.popen."""
        return Process(await _wait(self.inner.popen, command, **options))

    async def run(
        self,
        command: _vm.Command = (),
        *,
        input: Any = None,  # noqa: A002  subprocess has it
        capture_output: bool = False,
        check: bool = False,
        timeout: float | None = None,
        **options: Any,
    ) -> CompletedProcess[Any]:
        """Runs a command to its end; the options are those of crumble.VM.run."""
        if input is not None:
            options["stdin"] = PIPE
        if capture_output:
            options.update(stdout=PIPE, stderr=PIPE)
        process = await self.popen(command, **options)
        stdout, stderr = await process.communicate(input, timeout)
        status = process.returncode
        assert status is not None
        if check and status:
            raise CommandError(process.inner.args, status, stdout, stderr)
        return CompletedProcess(process.inner.args, status, stdout, stderr)

    async def read_file(self, path: str) -> bytes:
        """The contents of a file in the guest."""
        return await _wait(self.inner.read_file, path)

    async def write_file(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Creates or replaces a file in the guest."""
        await _wait(self.inner.write_file, path, data, mode=mode)


async def run(image: str, command: _vm.Command = (), **options: Any) -> CompletedProcess[Any]:
    """crumble.run, awaited: options of the command and of the VM."""
    names = ("input", "capture_output", "text", "check", "timeout", "env", "cwd", "user")
    of_command = {name: options.pop(name) for name in names if name in options}
    async with VM(image, **options) as vm:
        return await vm.run(command, **of_command)


async def pull(reference: str, **options: Any) -> image_messages.Image:
    """crumble.pull, awaited."""
    return await _wait(_images.pull, reference, **options)


async def images() -> list[image_messages.Image]:
    """crumble.images, awaited."""
    return await _wait(_images.images)


__all__ = [
    "PIPE",
    "VM",
    "CommandError",
    "CommandTimeoutError",
    "Process",
    "images",
    "pull",
    "run",
]
