"""One TCP connection with a guest, without I/O: segments, application calls and time in, outputs out.

Theory of operation. A `Connection` is a ControlBlock (numbers), a SendBuffer (what the host side wrote
and the guest has not acknowledged), a Reassembly (what came out of order) and a Scoreboard (what the guest
says it has). `receive.py` takes segments (RFC 9293 §3.10.7), `transmit.py` sends what windows allow and
serves timers; `state.py` is the table of states. Everything that happens is appended to `outputs`, in order.

ACKs of data in order are not sent at once but by `flush`, which the stack calls after each batch of
frames: one ACK for a burst. Out of order data is acknowledged at once, so that the sender learns of it.
In-order data goes to the application right away; it counts as `held` until the application has `consumed`
it, and the window closes by it. Data that was accepted is never dropped.
"""

from __future__ import annotations

from collections.abc import Callable

from crumble_netd.header.tcp import ACK, RST, SYN, Segment
from crumble_netd.tcp import congestion, receive, transmit
from crumble_netd.tcp.buffers import SendBuffer
from crumble_netd.tcp.congestion import Congestion, Cubic
from crumble_netd.tcp.control_block import ControlBlock
from crumble_netd.tcp.outputs import Ended, Established, Output
from crumble_netd.tcp.reassembly import Reassembly
from crumble_netd.tcp.scoreboard import Scoreboard
from crumble_netd.tcp.sequence import add
from crumble_netd.tcp.settings import DEFAULTS, Settings
from crumble_netd.tcp.state import Event, State, after


class Connection:
    """See the module. `peer` in comments is the guest, the application is the host side."""

    def __init__(
        self,
        iss: int,
        settings: Settings = DEFAULTS,
        control: Congestion | None = None,
        ts_offset: int = 0,
    ) -> None:
        self.settings = settings
        self.control: Congestion = control or Cubic()
        self.block = ControlBlock(
            iss=iss,
            snd_una=iss,
            snd_nxt=iss,
            recovery_point=iss,
            high_rxt=iss,
            lost_mark=iss,
            rcv_limit=settings.rcv_start,
            rcv_scale=settings.rcv_scale,
            rcv_mss=settings.mss,
            ts_offset=ts_offset,
        )
        self.buffer = SendBuffer(add(iss, 1))
        self.reassembly = Reassembly()
        self.scoreboard = Scoreboard()
        self.outputs: list[Output] = []
        self.ack_wanted = False
        self.paused = False
        # Asked before the receive window's limit grows by so many bytes.
        self.grow: Callable[[int], bool] = lambda _: True

    def keep(self, memory: memoryview, enlarged: Callable[[int], None]) -> None:
        """The send buffer, empty as yet, is to be in `memory`; see SendBuffer."""
        self.buffer = SendBuffer(self.buffer.start, memory, enlarged)

    # What the application does.

    def accept(self, syn: Segment, now: float) -> None:
        """Passive open: answers the peer's SYN."""
        self.move(Event.LISTEN)
        self.block.last_received = now
        receive.learn_syn(self, syn, now)
        self.move(Event.SYN)
        transmit.send_syn(self, SYN | ACK, now)

    def open(self, now: float) -> None:
        """Active open."""
        self.move(Event.OPEN)
        self.block.last_received = now
        transmit.send_syn(self, SYN, now)

    def write(self, data: bytes | memoryview, now: float) -> None:
        """Bytes for the peer. The application keeps to what `Freed` tells it."""
        assert not self.block.fin_queued
        self.buffer.append(data)
        transmit.push(self, now)

    def filled(self, count: int, now: float) -> None:
        """`write`, of bytes that are in the send buffer's space already."""
        assert not self.block.fin_queued
        self.buffer.filled(count)
        transmit.push(self, now)

    def shutdown(self, now: float) -> None:
        """No more bytes follow: a FIN after those that are waiting."""
        if not self.block.fin_queued:
            self.block.fin_queued = True
            transmit.push(self, now)

    def abort(self, now: float) -> None:
        """Ends at once, with a RST where the peer knows of the connection."""
        if self.block.state not in (State.CLOSED, State.LISTEN, State.SYN_SENT, State.TIME_WAIT):
            transmit.send(self, self.block.snd_nxt, RST | ACK, now)
        self.end("aborted")

    def consumed(self, count: int, now: float) -> None:
        """The application took `count` bytes of what it was given."""
        transmit.consumed(self, count, now)

    def push(self, now: float) -> None:
        """Sends what windows allow."""
        transmit.push(self, now)

    def resume(self, now: float) -> None:
        """The way to the peer, which was `paused`, is free again."""
        self.paused = False
        transmit.push(self, now)

    # What the network does.

    def arrive(self, segment: Segment, now: float) -> None:
        """A segment from the peer, its checksum verified."""
        receive.arrive(self, segment, now)

    def path_mtu(self, mss: int, now: float) -> None:
        """Segments with more payload than `mss` do not get through (RFC 1191)."""
        if mss < self.block.mss:
            self.block.mss = max(mss, 88)
            transmit.lose_all(self)
            transmit.push(self, now)

    def flush(self, now: float) -> None:
        """Sends the ACK that is due, if no segment has carried it."""
        if self.ack_wanted:
            transmit.send_ack(self, now)

    # Time.

    def deadline(self) -> float:
        """When `tick` is to be called; 0 for never."""
        block = self.block
        timers = (block.rtx_at, block.persist_at, block.keepalive_at, block.end_at)
        return min((at for at in timers if at), default=0.0)

    def tick(self, now: float) -> None:
        """Serves the timers that are due."""
        transmit.tick(self, now)

    # Inside the package.

    def move(self, event: Event) -> None:
        """Takes the table's step; the connection ends in CLOSED."""
        block = self.block
        old, block.state = block.state, after(block.state, event)
        if block.state is State.CLOSED and old is not State.CLOSED:
            block.rtx_at = block.persist_at = block.keepalive_at = block.end_at = 0.0
            self.ack_wanted = False

    def established(self, now: float) -> None:
        """The handshake is over."""
        block = self.block
        if not block.cwnd:
            block.cwnd = congestion.initial_window(block.mss)
        block.tries = 0
        block.keepalive_at = now + self.settings.keepalive_idle
        self.outputs.append(Established())

    def end(self, reason: str) -> None:
        """To CLOSED; tells the application once."""
        if self.block.state is not State.CLOSED:
            self.move(Event.ENDED)
            self.outputs.append(Ended(reason))

    def take(self) -> list[Output]:
        """What happened since the last call, in order."""
        outputs, self.outputs = self.outputs, []
        return outputs
