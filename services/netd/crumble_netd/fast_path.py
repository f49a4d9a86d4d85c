"""Steady TCP flows, lent to the C core (`crumble_native.flow`), and what they are when they come back.

A flow is lent at the end of a round in which nothing was left to do for it, and taken back by whoever looks at its
connection or its stream. Rare things (timers, ends, windows that grow, losses) are always done here, in Python.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crumble_common.virtqueue import RingError, Virtqueue
from crumble_native import flow as native
from crumble_native.flow import Burst, Fixed, Flows
from crumble_native.frames import Outgoing
from crumble_netd.header import virtio_net
from crumble_netd.host_streams import Stream
from crumble_netd.lending import Lending, ends
from crumble_netd.port import Port
from crumble_netd.tcp.congestion import Cubic
from crumble_netd.tcp.control_block import MAX_SCALED
from crumble_netd.tcp.state import State
from crumble_netd.tcp_flow import TcpFlow

if TYPE_CHECKING:
    from crumble_netd.stack import Stack

_NUMBERS = (*native.TIMES, *native.WORDS)
_TAKE = operator.attrgetter(*_NUMBERS)


@dataclass(eq=False, slots=True)
class Lent:
    """A flow in the C core. credit: its stream's, when it was lent."""

    path: FastPath
    index: int
    flow: TcpFlow
    stream: Stream
    credit: int

    def recall(self) -> None:
        """It is Python's again."""
        self.path.recall(self)

    def read(self) -> None:
        """Its socket is readable."""
        self.path.read(self.index)

    def deadline(self) -> float:
        """When its first timer is due, which is waited for from now on; 0 when there is none."""
        assert self.path.flows is not None
        return self.path.flows.deadline(self.index)


def steady(flow: TcpFlow) -> bool:
    """Nothing but segments in order is expected of it next. Short exchanges are not worth it."""
    connection = flow.connection
    if connection is None or not (flow.sent or flow.received) or flow.service == "dns":
        return False
    block = connection.block
    return (
        block.state is State.ESTABLISHED
        and not (block.fin_queued or block.recovering or block.held or block.dup_acks)
        and not (block.tries or block.probes or connection.paused or connection.ack_wanted)
        and not (connection.reassembly or connection.scoreboard.ranges or connection.outputs)
        and connection.reassembly.fin is None
        and connection.buffer.start == block.snd_una
        and isinstance(connection.control, Cubic)
    )


