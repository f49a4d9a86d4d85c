"""The main command of a detached VM: its output goes to the VM's log, its end ends the VM."""

from __future__ import annotations

import dataclasses
from typing import Any

from crumble.supervisor.vm import Vm
from crumble_common.messages.vm import (
    ProcessCredit,
    ProcessExit,
    ProcessOutput,
    ProcessStart,
    VmEvent,
)

# What the guest may take to end after its main command has, s.
_GRACE = 5.0


class MainProcess:
    """Listens to one process on behalf of a client that has gone."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    async def start(self, start: ProcessStart, argv: list[str]) -> None:
        """Starts `argv`; raises what the guest says when it cannot."""
        await self._vm.start_process(dataclasses.replace(start, argv=argv, stdin=False), self)

    def deliver(self, event: Any, _source: str) -> None:
        """Logs output, asking for more at once; stops the VM at the end."""
        vm = self._vm
        if isinstance(event, ProcessOutput):
            vm.log.append(event.data)
            if vm.alive:
                vm.vmm.send(ProcessCredit(event.process, event.stream, len(event.data)))
        elif isinstance(event, ProcessExit):
            vm.detail = f"Its command ended with status {event.status}."
            vm.stop(_GRACE)
        else:
            assert isinstance(event, VmEvent | ProcessCredit)
