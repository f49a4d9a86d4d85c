"""The virtio-net device (virtio 1.2 §5.1) behind vhost-user: frames between a guest's rings and the stack.

Queue 0 is what the guest receives, queue 1 what it sends. A frame for a guest whose ring has no buffers
waits; the stack is told, so that TCP does not send into a full ring. A driver that knows no large segments
gets them cut, and those it sends are joined, in C (`crumble_native.frames`): the stack sees large ones only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from crumble_common import doorbell, log
from crumble_common.doorbell import QueuePump, Served
from crumble_common.eventloop import EventLoop
from crumble_common.vhost_user import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_VERSION_1,
    Ring,
)
from crumble_common.virtqueue import RingError, Virtqueue
from crumble_native import frames
from crumble_native.flow_wait import Waiter
from crumble_native.frames import Incoming, Outgoing
from crumble_netd import segment
from crumble_netd.commands import Frame
from crumble_netd.fast_path import FastPath
from crumble_netd.flow_table import Flow
from crumble_netd.header import virtio_net
from crumble_netd.header.virtio_net import Offload
from crumble_netd.host_sockets import Datagrams
from crumble_netd.host_streams import Stream
from crumble_netd.pcap import Capture
from crumble_netd.port import Port
from crumble_netd.stack import Stack
from crumble_netd.tcp_flow import TcpFlow
from crumble_netd.udp_path import UdpPath

RX, TX = 0, 1
ETHERNET_MTU = 1500
# Frames that wait for a guest's buffers; what comes on top is dropped, as by any full queue.
_BACKLOG_FRAMES, _BACKLOG_BYTES = 1024, 4 << 20

OFFLOADS = (
    virtio_net.F_CSUM | virtio_net.F_GUEST_CSUM | virtio_net.F_HOST_TSO4 | virtio_net.F_HOST_TSO6
    | virtio_net.F_GUEST_TSO4 | virtio_net.F_GUEST_TSO6 | virtio_net.F_MRG_RXBUF
)  # fmt: skip
_LEFT_OUT = ("drop.virtio.short", "drop.ethernet.length")
CONFIGURED = virtio_net.F_MAC | virtio_net.F_MTU | virtio_net.F_STATUS


class NetDevice:
    """A crumble_common.vhost_user.Device for one port of the stack.

    settle: has the stack's commands carried out; called after each batch of frames. waiter: the loop's, which serves
    lent flows.
    """

    features = (
        VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC | OFFLOADS | CONFIGURED
    )
    queues = 2
    config = None

    def __init__(
        self, loop: EventLoop, stack: Stack, port: Port, settle: Callable[[], None],
        waiter: Waiter | None = None,
    ) -> None:  # fmt: skip
        self.pump = QueuePump(loop)
        self._waiter = waiter
        self._side = -1  # the waiter's
        self._capture: Capture | None = None
        self._fast: FastPath | None = None
        self._udp: UdpPath | None = None
        # Told when the guest's receive ring is there.
        self.up: Callable[[], None] = lambda: None
        self._loop = loop
        self._stack, self._port = stack, port
        self._settle = settle
        self._mtu = port.mtu
        self._ring: Ring | None = None
        self._tx: Virtqueue | None = None
        self._incoming = Incoming()
        self._outgoing = Outgoing(merge=False)
        self._done = 0  # of the first of the backlog, when it is cut
        self._backlog: deque[Frame] = deque()
        self._waiting = 0
        self._pushed = False
        self._delayed = False  # by the guest's rate
        self._served: Served | None = None
        self._call_tx = -1
        port.cuts = True

    @property
    def capture(self) -> Capture | None:
        """Where the guest's frames go besides, all of which are looked at then."""
        return self._capture

    @capture.setter
    def capture(self, capture: Capture | None) -> None:
        self._capture = capture
        for path in self._paths:
            path.recall_all()

    @property
    def _paths(self) -> list[FastPath | UdpPath]:
        return [path for path in (self._fast, self._udp) if path is not None]

    @property
    def _looks(self) -> bool:
        """Every frame is to be looked at."""
        port = self._port
        limited = port.rate_out.limited or port.rate_in.limited
        return self._capture is not None or limited or bool(self._backlog)

    def lend(self, flow: TcpFlow, stream: Stream, *, push: bool = False) -> bool:
        """A steady flow is served without Python from now on, if no frame is to be looked at. push: at once."""
        if self._fast is None or self._looks:
            return False
        lent = self._fast.lend(flow, stream)
        if lent:
            self._wait_in_c()
        if lent and push:
            self._fast.push(flow)
        return lent

    def lend_datagrams(self, flow: Flow, datagrams: Datagrams) -> None:
        """The same for a UDP flow."""
        if self._udp is not None and not self._looks:
            self._udp.lend(flow, datagrams)
            if self._udp.live:
                self._wait_in_c()

    def _wait_in_c(self) -> None:
        """The loop's waiter knows of the flows that are lent, unless somebody here waits for room on the ring."""
        rx, served, fast, udp = self._ring, self._served, self._fast, self._udp
        if self._side >= 0 or self._backlog or (udp is not None and udp.waits):
            return
        if self._waiter is None or rx is None or rx.queue is None:
            return
        if fast is None or udp is None or served is None or not served.live:
            return
        self._side = self._waiter.add(
            fast.table(), rx.queue, served.queue, self.pump.spinner,
            (rx.kick_fd, served.kick_fd), (rx.call_fd, self._call_tx), udp.table(),
        )  # fmt: skip

    def _wait_no_more(self) -> None:
        """The rings' kicks are for us."""
        if self._waiter is not None and self._side >= 0:
            self._waiter.remove(self._side)
        self._side = -1

    def count(self) -> None:
        """The port's counters are right."""
        for path in self._paths:
            path.count()

    @property
    def is_up(self) -> bool:
        """The guest's receive ring is there."""
        return self._ring is not None

    def negotiated(self, features: int) -> None:
        """Of vhost_user.Device."""
        self._port.features = features
        self._outgoing = Outgoing(merge=bool(features & virtio_net.F_MRG_RXBUF))
        self._port.mtu = self._mtu if features & virtio_net.F_MTU else min(self._mtu, ETHERNET_MTU)

    def start(self, ring: Ring) -> None:
        """Of vhost_user.Device."""
        assert ring.queue is not None
        if ring.index == RX:
            self._ring = ring
            self._fast = FastPath(
                self._stack, self._port, ring.queue, self._outgoing, self._settle, self._fast_pushed
            )
            self._udp = UdpPath(
                self._stack, self._port, ring.queue, self._outgoing, self._fast_pushed,
                self._wait_no_more,
            )  # fmt: skip
            ring.queue.disable_kicks()
            if ring.kick_fd >= 0:
                self._loop.add_fd(ring.kick_fd, "kick rx", self._kicked)
            self._loop.call_soon(self.up)
            return
        self._tx, self._call_tx = ring.queue, ring.call_fd

        def broken(error: RingError) -> None:
            self._wait_no_more()
            log.warning("ring broken", queue=ring.index, reason=error.message)
            ring.fail()

        def notify() -> None:
            doorbell.ring(ring.call_fd)

        self._served = Served(ring.queue, ring.kick_fd, None, notify, broken, take=self._take)
        self.pump.add(self._served)

    def stop(self, index: int) -> None:
        """Of vhost_user.Device."""
        self._wait_no_more()
        if index == TX and self._tx is not None:
            self.pump.remove(self._tx)
            self._tx = self._served = None
        if index == RX and self._ring is not None:
            ring, self._ring = self._ring, None
            if ring.kick_fd >= 0:
                self._loop.remove_fd(ring.kick_fd)
            for path in self._paths:
                path.recall_all()
            self._fast = self._udp = None
            self._drop_backlog()

    def reset(self) -> None:
        """Of vhost_user.Device."""

    # From the guest.

    def _take(self) -> int:
        """A burst of what the guest sends: of steady flows in C, as far as that goes."""
        queue, chains, more = self._tx, 0, True
        assert queue is not None
        if self._backlog and not self._delayed:
            self._send_backlog()  # before what acknowledgements have flows send that are lent
        paths = [path for path in self._paths if path.live]
        while more:
            more = False
            for path in paths:
                taken, left = path.burst(queue)
                chains += taken
                if not left or chains >= frames.BURST:
                    return chains
                more |= bool(taken) and len(paths) > 1  # the next frame may be the other's
        return chains + self._look(queue)

    def _look(self, queue: Virtqueue) -> int:
        """Frames to be looked at; given back when what they lead to has been done, and noted."""
        port, incoming = self._port, self._incoming
        # A capture shows what the guest sent; a rate is kept to a frame.
        mac = None if self.capture is not None else self._stack.addresses.mac
        limit = 1 if port.rate_out.limited else frames.BURST
        left = bool(port.features & virtio_net.F_CSUM)
        chains, taken = incoming.take(queue, limit, mac, left=left)
        if not chains:
            return 0
        for frame, count, header in taken:
            if self.capture is not None:
                self.capture.frame([frame])
            self._stack.frame(port.number, frame, Offload(*header), count)
        self._count_left_out()
        self._settle()
        incoming.give(queue)
        self._slow_down(incoming.size)
        return chains

    def _count_left_out(self) -> None:
        for reason, count in zip(_LEFT_OUT, self._incoming.left_out, strict=True):
            if count:
                self._port.counts[reason] += count

    def _slow_down(self, size: int) -> None:
        """A guest over its rate is not served for a while: its ring fills, and nothing is lost."""
        now, rate = self._loop.now(), self._port.rate_out
        rate.spend(size, now)
        if (wait := rate.wait(now)) and self._served is not None and self._served.live:
            self._wait_no_more()
            self.pump.remove(self._served.queue)
            served = self._served
            self._loop.call_later(wait, lambda: self._again(served))

    def _again(self, served: Served) -> None:
        if served is self._served:
            self.pump.add(served)

    # To the guest.

    def transmit(self, frame: Frame) -> None:
        """Puts a frame on the guest's ring, or keeps it until there is room."""
        counts = self._port.counts
        if self._ring is None:
            counts["tx.dropped"] += 1
            return
        if self.capture is not None:
            for part in segment.packets(frame):
                self.capture.frame((part.head, *part.payload))
        counts["tx.frames"] += 1
        counts["tx.bytes"] += frame.size
        now = self._loop.now()
        late = self._port.rate_in.wait(now)
        self._port.rate_in.spend(frame.size, now)
        if not self._backlog and not late and self._put(frame):
            return
        if len(self._backlog) >= _BACKLOG_FRAMES or self._waiting >= _BACKLOG_BYTES:
            counts["tx.dropped"] += 1
            return
        # What it lies in may be used for something else before it is sent.
        payload = [memoryview(b"".join(frame.payload))] if frame.payload else []
        self._backlog.append(frame._replace(payload=payload))
        self._waiting += frame.size
        self._stack.pause(self._port.number, paused=True)
        self._wait_no_more()
        if late and not self._delayed:
            self._delayed = True
            self._loop.call_later(late, self._delay_over)

    def _delay_over(self) -> None:
        self._delayed = False
        self._send_backlog()

    def _put(self, frame: Frame) -> bool:
        """True when the frame has been dealt with."""
        ring = self._ring
        assert ring is not None
        queue = ring.queue
        assert queue is not None
        offload, features = frame.offload, self._port.features
        wanted = virtio_net.TAKES[offload.gso_type & ~virtio_net.GSO_ECN]
        cut = bool(wanted & ~features)
        fill = offload.checksum_left and not features & virtio_net.F_GUEST_CSUM
        parts: list[bytes | memoryview] = [frame.head, *frame.payload]
        try:
            while True:
                result, self._done = self._outgoing.put(
                    queue, parts, offload, cut=cut, fill=fill, done=self._done
                )
                if result or not queue.want_more():
                    break
        except RingError as error:
            self._broken(ring, error)
            return True
        self._pushed = True
        if result:
            self._done = 0
        if result == frames.TOO_LARGE:
            self._port.counts["tx.too_large"] += 1
        return bool(result)

    def _broken(self, ring: Ring, error: RingError) -> None:
        log.warning("ring broken", queue=ring.index, reason=error.message)
        ring.fail()
        self.stop(RX)

    def _kicked(self) -> None:
        """The guest gave buffers while frames waited for some."""
        ring = self._ring
        if ring is None or ring.queue is None:
            return
        doorbell.drain(ring.kick_fd)
        if not self._delayed:
            self._send_backlog()
        for path in self._paths:
            path.unblock()
        if any(path.live for path in self._paths):
            self._wait_in_c()

    def _fast_pushed(self, error: RingError | None) -> None:
        """Frames of steady flows are on the guest's ring; or it is broken."""
        if error is not None and self._ring is not None:
            self._broken(self._ring, error)
        self._pushed = True
        self.flush()

    def _send_backlog(self) -> None:
        while self._backlog and self._ring is not None and self._put(self._backlog[0]):
            if self._backlog:
                self._waiting -= self._backlog.popleft().size
        if not self._backlog:
            if self._ring is not None and self._ring.queue is not None:
                self._ring.queue.disable_kicks()
            self._stack.pause(self._port.number, paused=False)
        self._settle()

    def _drop_backlog(self) -> None:
        self._backlog.clear()
        self._waiting = self._done = 0
        self._stack.pause(self._port.number, paused=False)

    def flush(self) -> None:
        """Interrupts the guest for what was put on its ring, if it wants to be."""
        if self._pushed and self._ring is not None:
            self._ring.notify()
        self._pushed = False
