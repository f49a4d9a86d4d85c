"""Control requests about debugging: where gdb may connect, instruction traces, counters."""

from __future__ import annotations

import socket
from collections.abc import Callable

from crumble_common.errors import UsageError
from crumble_common.eventloop import EventLoop
from crumble_common.messages.debug import (
    DebugCount,
    DebugCounted,
    DebugStart,
    DebugTrace,
    DebugTraced,
)
from crumble_common.service import Reply
from crumble_vmm.debug.server import MAX_TRACE, DebugServer, end_trace, start_trace
from crumble_vmm.debug.target import need_soft
from crumble_vmm.machine import Machine

_LONGEST = 20.0  # s


class Debugging:
    """For one machine. take_fd: an fd from the inbox, by name."""

    def __init__(self, machine: Machine, loop: EventLoop, take_fd: Callable[[str], int]) -> None:
        self._machine, self._loop, self._take_fd = machine, loop, take_fd
        self._server: DebugServer | None = None
        self._tracing = False

    def handle(self, message: DebugStart | DebugTrace | DebugCount, reply: Reply) -> None:
        """Does it; raises UsageError."""
        need_soft(self._machine)
        if isinstance(message, DebugCount):
            reply.ok(self._counted())
            return
        if self._tracing or (self._server is not None and self._server.busy):
            raise UsageError(
                "The VM is being debugged already.", code="debug.busy", hint="End that first."
            )
        if isinstance(message, DebugStart):
            self._listen(message.listen_fd)
            reply.ok()
        else:
            self._trace(message, reply)

    def _counted(self) -> DebugCounted:
        fallbacks: dict[str, list[int]] = {}
        for cpu in self._machine.cpus:
            for name, counts in cpu.debug_hart().fallbacks().items():
                before = fallbacks.get(name, [0, 0])
                fallbacks[name] = [had + new for had, new in zip(before, counts, strict=True)]
        return DebugCounted(self._machine.vm.counters(), fallbacks)

    def _listen(self, name: str) -> None:
        listener = socket.socket(fileno=self._take_fd(name))
        if self._server is not None:
            self._server.close()
        self._server = DebugServer(self._loop, self._machine, listener)

    def _trace(self, message: DebugTrace, reply: Reply) -> None:
        if self._machine.paused:
            raise UsageError(
                "The VM is paused: it executes nothing.", code="vm.paused", hint="Resume it."
            )
        try:
            start_trace(self._machine, message.cpu, message.count)
        except ValueError:
            raise UsageError(
                f"There is no vCPU {message.cpu}, or {message.count} instructions are too many.",
                code="debug.trace",
                hint=f"The VM has {len(self._machine.cpus)} vCPUs; a trace holds up to {MAX_TRACE} instructions.",
            ) from None
        self._tracing = True
        seconds = min(max(message.seconds, 0.0), _LONGEST)
        self._loop.call_later(seconds, lambda: self._traced(message.cpu, reply))

    def _traced(self, cpu: int, reply: Reply) -> None:
        if self._tracing:
            self._tracing = False
            reply.ok(DebugTraced(end_trace(self._machine, cpu)))

    def close(self) -> None:
        """The VM ends."""
        self._tracing = False
        if self._server is not None:
            self._server.close()
            self._server = None
