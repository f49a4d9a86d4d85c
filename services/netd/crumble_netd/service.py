"""`netd` as a service: one network and its guests, confined to sockets of the internet's two families."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from crumble_common import log
from crumble_common.errors import UsageError
from crumble_common.messages.net import (
    CaptureStart,
    CaptureStop,
    FlowInfo,
    ForwardAdd,
    ForwardRemove,
    NetConfig,
    NetFreeze,
    NetFrozen,
    NetIdle,
    NetInspect,
    NetRename,
    NetReset,
    NetSever,
    NetState,
    PortAdd,
    PortRemove,
    Refusal,
    ServiceAdd,
)
from crumble_common.sandbox import Profile
from crumble_common.service import Context, Reply, Service
from crumble_netd import addresses
from crumble_netd.assemble import new_stack, resolvers_of
from crumble_netd.commands import Kind
from crumble_netd.flow_table import Flow
from crumble_netd.guest import Guest
from crumble_netd.loop import HostSide
from crumble_netd.port import Port
from crumble_netd.rest import Rest
from crumble_netd.severed import connections_of
from crumble_netd.survival import Survival
from crumble_netd.tcp_flow import TcpFlow

# Sockets of all the flows that some guests may have, listeners, and the rest.
_NOFILE = 16_384
# No file is opened any more when the control plane is connected.
_FILES = frozenset(("open", "openat", "openat2"))
_LOGGED = 100  # refusals written to the log, of each guest
_MAX_FLOWS_TOLD = 1000


class NetdService(Service[NetConfig]):
    """Serves one guest until its front end leaves, or a network of those who come and go."""

    name = "netd"
    config_type = NetConfig
    network = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._guests: dict[int, Guest] = {}
        self._ports = 0
        self._rest: Rest | None = None
        self._do: dict[type, Callable[[Any], Any]] = {
            PortAdd: self._port_add,
            PortRemove: self._port_remove,
            ForwardAdd: lambda m: self._guest(m.guest).forward(m.forward),
            ForwardRemove: lambda m: self._guest(m.guest).unforward(m.forward),
            CaptureStart: self._capture_start,
            CaptureStop: lambda m: self._guest(m.guest).stop_capture(),
            ServiceAdd: self._service_add,
            NetInspect: self._state,
            NetFreeze: self._freeze,
            NetSever: lambda m: self._guest(m.guest).sever(m.connections),
            NetReset: lambda m: self._guest(m.guest).reset(),
            NetRename: lambda m: self._guest("").rename(m.names),
        }

    def open(self, config: NetConfig) -> None:
        """Makes the stack, and listens for forwards: their ports are taken before the guest boots."""
        self._survival = Survival(self.context)
        self.stack = new_stack(config, resolvers_of(config), self._survival.ledger)
        self.stack.on_refused = self._refused
        self.stack.on_learnt = self._remember
        self.host = HostSide(self.context.loop, self.stack, self._survival.parking)
        if config.socket_fd:
            self._attach(config, self.context.fds, lambda _: self.context.finish())

    def _attach(
        self, config: NetConfig | PortAdd, fds: dict[str, int], on_end: Callable[[int], None]
    ) -> None:
        number = self._survival.port(config.name)
        self._guests[number] = Guest(
            self.context, self.stack, self.host, self._survival, number, config, fds,
            lambda: on_end(number),
        )  # fmt: skip
        self._ports = number
        self._remember()

    def sandbox(self) -> Profile:
        """Sockets, and what is open already."""
        families = (socket.AF_INET, socket.AF_INET6)
        return Profile(families=families, sealed=_FILES, nofile=_NOFILE)

    def start(self) -> None:
        """Waits for the front end, or serves the one that is connected already."""
        for guest in self._guests.values():
            guest.serving.start()
            if self._survival.ledger is not None:
                self._rest = Rest(self.context.loop, self.stack, guest, self._idle)

    def _idle(self) -> None:
        self._remember()
        self.context.send(NetIdle())

    # Requests.

    def handle(self, message: Any, reply: Reply) -> None:
        """Those of messages.net."""
        if type(message) in self._do:
            answer = self._do[type(message)](message)
            self._remember()
            reply.ok(answer)
        else:
            super().handle(message, reply)

    def _guest(self, name: str) -> Guest:
        """The guest of this name; the only one for ""."""
        found = [guest for guest in self._guests.values() if name in ("", guest.name)]
        if len(found) == 1:
            return found[0]
        raise UsageError(f"There is no guest {name!r:.80} on this network.", code="net.guest")

    def _port_add(self, message: PortAdd) -> None:
        names = {
            message.socket_fd: message.socket_fd,
            "page_state": message.page_state_fd,
            **message.memory_base_fds,
            message.capture_fd: message.capture_fd,
        }
        fds = {name: self.context.take_fd(given) for name, given in names.items() if given}
        try:
            self._attach(message, fds, self._gone)
        finally:
            for name in ("page_state", *message.memory_base_fds):  # mapped by now
                if name in fds:
                    os.close(fds[name])
        self._guests[self._ports].serving.start()

    def _port_remove(self, message: PortRemove) -> None:
        if not self._survival.forget(message.guest, self.host):
            self._gone(self._guest(message.guest).port.number)

    def _gone(self, number: int) -> None:
        self._guests.pop(number).close()
        self._remember()

    def _remember(self) -> None:
        self._survival.remember(
            (g.name, g.port, list(g.forwards.values()), list(g.refused))
            for g in self._guests.values()
        )

    def _service_add(self, message: ServiceAdd) -> None:
        services = self._guest(message.guest).port.services
        services[message.protocol, message.port] = message.host_port

    def _capture_start(self, message: CaptureStart) -> None:
        fd = self.context.take_fd(message.capture_fd)
        try:
            guest = self._guest(message.guest)
        except UsageError:
            os.close(fd)
            raise
        guest.capture(fd, message.snaplen)

    def _freeze(self, message: NetFreeze) -> NetFrozen:
        fd = self.context.take_fd(message.capture_fd)
        try:
            guest = self._guest(message.guest)
        except UsageError:
            os.close(fd)
            raise
        guest.serving.capture_to(fd)
        return NetFrozen(connections_of(self.stack, guest.port))

    def _state(self, message: NetInspect) -> NetState:
        now = self.stack.now()
        guests = [g for g in self._guests.values() if message.guest in ("", g.name)]
        ports = {guest.port.number for guest in guests}
        flows = [flow for flow in self.stack.flows.all() if flow.key.port in ports]
        for flow in flows[:_MAX_FLOWS_TOLD]:
            self.stack.udp.look(flow)
        return NetState(
            [forward for guest in guests for forward in guest.forwards.values()],
            [_told(flow, now) for flow in flows[:_MAX_FLOWS_TOLD]],
            self.stats(),
            [guest.info() for guest in guests],
        )

    def _refused(self, port: Port, kind: Kind, address: bytes, number: int) -> None:
        where = addresses.text(address)
        if guest := self._guests.get(port.number):
            names = port.resolved.ever(address)
            guest.refused.append(Refusal(time.time(), kind, where, number, names))
        if port.counts["refused"] <= _LOGGED:
            where = f"{where}:{number}"
            log.info("flow refused", guest=port.name, protocol=kind, to=where)

    def stats(self) -> dict[str, int]:
        """Counters for the heartbeat, of all guests together."""
        total: Counter[str] = Counter()
        for guest in self._guests.values():
            guest.device.count()
            total.update({f"net.{name}": count for name, count in guest.port.counts.items()})
            total.update(guest.device.pump.stats())
        if self.host.waiter is not None:
            total["chains"] += self.host.waiter.chains
        for (_, kind), count in self.stack.flows.counts.items():
            total[f"net.flows.{kind}"] += count
        total["net.revived"] = self._survival.revived
        return dict(total)

    def stop(self, grace: float) -> None:  # noqa: ARG002  nothing here takes long
        """Ends every connection."""
        if self._rest is not None:
            self._rest.close()
        for guest in self._guests.values():
            guest.close()
        self._guests.clear()
        self.host.close()


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
        flow.port.name,
    )
