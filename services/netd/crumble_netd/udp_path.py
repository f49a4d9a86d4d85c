"""UDP flows, lent to the C core (`crumble_native.udp_flow`).

A flow is lent with its third datagram. Only its traffic is served there: the flow stays Python's, which serves
the same socket when a frame comes that is not plain, and keeps its timer. Errors are told here, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crumble_common.virtqueue import RingError, Virtqueue
from crumble_native import udp_flow as native
from crumble_native.flow import Burst
from crumble_native.frames import Outgoing
from crumble_native.udp_flow import UdpFlows
from crumble_netd import events
from crumble_netd.flow_table import Flow
from crumble_netd.header import virtio_net
from crumble_netd.host_sockets import Datagrams
from crumble_netd.layers.udp import SHORT_PORTS
from crumble_netd.lending import Lending, ends
from crumble_netd.port import Port

if TYPE_CHECKING:
    from crumble_netd.stack import Stack


@dataclass(eq=False, slots=True)
class Lent:
    """A flow in the C core."""

    path: UdpPath
    index: int
    flow: Flow
    datagrams: Datagrams

    def recall(self) -> None:
        """It is Python's again."""
        self.path.recall(self)

    def read(self) -> None:
        """Its socket is readable."""
        self.path.read(self)

    def note(self) -> None:
        """The flow says when it was used last, and how much went by."""
        self.path.note(self)


def steady(flow: Flow, datagrams: Datagrams) -> bool:
    """There was more than a question and its answer, and more will come: short exchanges are not worth it."""
    return (
        flow.key.kind == "udp" and datagrams.served > 2 and flow.key.remote_port not in SHORT_PORTS
    )


class UdpPath(Lending[Lent, UdpFlows]):
    """Of one guest's receive ring. pushed: told when something was put on the ring, or that this is broken.
    full: told before the ring's kick is waited for.
    """

    def __init__(
        self, stack: Stack, port: Port, rx: Virtqueue, outgoing: Outgoing,
        pushed: Callable[[RingError | None], None], full: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(port, native.FLOWS)
        self._stack, self._rx, self._outgoing = stack, rx, outgoing
        self._pushed, self._full = pushed, full
        self._unwatched: list[Lent] = []

    @property
    def waits(self) -> bool:
        """For room on the ring."""
        return self._flows is not None and self._flows.waiting is not None

    def table(self) -> UdpFlows:
        """By now the guest's MAC is known."""
        if self._flows is None:
            port, features = self._port, self._port.features
            self._flows = UdpFlows(
                self._outgoing, self._stack.addresses.mac + port.mac, port.mtu,
                left=bool(features & virtio_net.F_CSUM),
                fill=not features & virtio_net.F_GUEST_CSUM,
            )  # fmt: skip
        return self._flows

    def lend(self, flow: Flow, datagrams: Datagrams) -> None:
        """Lends a flow that is steady, if that can be."""
        if not self._free or not steady(flow, datagrams):
            return
        index = self._free.pop()
        if not self.table().lend(index, ends(flow.key), datagrams.fileno, self._stack.now()):
            self._free.append(index)
            return
        self._lent[index] = datagrams.lent = Lent(self, index, flow, datagrams)

    def note(self, lent: Lent) -> None:
        """For `Lent`."""
        assert self._flows is not None
        flow, used = lent.flow, self._flows.used(lent.index)
        flow.last = max(flow.last, used.last)
        flow.sent += used.sent
        flow.received += used.received

    def recall(self, lent: Lent) -> None:
        """For `Lent`."""
        assert self._flows is not None
        self.note(lent)
        self._flows.recall(lent.index)
        self._watch()
        del self._lent[lent.index]
        self._free.append(lent.index)
        lent.datagrams.lent = None
        if lent in self._unwatched:
            self._unwatched.remove(lent)
            lent.datagrams.watch(wanted=True)

    # What happens.

    def burst(self, tx: Virtqueue) -> Burst:
        """The guest sent something; raises RingError."""
        assert self._flows is not None
        found = self._flows.burst(tx, self._stack.now())
        if self._flows.waiting is None:
            self._fail()
        else:
            self._after()  # they were read in C meanwhile
        return found

    def read(self, lent: Lent) -> None:
        """A lent flow's socket is readable. With a full ring that has to wait, in the socket."""
        assert self._flows is not None
        if self._flows.waiting is None:
            self._flows.read(lent.index, self._rx, self._stack.now())
            self._after()
        if self._flows.waiting is not None and lent.datagrams.lent is lent:
            lent.datagrams.watch(wanted=False)
            self._unwatched.append(lent)

    def unblock(self) -> None:
        """The guest gave buffers."""
        if self._flows is not None and self._flows.waiting is not None:
            self._flows.resume(self._rx)
            self._after()

    def _after(self) -> None:
        flows = self._flows
        assert flows is not None
        while (waiting := flows.waiting) is not None:
            if (data := flows.odd()) is not None:
                lent = self._lent[waiting]
                lent.datagrams.tell(events.Received(lent.flow.number, data))
            elif not self._rx.want_more():
                self._full()
                break
            flows.resume(self._rx)
        self._watch()
        self._fail()
        try:
            if flows.check(self._rx):
                self._pushed(None)
        except RingError as error:
            self._pushed(error)

    def _watch(self) -> None:
        """Nothing waits for room any more: sockets are read again."""
        assert self._flows is not None
        if self._flows.waiting is None and self._unwatched:
            again, self._unwatched = self._unwatched, []
            for lent in again:
                lent.datagrams.watch(wanted=True)

    def _fail(self) -> None:
        assert self._flows is not None
        for index, code in self._flows.events():
            if lent := self._lent.get(index):  # another's end may have been its own
                lent.datagrams.tell(events.Failed(lent.flow.number, code))
