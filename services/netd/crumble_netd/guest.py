"""A guest of a network: its port of the stack, its device, its front end, its forwards and its capture."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from crumble_common.errors import UsageError
from crumble_common.eventloop import EventLoop
from crumble_common.messages.net import (
    CaptureStopped,
    Forward,
    GuestInfo,
    NetConfig,
    PortAdd,
    Refusal,
    ServiceInfo,
)
from crumble_common.service import Context
from crumble_common.vhost_user.serving import Serving
from crumble_netd import addresses
from crumble_netd.assemble import new_port, new_rule
from crumble_netd.header import ethernet, ipv6
from crumble_netd.loop import HostSide
from crumble_netd.pcap import Capture
from crumble_netd.queue_pump import NetDevice
from crumble_netd.severed import sever
from crumble_netd.stack import Stack
from crumble_netd.survival import Survival

# Refusals kept.
_REFUSED = 100


class Guest:
    """Raises UsageError for a guest that cannot be. fds: by name, those of front end and capture are taken
    over in any case. on_end: called when it has left.
    """

    def __init__(
        self,
        context: Context,
        stack: Stack,
        host: HostSide,
        survival: Survival,
        number: int,
        config: NetConfig | PortAdd,
        fds: Mapping[str, int],
        on_end: Callable[[], None],
    ) -> None:
        self.name = config.name
        mine = [fds[name] for name in (config.socket_fd, config.capture_fd) if name]
        try:
            self.port = new_port(config, number, stack)
        except UsageError:
            for fd in mine:
                os.close(fd)
            raise
        self.forwards: dict[int, Forward] = {}
        self.refused: deque[Refusal] = deque(survival.refused(config.name), maxlen=_REFUSED)
        self._loop: EventLoop = context.loop
        self._stack, self._host, self._survival = stack, host, survival
        survival.recall(self.port)
        self.device = NetDevice(context.loop, stack, self.port, host.settle, host.waiter)
        self.serving = Serving(context, config.socket_fd, self.device, fds=fds, on_end=on_end)
        self._severed = b""
        self.device.up = self._up
        stack.add_port(self.port)
        host.devices[number] = self.device
        if config.capture_fd:
            self.capture(fds[config.capture_fd], config.snaplen)
        try:
            for forward in survival.forwards(config.name, config.forwards):
                self.forward(forward)
        except UsageError:
            self.close()
            raise

    def _up(self) -> None:
        if self._survival.go_on(self._stack, self._host, self.port.number):
            self._stack.neighbours.advertise(self.port)  # as its predecessor would have, in time
            self._host.settle()
        self.sever(self._severed)

    def sever(self, connections: bytes) -> None:
        """Resets what it has open from before it was captured, when its ring is there."""
        self._severed = b"" if self.device.is_up else connections
        if self.device.is_up and connections:
            sever(self._stack, self.port, connections)
            self._host.settle()

    def reset(self) -> None:
        """Ends all its flows: it is about to leave."""
        self.port.leaving = True
        self._stack.end_flows(self.port)
        self._host.settle()

    # Forwards.

    def forward(self, forward: Forward) -> None:
        """Listens; raises UsageError when that cannot be."""
        rule = new_rule(forward, self._stack.forwards.next(), self.port)
        self._host.forward(rule, self._survival.socket_of(rule))
        self.forwards[rule.number] = forward

    def unforward(self, forward: Forward) -> None:
        """Listens no more; raises UsageError when it did not."""
        for number, there in self.forwards.items():
            if there == forward:
                self._host.unforward(number)
                del self.forwards[number]
                return
        raise UsageError(
            f"Port {forward.host_port}/{forward.protocol} is not forwarded.", code="net.forward"
        )

    # Captures.

    def capture(self, fd: int, snaplen: int) -> None:
        """Captures to `fd`, which is taken over; what was captured before ends."""
        self._end_capture()
        self.device.capture = Capture(fd, snaplen)

    def stop_capture(self) -> CaptureStopped:
        """Ends a capture; raises UsageError when there is none."""
        capture = self.device.capture
        if capture is None:
            raise UsageError("Its packets are not captured.", code="net.capture")
        self._end_capture()
        return CaptureStopped(capture.frames, capture.lost)

    def _end_capture(self) -> None:
        if self.device.capture is not None:
            self.device.capture.close()
            self.device.capture = None

    def rename(self, names: Sequence[str]) -> None:
        """It is called so from now on, here and by the DNS."""
        if not names:
            raise UsageError("A guest has a name.", code="net.name")
        self.name = self.port.name = names[0]
        self.port.aliases = tuple(names[1:])
        self._stack.name_guests()

    def info(self) -> GuestInfo:
        """As it is now."""
        self.device.count()
        port = self.port
        prefix = self._stack.addresses.network6
        six = port.ipv6 or (ipv6.eui64(prefix, port.mac) if port.mac else b"")
        return GuestInfo(
            self.name,
            ethernet.text(port.mac),
            addresses.text(port.ipv4),
            addresses.text(six) if six else "",
            list(self.forwards.values()),
            dict(port.counts),
            self.device.capture is not None,
            list(self.refused),
            [
                ServiceInfo(number, to, "udp" if kind == "udp" else "tcp")
                for (kind, number), to in port.services.items()
            ],
        )

    @property
    def frames(self) -> int:
        """That it has sent, and was sent."""
        counts = self.port.counts
        return counts["rx.frames"] + counts["tx.frames"]

    def close(self) -> None:
        """It is no longer there: rings, flows, forwards and capture end."""
        self.serving.close()
        for number in tuple(self.forwards):
            self._host.unforward(number)
        self.forwards.clear()
        self._stack.remove_port(self.port.number)
        self._host.settle()
        self._host.devices.pop(self.port.number, None)
        self._end_capture()