class FastPath(Lending[Lent, Flows]):
    """Of one guest's receive ring. settle: has the stack's commands carried out. pushed: told when something was
    put on the ring, or that this is broken.
    """

    def __init__(
        self, stack: Stack, port: Port, rx: Virtqueue, outgoing: Outgoing,
        settle: Callable[[], None], pushed: Callable[[RingError | None], None],
    ) -> None:  # fmt: skip
        super().__init__(port, native.FLOWS)
        self._stack, self._rx, self._outgoing = stack, rx, outgoing
        self._settle, self._pushed = settle, pushed

    def table(self) -> Flows:
        """By now the guest's MAC is known."""
        if self._flows is None:
            port, features = self._port, self._port.features
            self._flows = Flows(
                self._outgoing,
                self._stack.addresses.mac + port.mac,
                left=bool(features & virtio_net.F_CSUM),
                large4=bool(features & virtio_net.F_HOST_TSO4),
                large6=bool(features & virtio_net.F_HOST_TSO6),
                cut4=not features & virtio_net.F_GUEST_TSO4,
                cut6=not features & virtio_net.F_GUEST_TSO6,
                fill=not features & virtio_net.F_GUEST_CSUM,
            )
        return self._flows

    def lend(self, flow: TcpFlow, stream: Stream) -> bool:
        """Lends a flow that is steady; False when that cannot be."""
        connection, slot = flow.connection, flow.slot
        assert connection is not None
        if not self._free or not stream.lendable:
            return False
        block, settings, buffer = connection.block, connection.settings, connection.buffer
        grows = self._stack.tcp.credit.grows(flow)
        largest = min(settings.rcv_max, 1 << 30 if block.scale_ok else MAX_SCALED)
        fixed = Fixed(
            settings.keepalive_idle, connection.deadline(), flow.freed if grows else 0,
            stream.credit, buffer.size, block.ssthresh, block.mss, block.snd_scale, block.rcv_scale,
            block.rcv_limit, block.rcv_mss, block.ts_ok, block.ts_offset, settings.max_segment,
            block.rcv_limit < largest, flow.credit if grows else 0, buffer.room, stream.fileno,
            stream.watched,
        )  # fmt: skip
        index = self._free.pop()
        notes = slot.notes if slot is not None else None
        if not self.table().lend(index, _TAKE(block), fixed, ends(flow.key), buffer.memory, notes):
            self._free.append(index)
            return False
        self._lent[index] = flow.lent = stream.lent = Lent(self, index, flow, stream, fixed.credit)
        return True

    def push(self, flow: TcpFlow) -> None:
        """A flow that was lent just now may have something to send."""
        if self._flows is not None and isinstance(flow.lent, Lent):
            self._flows.push(flow.lent.index, self._rx, self._stack.now())
            self._after()

    def recall(self, lent: Lent) -> None:
        """For `Lent`."""
        assert self._flows is not None
        moved = self._flows.recall(lent.index)
        del self._lent[lent.index]
        self._free.append(lent.index)
        flow, stream = lent.flow, lent.stream
        flow.lent = stream.lent = None
        connection = flow.connection
        assert connection is not None
        block, buffer = connection.block, connection.buffer
        before = block.snd_una
        for name, value in zip(_NUMBERS, moved.numbers, strict=True):
            setattr(block, name, value)
        if before != block.snd_una:
            block.lost_mark = block.high_rxt = buffer.start = block.snd_una
        buffer.size = moved.size
        connection.ack_wanted = moved.ack_due
        flow.freed = moved.freed
        flow.granted += moved.credit - lent.credit
        flow.sent += moved.sent
        flow.received += moved.received
        flow.last = max(flow.last, block.last_received, block.last_sent)
        stream.returned(moved.sent, moved.credit)
        self._stack.tcp.returned(flow, unsent=moved.blocked)

    # What happens.

    def burst(self, tx: Virtqueue) -> Burst:
        """The guest sent something; raises RingError."""
        assert self._flows is not None
        found = self._flows.burst(tx, self._rx, self._stack.now())
        if found.chains or found.left or self._flows.waiting:
            self._after()
        return found

    def read(self, index: int) -> None:
        """A lent flow's socket is readable."""
        assert self._flows is not None
        self._flows.read(index, self._rx, self._stack.now())
        self._after()

    def unblock(self) -> None:
        """The guest gave buffers."""
        if self._flows is not None and self._flows.blocked:
            self._flows.unblock(self._rx, self._stack.now())
            self._after()

    def _after(self) -> None:
        flows = self._flows
        assert flows is not None
        while flows.blocked and self._rx.want_more():
            flows.unblock(self._rx, self._stack.now())
        events = flows.events()
        for index, why, code in events:
            if lent := self._lent.get(index):  # another's end may have been its own
                self._serve(lent, why, code)
        if any(why != native.WATCH for _, why, _ in events):
            self._settle()
        try:
            if flows.check(self._rx):
                self._pushed(None)
        except RingError as error:
            self._pushed(error)

    def _serve(self, lent: Lent, why: int, code: int) -> None:
        assert self._flows is not None
        if why & native.ERROR:
            lent.recall()
            lent.stream.fail(code)
        elif why & native.RECALL:
            lent.recall()
            lent.stream.read()
        else:
            if why & native.TIMER:
                self._stack.timers.set(("tcp", lent.flow.number), lent.deadline())
            if why & native.WATCH:
                lent.stream.watch(self._flows.watch(lent.index))
