"""UDP flows between a driver's rings and connected sockets of the host, served in C. See native/include/crumble/udp_flow.h."""

from __future__ import annotations

from typing import Any, NamedTuple

from crumble_native._core import ffi, lib
from crumble_native.flow import Burst
from crumble_native.frames import Outgoing
from crumble_native.vring import Virtqueue

FLOWS: int = lib.CRB_UDP_FLOWS


class Used(NamedTuple):
    """When a datagram went either way, and bytes of payload since this was asked for."""

    last: float
    sent: int
    received: int


class UdpFlows:
    """Flows lent to the C core: by index, below FLOWS. outgoing: of the driver that they go to.

    ends: MAC addresses as in a frame from the guest. mtu: of the guest. left: the driver may leave checksums to the
    device; fill: it wants them.
    """

    def __init__(
        self, outgoing: Outgoing, ends: bytes, mtu: int, *, left: bool, fill: bool
    ) -> None:
        found = lib.crb_udp_flows_new()
        if found == ffi.NULL:
            raise MemoryError("there is no memory for flows")
        self._table: Any = ffi.gc(found, lib.crb_udp_flows_free)
        self._outgoing = outgoing  # as long as we are
        self._left: Any = ffi.new("bool *")
        table = self._table
        table.ends, table.out, table.mtu = ends, outgoing.handle, mtu
        table.left, table.fill = left, fill

    @property
    def handle(self) -> Any:
        """For who waits for their sockets."""
        return self._table

    def lend(self, index: int, key: bytes, fd: int, now: float) -> bool:
        """key: addresses and ports as in a datagram from the guest. fd: a connected socket. False when it cannot be."""
        flow = self._table.flows[index]
        if flow.live:
            return False
        ffi.buffer(flow.key)[: len(key)] = key
        flow.six, flow.fd = len(key) != 12, fd
        return bool(lib.crb_udp_lend(self._table, index, now))

    def recall(self, index: int) -> None:
        """Takes it back; what waits of it is lost."""
        lib.crb_udp_recall(self._table, index)

    def used(self, index: int) -> Used:
        """What a flow did since the last call."""
        flow = self._table.flows[index]
        found = Used(flow.last, flow.sent, flow.received)
        flow.sent = flow.received = 0
        return found

    def burst(self, tx: Virtqueue, now: float) -> Burst:
        """Serves what the driver sends; raises the queue's error when its ring is broken."""
        chains = lib.crb_udp_burst(self._table, tx.handle, now, self._left)
        if chains < 0:
            raise tx.broken(chains)
        return Burst(chains, self._left[0])

    def read(self, index: int, rx: Virtqueue, now: float) -> None:
        """A flow's socket is readable. Not while something waits."""
        lib.crb_udp_read(self._table, index, rx.handle, now)

    def resume(self, rx: Virtqueue) -> None:
        """There is room in the driver's ring, or the odd one has been taken."""
        lib.crb_udp_resume(self._table, rx.handle)

    @property
    def waiting(self) -> int | None:
        """The flow whose datagrams wait for room in the driver's ring."""
        reader: int = self._table.reader
        return reader - 1 if reader else None

    def odd(self) -> bytes | None:
        """The next of those that wait, when it does not fit a packet of the guest's."""
        table = self._table
        if not table.odd:
            return None
        at = table.n_put - 1
        return bytes(ffi.buffer(table.data[at], table.read_sizes[at]))

    def check(self, rx: Virtqueue) -> bool:
        """Whether something was put on the driver's ring since the last call; raises its error when it is broken."""
        table = self._table
        if table.broken:
            raise rx.broken(table.broken)
        pushed, table.pushed = bool(table.pushed), False
        return pushed

    def events(self) -> list[tuple[int, int]]:
        """Flows whose sockets had an error: index, errno."""
        table = self._table
        if not table.n_events:
            return []
        found = []
        for index in ffi.unpack(table.events, table.n_events):
            flow = table.flows[index]
            if flow.live and flow.error:
                found.append((index, int(flow.error)))
            flow.error = 0
        table.n_events = 0
        return found

    def counts(self) -> tuple[int, int, int, int, int]:
        """Frames and bytes from the driver, and to it, and frames too large for it, since the last call."""
        table = self._table
        found = (table.rx_frames, table.rx_bytes, table.tx_frames, table.tx_bytes, table.too_large)
        table.rx_frames = table.rx_bytes = table.tx_frames = table.tx_bytes = table.too_large = 0
        return found
