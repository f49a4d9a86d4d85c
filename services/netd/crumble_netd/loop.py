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
from crumble_netd import commands, events
from crumble_netd.addresses import text
from crumble_netd.forward_rules import ForwardRule
from crumble_netd.host_sockets import (
    Datagrams,
    Peer,
    SocketAddress,
    TcpForward,
    UdpForward,
    listen_at,
    unpacked,
)
from crumble_netd.host_streams import Stream, connect
from crumble_netd.queue_pump import NetDevice
from crumble_netd.stack import Stack

HostSocket = Stream | Datagrams | Peer

# Rounds of commands in one go: each may lead to events that lead to others.
_ROUNDS = 64


class HostSide:
    """The sockets of a stack. devices: by port."""

    def __init__(self, loop: EventLoop, stack: Stack) -> None:
        self.devices: dict[int, NetDevice] = {}
        self._loop, self._stack = loop, stack
        self._sockets: dict[int, HostSocket] = {}
        self._forwards: dict[int, TcpForward | UdpForward] = {}
        self._accepted: dict[int, socket.socket] = {}
        self._peers: dict[int, tuple[UdpForward, SocketAddress]] = {}
        self._tokens = itertools.count(1)
        self._timer: Timer | None = None
        self._settling = False
        self._do: dict[type[commands.Command], Callable[..., None]] = {
            commands.Transmit: self._transmit,
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
                    break
                for command in wanted:
                    self._do[type(command)](command)
            else:
                self._loop.call_soon(self.settle)
        finally:
            self._settling = False
        for device in self.devices.values():
            device.flush()
        self._arm()

    def _tell(self, event: events.Event) -> None:
        self._stack.event(event)
        self.settle()

    def _arm(self) -> None:
        deadline = self._stack.deadline()
        if not deadline or (self._timer is not None and self._timer.when <= deadline):
            return
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
                self._stream(flow, connect(address, port), connecting=True)
            else:
                self._sockets[flow] = Datagrams(self._loop, flow, kind, address, port, self._tell)
        except OSError as error:
            self._stack.event(events.Failed(flow, error.errno or errno.EIO))

    def _stream(self, flow: int, sock: socket.socket, *, connecting: bool = False) -> None:
        self._sockets[flow] = Stream(
            self._loop, flow, sock, self._tell, connecting=connecting, space=self._stack.space
        )

    def _send(self, command: commands.HostSend) -> None:
        if sock := self._sockets.get(command.flow):
            sock.send(command.data)

    def _read(self, command: commands.HostRead) -> None:
        if sock := self._sockets.get(command.flow):
            sock.allow(command.size)

    def _shutdown(self, command: commands.HostShutdown) -> None:
        if sock := self._sockets.get(command.flow):
            sock.shutdown()

    def _close(self, command: commands.HostClose) -> None:
        if sock := self._sockets.pop(command.flow, None):
            sock.close(reset=command.reset)

    def _adopt(self, command: commands.Adopt) -> None:
        token, flow = command
        if token in self._accepted:
            sock = self._accepted.pop(token)
            self._stream(flow, sock)
        elif token in self._peers:
            forward, peer = self._peers.pop(token)
            self._sockets[flow] = forward.adopt(peer, flow)

    def _refuse(self, command: commands.Refuse) -> None:
        self._peers.pop(command.token, None)
        if sock := self._accepted.pop(command.token, None):
            sock.close()

    # Forwards.

    def forward(self, rule: ForwardRule) -> None:
        """Listens for a rule; raises UsageError when that cannot be."""
        try:
            sock = listen_at(rule.kind, rule.host, rule.host_port)
        except OSError as error:
            raise UsageError(
                f"Cannot listen at {text(rule.host)} port {rule.host_port}/{rule.kind}: "
                f"{error.strerror}.",
                code="net.forward",
                hint="Choose another port of the host.",
            ) from error
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
        self._stack.forwards.remove(number)
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
