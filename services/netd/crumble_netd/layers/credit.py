"""How far a connection's host side is read ahead of the guest's acknowledgements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crumble_netd.commands import HostRead

if TYPE_CHECKING:
    from crumble_netd.stack import Stack
    from crumble_netd.tcp_flow import TcpFlow

# Bytes: at first, and at most.
CREDIT_START, CREDIT_MAX = 1 << 16, 512 << 10
# Connections of a guest's that may each have as much.
_FEW = 4


class Credit:
    """Of one stack's connections."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def begin(self, flow: TcpFlow, held: int) -> None:
        """held: bytes that a predecessor read, which are for the guest still."""
        flow.credit = CREDIT_START
        flow.granted = max(0, CREDIT_START - held)
        self._read(flow, flow.granted)

    def grows(self, flow: TcpFlow) -> bool:
        """Whether there may be more, if the guest keeps up: what does not fit the host's caches is copied slowly."""
        few = self._stack.flows.counts[flow.port.number, "tcp"] <= _FEW
        return flow.credit < (CREDIT_MAX if few else CREDIT_MAX // 2)

    def freed(self, flow: TcpFlow, size: int) -> None:
        """The guest has bytes: as many more may be read; twice as many when it keeps up."""
        flow.freed += size
        if flow.freed >= flow.credit and self.grows(flow):
            flow.freed = 0
            if self._stack.budget.take(flow.credit):
                size += flow.credit
                flow.credit *= 2
        flow.granted += size
        self._read(flow, size)

    def end(self, flow: TcpFlow) -> None:
        """What it had beyond its first may be others'."""
        self._stack.budget.give(max(flow.credit - CREDIT_START, 0))

    def _read(self, flow: TcpFlow, size: int) -> None:
        if flow.service != "dns":
            self._stack.emit(HostRead(flow.number, size))
