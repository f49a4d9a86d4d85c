"""Where the stack meets the world: the one module that carries out its commands and waits for its timers.

Everything happens on the service's event loop. Whatever calls the stack (a frame, a socket, a timer)
then calls `settle`: ACKs that are due, commands in order until there are none, the next deadline, and one
interrupt for all frames that were put on a guest's ring.
"""

from __future__ import annotations

import errno
import itertools
import socket
from collections.abc import Callable

from crumble_common import log
from crumble_common.errors import UsageError
from crumble_common.eventloop import EventLoop, Timer
from crumble_common.parking import Parking
from crumble_native.flow_wait import Waiter
from crumble_netd import commands, events
from crumble_netd.addresses import text
from crumble_netd.fast_path import steady
from crumble_netd.flow_table import Flow
from crumble_netd.forward_rules import ForwardRule
from crumble_netd.host_sockets import (
    Datagrams,
    Peer,
    SocketAddress,
    TcpForward,
    UdpForward,
    connect_datagrams,
    listen_at,
    unpacked,
)
from crumble_netd.host_streams import Stream, connect
from crumble_netd.queue_pump import NetDevice
from crumble_netd.stack import Stack
from crumble_netd.tcp.buffers import SendBuffer
from crumble_netd.tcp_flow import TcpFlow

HostSocket = Stream | Datagrams | Peer

# Rounds of commands in one go: each may lead to events that lead to others.
_ROUNDS = 64


