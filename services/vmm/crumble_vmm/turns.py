"""When a deterministic guest goes on, and when it waits for the host (docs/decisions/0013).

It goes on while it boots, and afterwards while something that the host asked of it is not done: a process
runs, a file is read. Otherwise it stands still and its clock with it, so that the next request finds it at
the same instruction whenever it comes. So it does while a process's stdin has room and has not ended, and
while its output is not read. What comes in between all the same (signals, a second request) comes at no
particular instruction, and `disturbed` says so from then on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any

from crumble_common.errors import UsageError
from crumble_common.messages import vm as messages
from crumble_vmm.agent.session import AgentSession
from crumble_vmm.lockstep import Lockstep
from crumble_vmm.machine import Machine

# Of a process's output, what its reader may be behind.
_UNREAD = 1 << 20
_NS_PER_TICK = 100  # boards/riscv64.py, TIMEBASE
_PAGE = 4096


class Turns:
    """Of one machine. pump: gives the guest what the session wants to say. All in the loop's thread."""

    def __init__(
        self,
        lockstep: Lockstep,
        machine: Machine,
        session: AgentSession,
        pump: Callable[[], None],
    ) -> None:
        self._lockstep, self._machine, self._session = lockstep, machine, session
        self._pump = pump
        self._unread: dict[int, int] = {}
        self._ending = False
        self.disturbed = False
        session.whole_input = True
        lockstep.uptime = lambda: machine.vm.time * _NS_PER_TICK
        lockstep.over = lambda: machine.stopping
        lockstep.settled = self._settle
        machine.meet = lockstep.take_turn

    def check(self, message: Any) -> None:
        """Raises UsageError for what cannot be the same twice."""
        if isinstance(message, messages.Freeze):
            what, hint = "be captured", "Run the same command again instead."
        elif isinstance(message, messages.ProcessStart) and message.tty:
            what, hint = "have a terminal", "Give it a file or a pipe as stdin."
        else:
            return
        raise UsageError(f"A deterministic VM cannot {what}.", code="vm.deterministic", hint=hint)

    def output(self, process: int, stream: int, size: int) -> None:
        """The guest may print as much again, at once: how fast it is read is no matter of its."""
        self._unread[process] = self._unread.get(process, 0) + size
        self._session.credit(process, stream, size)

    def read(self, process: int, size: int) -> None:
        """The client has read some."""
        self._unread[process] = self._unread.get(process, 0) - size

    def asked(self, message: Any) -> None:
        """The host has asked or told something, which is in the session."""
        self._ending = self._ending or isinstance(message, messages.Shutdown)
        if self._machine.still:
            self._settle()
        elif self._session.talkative:
            self._machine.hold()
            self._settle()
            self._machine.let_go()
            self.disturbed = True

    def _settle(self) -> None:
        """The guest hears what there is to say, and goes on or does not."""
        self._pump()
        self._lockstep.drain()
        self._machine.stand(not self._goes_on())

    def _goes_on(self) -> bool:
        session = self._session
        if self._ending or not session.ready:
            return True
        late = any(self._unread.get(number, 0) >= _UNREAD for number in session.numbers)
        return bool(session.numbers) and not session.hungry and not late

    def digest(self) -> messages.Digested:
        """What the guest is now."""
        machine = self._machine
        machine.hold()
        try:
            state = machine.cpus[0].get_state()
            digest = hashlib.sha256(repr(sorted(state.items())).encode())
            digest.update(machine.vm.get_controller())
            digest.update(machine.vm.time.to_bytes(8, "little"))
            _hash_memory(digest, machine.memory.fd)
        finally:
            machine.let_go()
        return messages.Digested(state["instret"], digest.hexdigest(), self.disturbed)


def digest(turns: Turns | None) -> messages.Digested:
    """Answers a Digest; UsageError when the guest is not deterministic."""
    if turns is None:
        raise UsageError(
            "The VM is not deterministic.",
            code="vm.not_deterministic",
            hint="Run it with --deterministic.",
        )
    return turns.digest()


def _hash_memory(digest: Any, fd: int) -> None:
    """All pages that are not zeroes. By reading, which makes no pages where there are none."""
    zeroes, at, end = bytes(_PAGE), 0, os.lseek(fd, 0, os.SEEK_END)
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # nothing follows
            return
        hole = os.lseek(fd, at, os.SEEK_HOLE)
        while at < hole:
            data = os.pread(fd, min(hole - at, 1 << 20), at)
            for start in range(0, len(data), _PAGE):
                page = data[start : start + _PAGE]
                if page != zeroes:
                    digest.update((at + start).to_bytes(8, "little") + page)
            at += len(data)
