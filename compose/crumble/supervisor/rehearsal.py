"""A command that does nothing, run once in a guest before it is captured for those to come.

It brings into memory what every first command needs: the loader, the C library and the kernel's ways to
them. A clone finds them there instead of asking `fsd` for each.
"""

from __future__ import annotations

import contextlib
from typing import Any

from crumble.supervisor.tasks import Future, limited
from crumble.supervisor.vm import Vm
from crumble_common.errors import CrumbleError, GuestError
from crumble_common.messages.vm import ProcessCredit, ProcessOutput, ProcessStart

# Most images have a shell; those without are none the worse.
_COMMAND = ("/bin/sh", "-c", ":")
# What it may take, s; the capture, and the command that waits for it, do not wait longer.
_LIMIT = 2.0


class _Rehearsal:
    """Listens to the command. ended: when it has, whatever the reason."""

    def __init__(self) -> None:
        self.ended: Future[None] = Future()

    def deliver(self, event: Any, _source: str) -> None:
        """Waits for the process's end, or the VM's."""
        if not isinstance(event, ProcessOutput | ProcessCredit):
            self.ended.set(None)


async def rehearse(vm: Vm) -> None:
    """Runs it to its end. Never fails."""
    listener = _Rehearsal()
    with contextlib.suppress(CrumbleError):
        await vm.start_process(ProcessStart(argv=list(_COMMAND)), listener)
        await limited(vm.host.loop, listener.ended, _LIMIT, _late)
    vm.forget(listener)


def _late() -> CrumbleError:
    return GuestError("The rehearsal took too long.", code="guest.late")
