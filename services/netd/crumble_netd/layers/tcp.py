"""TCP between a guest and the host side: every connection ends here, and another one begins.

A guest's SYN is answered when the host side has connected, so that "refused" and "unreachable" reach the
guest as what they are. Flow control is end to end: a connection's receive window closes by what the host's
kernel has not taken; the host side is read only as far as the guest's side has room (HostRead).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from crumble_netd.commands import (
    Adopt,
    HostClose,
    HostConnect,
    HostSend,
    HostShutdown,
    Refuse,
)
from crumble_netd.events import Accepted
from crumble_netd.flow_table import Key
from crumble_netd.header import tcp
from crumble_netd.header.tcp import ACK, RST, SYN, Segment
from crumble_netd.layers import keeping
from crumble_netd.layers.credit import Credit
from crumble_netd.layers.opening import Opening
from crumble_netd.ledger import Slot
from crumble_netd.policy import LOOPBACK4, LOOPBACK6
from crumble_netd.port import Port
from crumble_netd.tcp.connection import Connection
from crumble_netd.tcp.outputs import Data, Ended, Established, Freed, Output, PeerClosed, Send
from crumble_netd.tcp.sequence import add, before
from crumble_netd.tcp.state import State
from crumble_netd.tcp_flow import TcpFlow

if TYPE_CHECKING:
    from crumble_netd.layers.ip import Packet
    from crumble_netd.stack import Stack

DNS_PORT = 53


class TcpLayer:
    """All connections. ending: by number, the slots of flows that are no more but for their host's socket."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.opening, self.credit = Opening(stack), Credit(stack)
        self._dirty: dict[TcpFlow, None] = {}
        self._waiting: dict[TcpFlow, None] = {}  # in TIME-WAIT, oldest first
        self._unnoted: dict[TcpFlow, None] = {}
        self._served: dict[TcpFlow, None] = {}
        self._unsent: dict[TcpFlow, None] = {}
        # Has a flow push where nobody waits for it, and says whether it could.
        self.pusher: Callable[[TcpFlow], bool] = lambda _: False
        self.ending: dict[int, Slot] = {}

    # From guests.

    def receive(self, port: Port, packet: Packet) -> None:
        """A segment from a guest; raises Malformed."""
        stack = self._stack
        segment = tcp.parse(packet.payload, packet.pseudo(), trusted=packet.trusted)
        if packet.destination[0] >= (0xFF if packet.ipv6 else 224):
            port.counts["drop.tcp_group"] += 1
            return
        key = Key(
            "tcp", port.number, packet.source, segment.source,
            packet.destination, segment.destination,
        )  # fmt: skip
        flow = stack.flows.find(key)
        if isinstance(flow, TcpFlow) and self._reused(flow, segment):
            self._stack.emit(HostClose(flow.number))
            self._forget(flow)
            flow = None
        if isinstance(flow, TcpFlow):
            if flow.connection is not None:
                flow.connection.arrive(segment, stack.now())
                self._serve(flow)
            elif segment.flags & RST:
                self._drop(flow)
        elif segment.flags & (SYN | ACK | RST) == SYN:
            self._begin(port, packet, key, segment)
        elif not segment.flags & RST:
            self._reset(port, key, segment)

    @staticmethod
    def _reused(flow: TcpFlow, segment: Segment) -> bool:
        """A new connection between ends of which the last one is in TIME-WAIT (RFC 9293 §3.10.7.4)."""
        if flow.connection is None or segment.flags & (SYN | ACK | RST) != SYN:
            return False
        block = flow.connection.block
        if block.state is State.CLOSED:
            return True
        return block.state is State.TIME_WAIT and before(block.rcv_nxt, segment.seq)

    def _begin(self, port: Port, packet: Packet, key: Key, segment: Segment) -> None:
        stack = self._stack
        if port.leaving or not self._room(port):
            self._reset(port, key, segment)
            return
        flow = TcpFlow(key, port, begun=stack.now(), last=stack.now(), syn=segment)
        if packet.destination in stack.addresses.owned() and segment.destination == DNS_PORT:
            flow.service = "dns"
            stack.flows.add(flow)
            self._accept(flow)
            return
        target = stack.resolve_target(port, "tcp", packet.destination, segment.destination)
        if target is None:
            self._reset(port, key, segment)
            return
        if not stack.may_begin(port):
            return  # the guest asks again
        flow.target = target
        stack.flows.add(flow)
        stack.emit(HostConnect(flow.number, "tcp", *flow.target))

    def _room(self, port: Port) -> bool:
        """Whether a guest may have one more; what only waits out TIME-WAIT makes room."""
        flows = self._stack.flows
        if flows.full(port, "tcp"):
            oldest = next((flow for flow in self._waiting if flow.port is port), None)
            if oldest is None:
                port.counts["limit.tcp"] += 1
                return False
            self._drop(oldest)
        return True

    def _reset(self, port: Port, key: Key, segment: Segment) -> None:
        """RFC 9293 §3.10.7.1: the RST that fits a segment nobody expects."""
        if segment.flags & ACK:
            seq, ack, flags = segment.ack, 0, RST
        else:
            seq, ack, flags = 0, add(segment.seq, segment.length), RST | ACK
        head = tcp.build(key.remote_port, key.guest_port, seq, ack, flags, 0)
        self._stack.ip.send_tcp(port, key.remote, key.guest, head, [], 0)

    def reset(self, port: Port, key: Key, seq: int) -> None:
        """Ends a connection in a guest that nobody here knows of. One whose guest does not expect `seq` is told
        so, and its answer is reset (RFC 5961 §3.2).
        """
        head = tcp.build(key.remote_port, key.guest_port, seq, 0, RST, 0)
        self._stack.ip.send_tcp(port, key.remote, key.guest, head, [], 0)

    def path_mtu(self, key: Key, mss: int) -> None:
        """A guest says that larger segments do not get through."""
        flow = self._stack.flows.find(key)
        if isinstance(flow, TcpFlow) and flow.connection is not None:
            flow.connection.path_mtu(mss, self._stack.now())
            self._serve(flow)

    # From the host side.

    def connected(self, flow: TcpFlow) -> None:
        """The host side has connected."""
        if flow.connection is None and flow.syn is not None:
            self._accept(flow)

    def _accept(self, flow: TcpFlow) -> None:
        assert flow.syn is not None
        flow.connection = self.opening.connection(flow)
        flow.connection.accept(flow.syn, self._stack.now())
        flow.syn = None
        self._serve(flow)

    def incoming(self, event: Accepted) -> None:
        """Somebody connected to a forward."""
        stack = self._stack
        found = stack.forwarded(event)
        if found is None:
            return
        port, ways = found
        if not self._room(port):
            stack.emit(Refuse(event.token))
            return
        flow = TcpFlow(
            ways[0], port, target=event.peer, begun=stack.now(), last=stack.now(),
            service="forward", others=ways[1:],
        )  # fmt: skip
        stack.flows.add(flow)
        stack.emit(Adopt(event.token, flow.number))
        flow.connection = self.opening.connection(flow)
        flow.connection.open(stack.now())
        self._serve(flow)

    def failed(self, flow: TcpFlow, why: int) -> None:
        """The host side could not connect, or its connection broke."""
        connection = flow.connection
        if connection is not None:
            connection.abort(self._stack.now())
            self._serve(flow)
            return
        assert flow.syn is not None
        if why == errno.ECONNREFUSED and self._try_other_loopback(flow):
            return
        if why in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.EACCES):
            self._stack.icmp.flow_error(flow, why)
        else:
            self._reset(flow.port, flow.key, flow.syn)
        self._drop(flow)

    def _try_other_loopback(self, flow: TcpFlow) -> bool:
        """A service of the host may listen at 127.0.0.1 or ::1; guests know one name for both."""
        other = {LOOPBACK4: LOOPBACK6, LOOPBACK6: LOOPBACK4}.get(flow.target[0])
        if other is None or flow.retried:
            return False
        flow.retried = True
        flow.target = (other, flow.target[1])
        self._stack.emit(HostConnect(flow.number, "tcp", *flow.target))
        return True

    def received(self, flow: TcpFlow, data: bytes) -> None:
        """Bytes from the host side."""
        if flow.connection is not None:
            flow.granted -= len(data)
            flow.received += len(data)
            flow.connection.write(data, self._stack.now())
            self._serve(flow)

    def filled(self, flow: TcpFlow, size: int) -> None:
        """Bytes from the host side, in the connection's buffer already."""
        if flow.connection is not None:
            flow.granted -= size
            flow.received += size
            flow.connection.filled(size, self._stack.now())
            self._serve(flow)

    def closed(self, flow: TcpFlow) -> None:
        """The host side will send no more."""
        if flow.connection is not None:
            flow.connection.shutdown(self._stack.now())
            self._serve(flow)

    def took(self, flow: TcpFlow, size: int) -> None:
        """The host's kernel has bytes that the guest sent."""
        connection = flow.connection
        if connection is None:
            return
        connection.consumed(size, self._stack.now())
        self._serve(flow)

    def revived(self, flow: TcpFlow) -> None:
        """A predecessor's flow is here, and has something to say."""
        flow.noted = ("revived",)
        self._serve(flow)

    # Time, and the way to the guest.

    def tick(self, flow: TcpFlow) -> None:
        """A deadline of the flow. That of one that is lent has mostly moved on."""
        if flow.lent is not None and not 0 < (due := flow.lent.deadline()) <= self._stack.now():
            self._stack.timers.set(("tcp", flow.number), due)
            return
        if flow.connection is not None:
            if not self.opening.silent(flow):
                flow.connection.tick(self._stack.now())
            self._serve(flow)

    def flush(self) -> None:
        """The end of a batch of frames: the ACKs that are due."""
        unsent, self._unsent = self._unsent, {}
        for flow in unsent:
            if flow.lent is not None or flow.connection is None:
                continue
            if self._stack.busy or not self.pusher(flow):
                flow.connection.push(self._stack.now())
                self._serve(flow)
        dirty, self._dirty = self._dirty, {}
        for flow in dirty:
            if flow.lent is None and flow.connection is not None:
                flow.connection.flush(self._stack.now())
                self._serve(flow)

    def pause(self, port: Port, *, paused: bool) -> None:
        """A guest's receive ring has no room, or has some again. Flows that are lent wait for that by themselves."""
        for flow in self._stack.flows.all():
            if not isinstance(flow, TcpFlow) or flow.port is not port or flow.lent is not None:
                continue
            if flow.connection is not None:
                flow.connection.paused = paused
                if not paused:
                    self._unsent[flow] = None

    def served(self) -> dict[TcpFlow, None]:
        """Flows of which something was heard since the last call."""
        served, self._served = self._served, {}
        return served

    def returned(self, flow: TcpFlow, *, unsent: bool) -> None:
        """A flow that was lent. unsent: it has something to say."""
        self._served[flow] = None
        if flow.connection is not None:
            flow.connection.paused = self._stack.paused(flow.port)
        if unsent:
            self._unsent[flow] = None

    # Inside.

    def note(self) -> None:
        """Writes down what has changed: before guests are told."""
        unnoted, self._unnoted = self._unnoted, {}
        for flow in unnoted:
            if flow.connection is not None:
                keeping.note(flow, flow.connection.block)

    def _serve(self, flow: TcpFlow) -> None:
        """Carries out what a connection wants."""
        connection = flow.connection
        assert connection is not None
        flow.last = self._stack.now()
        while connection.outputs:
            for output in connection.take():
                self._do(flow, connection, output)
        if flow.connection is not connection:
            return  # it has ended, or begun another way
        self._served[flow] = None
        if flow.slot is not None:
            self._unnoted[flow] = None
        self._stack.timers.set(("tcp", flow.number), connection.deadline())
        if connection.ack_wanted:
            self._dirty[flow] = None
        if connection.block.state is State.TIME_WAIT:
            self._waiting[flow] = None

    def _do(self, flow: TcpFlow, connection: Connection, output: Output) -> None:
        emit, number = self._stack.emit, flow.number
        if isinstance(output, Send):
            self._send(flow, output)
        elif isinstance(output, Data):
            flow.sent += len(output.data)
            if flow.service == "dns":
                connection.consumed(len(output.data), self._stack.now())
                self._stack.dns.stream(flow, output.data)
            else:
                emit(HostSend(number, output.data))
        elif isinstance(output, Freed):
            self.credit.freed(flow, output.size)
        elif isinstance(output, Established):
            self.credit.begin(flow, connection.buffer.size)
        elif isinstance(output, PeerClosed):
            if flow.service == "dns":
                connection.shutdown(self._stack.now())
            else:
                emit(HostShutdown(number))
        elif isinstance(output, Ended):
            self._ended(flow, output)

    def _send(self, flow: TcpFlow, send: Send) -> None:
        key = flow.key
        options = tcp.build_options(send.options)
        head = tcp.build(
            key.remote_port, key.guest_port, send.seq, send.ack, send.flags, send.window, options
        )
        self._stack.ip.send_tcp(flow.port, key.remote, key.guest, head, send.payload, send.mss)

    def _ended(self, flow: TcpFlow, output: Ended) -> None:
        if output.reason == "refused" and self.opening.refused(flow):
            self._serve(flow)
            return
        orderly = output.reason == "closed"
        if flow.service != "dns":
            self._stack.emit(HostClose(flow.number, reset=not orderly))
        if orderly and flow.noted and flow.connection is not None:
            keeping.note(flow, flow.connection.block)
        self._forget(flow)

    def _drop(self, flow: TcpFlow) -> None:
        self._stack.emit(HostClose(flow.number, reset=True))
        self._forget(flow)

    def _forget(self, flow: TcpFlow) -> None:
        stack, connection = self._stack, flow.connection
        stack.timers.set(("tcp", flow.number), 0)
        if connection is not None:
            self.credit.end(flow)
            stack.budget.give(connection.block.rcv_limit - flow.window)
            flow.connection = None
        if flow.slot is not None:
            # Its bytes may still be on their way to the host.
            self.ending[flow.number], flow.slot = flow.slot, None
        self._waiting.pop(flow, None)
        self._served.pop(flow, None)
        stack.dns.gone(flow)
        stack.flows.remove(flow)
