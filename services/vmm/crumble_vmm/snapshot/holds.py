"""What makes a running VM stand still, as requests: Pause and Resume, Freeze and Thaw."""

from __future__ import annotations

from collections.abc import Callable

from crumble_common.errors import UsageError
from crumble_common.messages.service import Ok
from crumble_common.messages.vm import Freeze, Frozen, Pause, Resume, Thaw
from crumble_vmm.machine import Machine
from crumble_vmm.snapshot.capture import Captures
from crumble_vmm.snapshot.state import VmState


class Holds:
    """For one machine. take_fd: an fd from the inbox, by name. collect: the state when all stands still."""

    def __init__(
        self,
        machine: Machine,
        captures: Captures,
        take_fd: Callable[[str], int],
        collect: Callable[[], VmState],
    ) -> None:
        self._machine, self._captures = machine, captures
        self._take_fd, self._collect = take_fd, collect

    def handle(self, message: Pause | Resume | Freeze | Thaw) -> Ok | Frozen:
        """Does it, and gives the reply; raises CrumbleError."""
        match message:
            case Pause():
                self._pause()
            case Resume():
                self._resume()
            case Freeze(name, parent):
                fd = self._take_fd(name)
                return Frozen(self._captures.freeze(fd, parent, self._collect))
            case Thaw(abort):
                self._captures.thaw(abort)
        return Ok()

    def _pause(self) -> None:
        if self._machine.paused:
            raise UsageError("The VM is paused already.", code="vm.paused", hint="Resume it.")
        self._machine.pause()

    def _resume(self) -> None:
        if not self._machine.paused:
            raise UsageError("The VM is not paused.", code="vm.not_paused")
        self._machine.resume()

    def close(self) -> None:
        """The VM ends."""
        self._captures.close()
