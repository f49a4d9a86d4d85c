"""VMs that are captured and gone on from, without a supervisor.

with AloneVm() as vm:                      # no file system: busybox is put into the initramfs' root
    snapshot = capture(vm)
    with snapshot.restore() as clone: ...
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from crumble_common.inbox import Outbox
from crumble_common.messages import vm as messages
from crumble_common.messages.vm import (
    Captured,
    FileWrite,
    Freeze,
    ProcessExit,
    ProcessOutput,
    ProcessStart,
    Thaw,
    VmConfig,
    VmEvent,
)
from framework.assets import busybox, kernel
from framework.guest_vm import GuestVm

MIB = 1 << 20
_PIECE = 1 << 20


def config(**fields: Any) -> VmConfig:
    files = kernel()
    made = VmConfig(
        vm="vm1",
        kernel=str(files.image),
        memory=128 * MIB,
        modules=[str(path) for path in files.modules],
        hostname="first",
    )
    return replace(made, **fields)


class SnapshotVm(GuestVm):
    """A GuestVm with an inbox for the fds of captures."""

    def __init__(self, config: VmConfig, fds: dict[str, int] | None = None) -> None:
        self.config = config
        self.outbox = Outbox()
        super().__init__(config, {**(fds or {}), "inbox": os.dup(self.outbox.theirs)})

    def __exit__(self, *why: object) -> None:
        super().__exit__(*why)
        self.outbox.close()

    def ready(self) -> None:
        """Waits for the agent."""
        self.wait(VmEvent, lambda event: event.kind == "agent_ready")

    def run(self, *argv: str, **fields: Any) -> str:
        """A command's output, when it has ended well."""
        started = self.ask(ProcessStart(list(argv), **fields)).process
        status = self.wait(ProcessExit, lambda event: event.process == started).status
        output = b"".join(
            event.data
            for event in self.events
            if isinstance(event, ProcessOutput) and event.process == started
        )
        assert status == 0, (argv, status, output)
        return output.decode()

    def shell(self, script: str) -> str:
        """A shell script's output."""
        return self.run("/busybox", "sh", "-c", script)

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Puts a file into the guest."""
        for offset in range(0, len(data), _PIECE):
            self.ask(FileWrite(path, data[offset : offset + _PIECE], offset, mode))


@dataclass
class Snapshot:
    """state: as Frozen gave it. memory: an fd, ours."""

    state: bytes
    memory: int
    config: VmConfig
    pages: int

    def vm(self, **fields: Any) -> SnapshotVm:
        """A VM that goes on from here, not started yet."""
        made = replace(self.config, restore=self.state, kernel="", modules=[], **fields)
        return SnapshotVm(made, {"memory_base": os.dup(self.memory)})

    @contextmanager
    def restore(self, **fields: Any) -> Iterator[SnapshotVm]:
        """A VM that went on from here and answers."""
        with self.vm(**fields) as vm:
            vm.ready()
            yield vm

    def close(self) -> None:
        os.close(self.memory)


@contextmanager
def alone(**fields: Any) -> Iterator[SnapshotVm]:
    """A booted VM without a file system but the initramfs, with busybox in it."""
    with SnapshotVm(config(**fields)) as vm:
        vm.ready()
        vm.ask(FileWrite("/busybox", b"", 0, 0o755))
        vm.write("/busybox", busybox(), 0o755)
        yield vm


def freeze(vm: SnapshotVm, memory: int, *, parent: bool = False) -> bytes:
    """The state; the VM stands still until `thaw`."""
    vm.outbox.send("capture", memory)
    answer = vm.ask(Freeze("capture", parent))
    assert isinstance(answer, messages.Frozen)
    return answer.state


def thaw(vm: SnapshotVm) -> Captured:
    """Lets it go on; waits until the memory is saved."""
    seen = sum(isinstance(event, Captured) for event in vm.events)
    vm.ask(Thaw())
    vm.wait(Captured, lambda _: sum(isinstance(e, Captured) for e in vm.events_now) > seen)
    return [event for event in vm.events if isinstance(event, Captured)][-1]


def capture(vm: SnapshotVm) -> Snapshot:
    """A whole capture into memory of its own."""
    memory = os.memfd_create("snapshot")
    os.ftruncate(memory, vm.config.memory)
    state = freeze(vm, memory)
    done = thaw(vm)
    assert not done.error, done.error
    return Snapshot(state, memory, vm.config, done.pages)
