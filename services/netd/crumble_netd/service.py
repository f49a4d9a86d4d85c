"""`netd` as a service: one network, one guest on it, confined to sockets of the internet's two families."""

from __future__ import annotations

import socket
from typing import Any

from crumble_common import log
from crumble_common.errors import UsageError
from crumble_common.messages.net import (
    FlowInfo,
    Forward,
    ForwardAdd,
    ForwardRemove,
    NetConfig,
    NetFreeze,
    NetInspect,
    NetState,
)
from crumble_common.sandbox import Profile
from crumble_common.service import Context, Reply, Service
from crumble_common.vhost_user.serving import Serving
from crumble_netd import addresses
from crumble_netd.assemble import new_port, new_rule, new_stack, resolvers_of
from crumble_netd.commands import Kind
from crumble_netd.flow_table import Flow
from crumble_netd.layers.tcp import TcpFlow
from crumble_netd.loop import HostSide
from crumble_netd.pcap import Capture
from crumble_netd.port import Port
from crumble_netd.queue_pump import NetDevice

# Sockets of all the flows a guest may have, listeners, and the rest.
_NOFILE = 4096
# No file is opened any more when the control plane is connected.
_FILES = frozenset(("open", "openat", "openat2"))
_LOGGED = 100  # refusals written to the log, of each guest
_MAX_FLOWS_TOLD = 1000


class NetdService(Service[NetConfig]):
    """Serves one guest until its front end leaves."""

    name = "netd"
    config_type = NetConfig
    network = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._forwards: dict[int, Forward] = {}
        self._rules = 0

    def open(self, config: NetConfig) -> None:
        """Makes the stack, and listens for forwards: their ports are taken before the guest boots."""
        loop = self.context.loop
        self.stack = new_stack(config, resolvers_of(config))
        self.stack.on_refused = self._refused
        self.port = new_port(config, 1, self.stack)
        self.stack.add_port(self.port)
        self.host = HostSide(loop, self.stack)
        self.device = NetDevice(loop, self.stack, self.port, self.host.settle)
        self.host.devices[self.port.number] = self.device
        self._serving = Serving(self.context, config.socket_fd, self.device)
        if config.capture_fd:
            self.device.capture = Capture(self.context.fd(config.capture_fd), config.snaplen)
        for forward in config.forwards:
            self._forward(forward)

    def sandbox(self) -> Profile:
        """Sockets, and what is open already."""
        return Profile(families=(socket.AF_INET, socket.AF_INET6), sealed=_FILES, nofile=_NOFILE)

    def start(self) -> None:
        """Waits for the front end, or serves the one that is connected already."""
        self._serving.start()

    # Requests.

    def handle(self, message: Any, reply: Reply) -> None:
        """NetFreeze, ForwardAdd, ForwardRemove, NetInspect."""
        if isinstance(message, ForwardAdd):
            self._forward(message.forward)
            reply.ok()
        elif isinstance(message, ForwardRemove):
            self._unforward(message.forward)
            reply.ok()
        elif isinstance(message, NetInspect):
            reply.ok(self._state())
        elif isinstance(message, NetFreeze):
            self._serving.capture_to(self.context.take_fd(message.capture_fd))
            reply.ok()
        else:
            super().handle(message, reply)

    def _forward(self, forward: Forward) -> None:
        number = self._rules = self._rules + 1
        self.host.forward(new_rule(forward, number, self.port))
        self._forwards[number] = forward

    def _unforward(self, forward: Forward) -> None:
        for number, there in tuple(self._forwards.items()):
            if there == forward:
                self.host.unforward(number)
                del self._forwards[number]
                return
        raise UsageError(
            f"Port {forward.host_port}/{forward.protocol} is not forwarded.", code="net.forward"
        )

    def _state(self) -> NetState:
        now = self.stack.now()
        flows = [
            _told(flow, now) for flow in self.stack.flows.all()[:_MAX_FLOWS_TOLD] if flow.key.guest
        ]
        return NetState(list(self._forwards.values()), flows, self.stats())

    def _refused(self, port: Port, kind: Kind, address: bytes, number: int) -> None:
        if port.counts["refused"] <= _LOGGED:
            where = f"{addresses.text(address)}:{number}"
            log.info("flow refused", guest=port.name, protocol=kind, to=where)

    def stats(self) -> dict[str, int]:
        """Counters for the heartbeat."""
        counts = {f"net.{name}": count for name, count in self.port.counts.items()}
        flows = {f"net.flows.{kind}": n for (_, kind), n in self.stack.flows.counts.items() if n}
        return {**counts, **flows, **self.device.pump.stats()}

    def stop(self, grace: float) -> None:  # noqa: ARG002  nothing here takes long
        """Ends every connection."""
        self._serving.close()
        self.host.close()
        if self.device.capture is not None:
            self.device.capture.close()


def _told(flow: Flow, now: float) -> FlowInfo:
    key, state = flow.key, ""
    if isinstance(flow, TcpFlow):
        state = flow.connection.block.state.name if flow.connection else "CONNECTING"
    return FlowInfo(
        key.kind,
        f"{addresses.text(key.guest)}:{key.guest_port}",
        f"{addresses.text(key.remote)}:{key.remote_port}",
        state,
        flow.sent,
        flow.received,
        round(now - flow.begun, 3),
    )
