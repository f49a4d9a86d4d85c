"""Captures of a running machine: freeze, thaw, and a thread that saves memory while the guest goes on.

    idle ──freeze──► frozen ──thaw──► saving ──done──► idle
                       └──thaw(abort)──────────────────┘

From freeze to thaw the guest stands still. The memory's part is native/src/capture.c.
"""

from __future__ import annotations

import enum
import errno
import os
import threading
from collections.abc import Callable

from crumble_common.errors import UsageError
from crumble_common.wire import pack_body
from crumble_vmm.machine import Loop, Machine
from crumble_vmm.snapshot.state import FORMAT, AgentState, VmState


class _Phase(enum.Enum):
    IDLE = "idle"
    FROZEN = "frozen"
    SAVING = "saving"


class Captures:
    """The captures of one machine, one after another. All calls come from the loop's thread.

    done: called there with the number of pages written and "" or a sentence that says why it failed.
    """

    def __init__(
        self, machine: Machine, loop: Loop, done: Callable[[int, str], None], *, restored: bool
    ) -> None:
        self._machine, self._loop, self._done = machine, loop, done
        self._phase = _Phase.IDLE
        self._fd = -1
        self._saver: threading.Thread | None = None
        # What was written since the last capture, or the restore, is marked.
        self._has_parent = restored and machine.vm.translates

    @property
    def idle(self) -> bool:
        """No capture is under way."""
        return self._phase is _Phase.IDLE

    def freeze(self, fd: int, parent: bool, state: Callable[[], VmState]) -> bytes:
        """Stops the guest and gives its state. `fd` is this object's from now on.

        Raises UsageError "vm.captured", "snapshot.no_parent" or "vm.busy", and what back ends raise; the
        guest then goes on, and the fd is closed.
        """
        try:
            self._check(parent)
            blob = self._stop(state)
        except BaseException:
            os.close(fd)
            raise
        memory = self._machine.memory.memory
        memory.capture_to(fd)
        memory.freeze(dirty_only=parent)
        self._fd, self._phase, self._has_parent = fd, _Phase.FROZEN, False
        return blob

    def _check(self, parent: bool) -> None:
        if self._phase is not _Phase.IDLE:
            raise UsageError(
                "The VM is being captured already.",
                code="vm.captured",
                hint="Wait until that is done.",
            )
        if parent and not self._has_parent:
            raise UsageError(
                "There is no capture that this one could build on.",
                code="snapshot.no_parent",
                hint="Capture the whole VM first.",
            )

    def _stop(self, state: Callable[[], VmState]) -> bytes:
        """Brings everything to rest; if that fails, back to work."""
        machine = self._machine
        machine.hold()
        try:
            for device in machine.chipset.devices.values():
                device.halt()
            machine.vm.settle()
            return state().encode()
        except BaseException:
            self._go_on()
            raise

    def _go_on(self) -> None:
        """The guest first: that its rings are not served for another moment is nothing new to it."""
        self._machine.let_go()
        for device in self._machine.chipset.devices.values():
            device.go_on()

    def thaw(self, abort: bool) -> None:
        """Lets the guest go on and begins to save, or gives up. UsageError "vm.not_frozen".

        A guest that writes without translating goes on when all is saved.
        """
        if self._phase is not _Phase.FROZEN:
            raise UsageError("The VM is not frozen.", code="vm.not_frozen", hint="Freeze it first.")
        if abort:
            self._machine.memory.memory.release()
            self._finish()
        else:
            self._phase = _Phase.SAVING
            self._saver = threading.Thread(target=self._save, name="saver")
        if self._saver is None or self._machine.vm.translates:
            self._go_on()
        if self._saver is not None:
            self._saver.start()

    def _save(self) -> None:
        memory = self._machine.memory
        error = memory.memory.save(memory.fd)
        self._loop.call_soon_threadsafe(lambda: self._saved(error))

    def _saved(self, error: int) -> None:
        if self._saver is None:  # closed meanwhile
            return
        self._saver.join()
        if not self._machine.vm.translates:
            self._go_on()
        self._has_parent = error == 0 and self._machine.vm.translates
        pages = self._machine.memory.memory.saved_pages
        self._finish()
        self._done(pages, _sentence(error))

    def _finish(self) -> None:
        self._machine.memory.memory.capture_to(-1)
        os.close(self._fd)
        self._fd, self._phase, self._saver = -1, _Phase.IDLE, None

    def close(self) -> None:
        """The VM ends: a capture under way is worth nothing."""
        self._machine.memory.memory.abandon()
        if self._saver is not None:
            self._saver.join()
        if self._phase is not _Phase.IDLE:
            self._finish()


def _sentence(error: int) -> str:
    if error == 0:
        return ""
    if error in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "The VM's memory was not saved: there is no room on the disk."
    return f"The VM's memory was not saved: {os.strerror(error)}."


def collect(machine: Machine, agent: AgentState, console: bytes) -> VmState:
    """The state of a machine that stands still."""
    devices = machine.chipset.devices
    return VmState(
        format=FORMAT,
        architecture=machine.architecture,
        hypervisor=machine.hypervisor,
        memory=machine.memory.size,
        time=machine.time,
        controller=machine.vm.get_controller(),
        cpus=[cpu.get_state() for cpu in machine.cpus],
        devices={name: pack_body(device.get_state()) for name, device in devices.items()},
        agent=agent,
        console=console,
    )