class HostSide:
    """The sockets of a stack. devices: by port. parking: where sockets outlive this process."""

    def __init__(self, loop: EventLoop, stack: Stack, parking: Parking | None = None) -> None:
        self.devices: dict[int, NetDevice] = {}
        self.parking = parking
        # Serves lent flows while the loop has nothing else to do.
        self.waiter: Waiter | None = None
        if loop.epoll >= 0:
            self.waiter = loop.waiter = Waiter(loop.epoll, loop.now if loop.fake else None)
        self._loop, self._stack = loop, stack
        self._sockets: dict[int, HostSocket] = {}
        self._forwards: dict[int, TcpForward | UdpForward] = {}
        self._accepted: dict[int, socket.socket] = {}
        self._peers: dict[int, tuple[UdpForward, SocketAddress]] = {}
        self._parked: set[int] = set()
        self._tokens = itertools.count(1)
        self._timer: Timer | None = None
        self._due = 0.0  # of the timer
        self._settling = False
        stack.tcp.pusher = lambda flow: self._lend_one(flow, push=True)
        stack.udp.look = self._look_at
        self._do: dict[type[commands.Command], Callable[..., None]] = {
            commands.HostConnect: self._connect,
            commands.HostSend: self._send,
            commands.HostRead: self._read,
            commands.HostShutdown: self._shutdown,
            commands.HostClose: self._close,
            commands.Adopt: self._adopt,
            commands.Refuse: self._refuse,
        }

    # The stack.

    def settle(self) -> None:
        """Carries out what the stack wants, until it wants nothing."""
        if self._settling:
            return
        self._settling = True
        try:
            for _ in range(_ROUNDS):
                self._stack.flush()
                wanted = self._stack.take()
                if not wanted:
                    self._lend()
                    break
                self._carry_out(wanted)
            else:
                self._loop.call_soon(self.settle)
        finally:
            self._settling = False
        for device in self.devices.values():
            device.flush()
        self._arm()

    def _carry_out(self, wanted: list[commands.Command]) -> None:
        """Guests are told last: when that which they are told will not be forgotten."""
        frames = []
        for command in wanted:
            if type(command) is commands.Transmit:
                frames.append(command)
            else:
                self._do[type(command)](command)
        self._stack.note()
        self._flush()
        for frame in frames:
            self._transmit(frame)

    def _flush(self) -> None:
        if self.parking is not None:
            self.parking.flush()

    def _lend(self) -> None:
        """Nothing is left to do: flows that are steady go their own way."""
        self._stack.note()
        for flow in self._stack.tcp.served():
            if flow.lent is None:
                self._lend_one(flow)

    def _lend_one(self, flow: TcpFlow, *, push: bool = False) -> bool:
        device, sock = self.devices.get(flow.port.number), self._sockets.get(flow.number)
        if device is None or not isinstance(sock, Stream) or not steady(flow):
            return False
        return device.lend(flow, sock, push=push)

    def _lend_datagrams(self, number: int) -> None:
        sock = self._sockets.get(number)
        if not isinstance(sock, Datagrams) or sock.lent is not None:
            return
        flow = self._stack.flows.get(number)
        if flow is not None and (device := self.devices.get(flow.port.number)):
            device.lend_datagrams(flow, sock)

    def _look_at(self, flow: Flow) -> None:
        sock = self._sockets.get(flow.number)
        if isinstance(sock, Datagrams) and sock.lent is not None:
            sock.lent.note()

    def _tell(self, event: events.Event) -> None:
        self._stack.event(event)
        if type(event) is events.Connected:
            self._park(event.flow)
        elif type(event) is events.Received:
            self._lend_datagrams(event.flow)
        self.settle()

    def _arm(self) -> None:
        deadline = self._stack.deadline()
        if not deadline or (self._timer is not None and self._due <= deadline):
            return
        self._due = deadline
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, deadline - self._loop.now()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._stack.tick()
        self.settle()

    # Commands.

    def _transmit(self, command: commands.Transmit) -> None:
        device = self.devices.get(command.port)
        if device is not None:
            device.transmit(command.frame)

    def _connect(self, command: commands.HostConnect) -> None:
        flow, kind, address, port = command
        try:
            if kind == "tcp":
                sock, there = connect(address, port)
                self.stream(flow, sock, connecting=not there)
                if there:
                    self._stack.event(events.Connected(flow))
                    self._park(flow)
            else:
                self.datagrams(flow, connect_datagrams(kind, address, port))
                self._park(flow)
                # Before anything is sent: a successor goes on from the port that the peer saw.
                self._flush()
        except OSError as error:
            self._stack.event(events.Failed(flow, error.errno or errno.EIO))

    def stream(
        self,
        flow: int,
        sock: socket.socket,
        *,
        connecting: bool = False,
        written: int = 0,
        waiting: SendBuffer | None = None,
    ) -> None:
        """A flow's TCP socket; see Stream."""
        self._sockets[flow] = Stream(
            self._loop, flow, sock, self._tell, self._stack, self._ended,
            connecting=connecting, written=written, waiting=waiting,
        )  # fmt: skip

    def datagrams(self, flow: int, sock: socket.socket) -> None:
        """A flow's UDP or ping socket."""
        self._sockets[flow] = Datagrams(self._loop, flow, sock, self._tell)

    def peer(self, flow: int, forward: str, address: SocketAddress) -> None:
        """A flow's peer, who came by the forward of this name; raises KeyError."""
        rule = next((r for r in self._stack.forwards.all() if r.name == forward), None)
        found = self._forwards[rule.number] if rule else None
        if not isinstance(found, UdpForward):
            raise KeyError(forward)
        self._sockets[flow] = found.adopt(address, flow)

    def forget(self, name: str) -> None:
        """What was parked by this name is of no use any more."""
        if self.parking is not None:
            self.parking.drop(name)
            self._flush()

    def revived(self, flow: int) -> None:
        """A flow's socket is a predecessor's, and parked."""
        self._parked.add(flow)

    def _send(self, command: commands.HostSend) -> None:
        if sock := self._sockets.get(command.flow):
            sock.send(command.data)
            self._lend_datagrams(command.flow)

    def _read(self, command: commands.HostRead) -> None:
        if sock := self._sockets.get(command.flow):
            sock.allow(command.size)

    def _shutdown(self, command: commands.HostShutdown) -> None:
        if sock := self._sockets.get(command.flow):
            sock.shutdown()

    def _close(self, command: commands.HostClose) -> None:
        if sock := self._sockets.pop(command.flow, None):
            sock.close(reset=command.reset)
            if not isinstance(sock, Stream):
                self._ended(command.flow)

    # Sockets that outlive this process.

    def _park(self, flow: int) -> None:
        kept, sock = self._stack.flows.get(flow), self._sockets.get(flow)
        parked = self.parking is not None and kept is not None and kept.slot is not None
        if parked and isinstance(sock, Stream | Datagrams):
            assert self.parking is not None
            self.parking.park(f"flow:{flow}", sock.fileno)
            self._parked.add(flow)

    def _ended(self, flow: int) -> None:
        self._stack.ended(flow)
        if flow in self._parked and self.parking is not None:
            self._parked.discard(flow)
            self.parking.drop(f"flow:{flow}")

    def _adopt(self, command: commands.Adopt) -> None:
        token, flow = command
        if token in self._accepted:
            sock = self._accepted.pop(token)
            self.stream(flow, sock)
            self._park(flow)
        elif token in self._peers:
            forward, peer = self._peers.pop(token)
            self._sockets[flow] = forward.adopt(peer, flow)

    def _refuse(self, command: commands.Refuse) -> None:
        self._peers.pop(command.token, None)
        if sock := self._accepted.pop(command.token, None):
            sock.close()

    # Forwards.

    def forward(self, rule: ForwardRule, parked: int = -1) -> None:
        """Listens for a rule, with a predecessor's socket if there is one; UsageError when that cannot be."""
        try:
            if parked >= 0:
                sock = socket.socket(fileno=parked)
            else:
                sock = listen_at(rule.kind, rule.host, rule.host_port)
        except OSError as error:
            raise UsageError(
                f"Cannot listen at {text(rule.host)} port {rule.host_port}/{rule.kind}: "
                f"{error.strerror}.",
                code="net.forward",
                hint="Choose another port of the host.",
            ) from error
        if self.parking is not None and parked < 0:
            self.parking.park(rule.name, sock.fileno())
            self.parking.flush()
        self._stack.forwards.add(rule)
        number = rule.number
        if rule.kind == "tcp":
            self._forwards[number] = TcpForward(
                self._loop, sock, lambda connection, peer: self._arrived(number, connection, peer)
            )
        else:
            self._forwards[number] = UdpForward(
                self._loop, sock, lambda peer, data: self._came(number, peer, data), self._tell
            )

    def unforward(self, number: int) -> None:
        """Ends a rule; what came through it goes on."""
        rule = self._stack.forwards.remove(number)
        if rule is not None:
            self.forget(rule.name)
        if forward := self._forwards.pop(number, None):
            forward.close()

    def _arrived(self, rule: int, connection: socket.socket, peer: tuple[bytes, int]) -> None:
        token = next(self._tokens)
        self._accepted[token] = connection
        self._tell(events.Accepted(token, rule, peer))

    def _came(self, rule: int, peer: SocketAddress, data: bytes) -> None:
        forward = self._forwards[rule]
        assert isinstance(forward, UdpForward)
        token = next(self._tokens)
        self._peers[token] = (forward, peer)
        self._tell(events.Incoming(token, rule, unpacked(peer), data))

    def close(self) -> None:
        """Ends everything."""
        for number in tuple(self._forwards):
            self.unforward(number)
        for sock in self._sockets.values():
            sock.close(reset=True)
        self._sockets.clear()
        if self._timer is not None:
            self._timer.cancel()
        log.debug("network closed", flows=len(self._stack.flows.all()))
