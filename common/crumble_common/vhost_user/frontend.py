"""The VMM's side of vhost-user: one connection to one back end, ours or a foreign one.

    frontend = Frontend(sock)
    frontend.negotiate()                       # before the guest sees the device: offered features, queues
    ...                                        # the driver negotiates features, sets up its queues
    frontend.set_features(acked); frontend.set_memory(regions)
    frontend.prepare_inflight(queues, size)    # when the back end knows how
    frontend.start_ring(0, setup); frontend.enable_ring(0, True)
    ...
    base = frontend.stop_ring(0)

Calls block for at most `timeout` seconds. When the back end dies, `fileno()` becomes readable and calls
raise Disconnected; `Frontend(new_socket, inflight=old.inflight)` gives its successor what was under way.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from crumble_common.vhost_user import wire
from crumble_common.vhost_user.channel import Channel, close_all
from crumble_common.vhost_user.wire import Message, ProtocolFeature, Region, Request, VhostUserError

# What this front end has a use for.
PROTOCOL_FEATURES = (
    ProtocolFeature.MQ.mask
    | ProtocolFeature.REPLY_ACK.mask
    | ProtocolFeature.CONFIG.mask
    | ProtocolFeature.INFLIGHT_SHMFD.mask
    | ProtocolFeature.RESET_DEVICE.mask
)
# What a front end address is: guest-physical plus this. Any numbers do, as long as they translate.
_USER_BASE = 1 << 44


@dataclass(frozen=True)
class MemoryRegion:
    """Guest RAM to share: `size` bytes at `gpa` are at `offset` of the file `fd`."""

    gpa: int
    size: int
    fd: int
    offset: int = 0


@dataclass(frozen=True)
class RingSetup:
    """One virtqueue: guest-physical addresses, avail index to start from, eventfds (-1: none)."""

    size: int
    desc: int
    avail: int
    used: int
    kick_fd: int
    call_fd: int
    err_fd: int = -1
    base: int = 0


@dataclass
class InflightRegion:
    """The in-flight region a back end made: kept here for its successor."""

    fd: int
    length: int
    offset: int
    queues: int
    size: int

    def close(self) -> None:
        """The driver reset the device: nothing is under way any more."""
        close_all([self.fd])


class Frontend:
    """One connection. Owns the socket and the in-flight region; fds in arguments stay the caller's."""

    def __init__(
        self, sock: socket.socket, *, timeout: float = 10.0, inflight: InflightRegion | None = None
    ) -> None:
        sock.settimeout(timeout)
        self._channel = Channel(sock)
        self.inflight = inflight
        self.offered = 0
        self.protocol_features = 0
        self.queues = 0
        self._unanswered: list[Request] | None = None

    def fileno(self) -> int:
        """The socket's descriptor: readable when the back end is gone."""
        return self._channel.fileno()

    def negotiate(self, protocol: int = PROTOCOL_FEATURES) -> int:
        """Learns what the back end can do; returns the virtio features it offers, without bit 30.

        `queues` is then its limit of virtqueues, 0 when it does not say.
        """
        offered = self._query_u64(Request.GET_FEATURES)
        if offered & wire.F_PROTOCOL_FEATURES:
            known = self._query_u64(Request.GET_PROTOCOL_FEATURES)
            self._send(Request.SET_PROTOCOL_FEATURES, wire.U64.pack(known & protocol))
            self.protocol_features = known & protocol
        if self.can(ProtocolFeature.MQ):
            self.queues = self._query_u64(Request.GET_QUEUE_NUM)
        self._command(Request.SET_OWNER)
        self.offered = offered
        return offered & ~wire.F_PROTOCOL_FEATURES

    @contextlib.contextmanager
    def patient(self, seconds: float) -> Iterator[None]:
        """What is asked inside may take so long, instead of `timeout`: the back end is starting."""
        sock = self._channel.sock
        before = sock.gettimeout()
        sock.settimeout(seconds)
        try:
            yield
        finally:
            sock.settimeout(before)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Requests made inside are sent one after another; what the back end says to them is read at the end,
        or before something is asked for. One wait instead of many; VhostUserError comes that much later.
        """
        self._unanswered = []
        try:
            yield
            self._catch_up()
        finally:
            self._unanswered = None

    def _catch_up(self) -> None:
        waiting, self._unanswered = (
            self._unanswered or [],
            [] if self._unanswered is not None else None,
        )
        for request in waiting:
            self._acknowledged(request)

    def can(self, feature: ProtocolFeature) -> bool:
        """True when the protocol feature was negotiated."""
        return bool(self.protocol_features & feature.mask)

    def set_features(self, acked: int) -> None:
        """The features the driver took."""
        bit = self.offered & wire.F_PROTOCOL_FEATURES
        self._command(Request.SET_FEATURES, wire.U64.pack(acked | bit))

    def set_memory(self, regions: list[MemoryRegion]) -> None:
        """Shares the whole guest memory; replaces what was shared before."""
        table = [Region(r.gpa, r.size, r.gpa + _USER_BASE, r.offset) for r in regions]
        payload = wire.pack_regions(table)
        self._command(Request.SET_MEM_TABLE, payload, [r.fd for r in regions])

    def prepare_inflight(
        self,
        queues: int,
        size: int,
        fill: Callable[[InflightRegion], None] = lambda _region: None,
    ) -> None:
        """Has chains in flight recorded, in the region kept from a predecessor if there is one.

        Does nothing when the back end does not know how. size: the largest queue's. fill: writes to a
        fresh region what a back end of another process left undone.
        """
        if not self.can(ProtocolFeature.INFLIGHT_SHMFD):
            return
        if self.inflight is None:
            payload = wire.INFLIGHT_PADDED.pack(0, 0, queues, size)
            reply = self._query(Request.GET_INFLIGHT_FD, payload)
            length, offset, *_ = wire.parse_inflight(reply)
            self.inflight = InflightRegion(reply.take_fd(), length, offset, queues, size)
            fill(self.inflight)
        kept = self.inflight
        payload = wire.INFLIGHT_PADDED.pack(kept.length, kept.offset, kept.queues, kept.size)
        self._command(Request.SET_INFLIGHT_FD, payload, [kept.fd])

    def start_ring(self, index: int, setup: RingSetup) -> None:
        """Hands over a virtqueue. It is served when it is enabled, too (unless bit 30 is missing)."""
        state = wire.VRING_STATE
        self._command(Request.SET_VRING_NUM, state.pack(index, setup.size))
        self._command(Request.SET_VRING_BASE, state.pack(index, setup.base))
        desc, avail, used = (at + _USER_BASE for at in (setup.desc, setup.avail, setup.used))
        address = wire.VRING_ADDR.pack(index, 0, desc, used, avail, 0)
        self._command(Request.SET_VRING_ADDR, address)
        if setup.err_fd >= 0:
            self.set_ring_fd(Request.SET_VRING_ERR, index, setup.err_fd)
        self.set_ring_fd(Request.SET_VRING_CALL, index, setup.call_fd)
        self.set_ring_fd(Request.SET_VRING_KICK, index, setup.kick_fd)

    def set_ring_fd(self, request: Request, index: int, fd: int) -> None:
        """SET_VRING_KICK, CALL or ERR; -1 says that there is none."""
        value = index | (wire.VRING_NO_FD if fd < 0 else 0)
        self._command(request, wire.U64.pack(value), [fd] if fd >= 0 else [])

    def enable_ring(self, index: int, enabled: bool) -> None:
        """Enables or disables a virtqueue; nothing to do without bit 30, where all are enabled."""
        if self.offered & wire.F_PROTOCOL_FEATURES:
            payload = wire.VRING_STATE.pack(index, enabled)
            self._command(Request.SET_VRING_ENABLE, payload)

    def restart_ring(self, index: int, base: int, kick_fd: int) -> None:
        """Hands a stopped virtqueue over again: what the back end knows of it is still right."""
        self._command(Request.SET_VRING_BASE, wire.VRING_STATE.pack(index, base))
        self.set_ring_fd(Request.SET_VRING_KICK, index, kick_fd)

    def stop_ring(self, index: int) -> int:
        """Takes a virtqueue back; returns the avail index to start from again."""
        return self.stop_rings([index])[index]

    def stop_rings(self, indices: Iterable[int]) -> dict[int, int]:
        """Takes several back, waiting once; the avail index to start each from again."""
        self._catch_up()
        wanted = list(indices)
        for index in wanted:
            self._send(Request.GET_VRING_BASE, wire.VRING_STATE.pack(index, 0))
        return {index: self._base(index) for index in wanted}

    def _base(self, index: int) -> int:
        reply = self._reply(Request.GET_VRING_BASE)
        answered, base = reply.unpack(wire.VRING_STATE)
        if answered != index or base > 0xFFFF:
            raise VhostUserError(f"The back end answered {base} for queue {answered}, not {index}.")
        return base

    def get_config(self, offset: int, size: int) -> bytes:
        """`size` bytes of the configuration space; raises VhostUserError when refused."""
        payload = wire.CONFIG_HEADER.pack(offset, size, 0) + bytes(size)
        reply = self._query(Request.GET_CONFIG, payload)
        if not reply.payload:
            raise VhostUserError("The back end does not give its configuration.")
        answered, length, _, data = wire.parse_config(reply)
        if (answered, length) != (offset, size):
            raise VhostUserError("The back end gave another part of its configuration.")
        return data

    def set_config(self, offset: int, data: bytes) -> None:
        """Writes configuration the driver wrote."""
        self._command(Request.SET_CONFIG, wire.CONFIG_HEADER.pack(offset, len(data), 0) + data)

    def reset(self) -> None:
        """The driver reset the device (all rings were stopped): forgets what was in flight."""
        self.forget_inflight()
        if self.can(ProtocolFeature.RESET_DEVICE):
            self._command(Request.RESET_DEVICE)

    def forget_inflight(self) -> None:
        """Nothing is in flight any more."""
        if self.inflight is not None:
            self.inflight.close()
            self.inflight = None

    def close(self, *, keep_inflight: bool = False) -> None:
        """Ends the connection. keep_inflight: a successor gets `inflight`."""
        self._channel.close()
        if self.inflight is not None and not keep_inflight:
            self.inflight.close()
            self.inflight = None

    def _send(
        self, request: Request, payload: bytes = b"", fds: list[int] | None = None, flags: int = 0
    ) -> None:
        self._channel.send(Message(request, payload, wire.VERSION | flags, fds or []))

    def _command(
        self, request: Request, payload: bytes = b"", fds: list[int] | None = None
    ) -> None:
        """A request without a reply of its own: acknowledged when the back end can."""
        acknowledged = self.can(ProtocolFeature.REPLY_ACK)
        self._send(request, payload, fds, wire.NEED_REPLY if acknowledged else 0)
        if acknowledged and self._unanswered is not None:
            self._unanswered.append(request)
        elif acknowledged:
            self._acknowledged(request)

    def _acknowledged(self, request: Request) -> None:
        if self._reply(request).unpack(wire.U64) != (0,):
            raise VhostUserError(f"The back end refused {Message(request).name}.")

    def _query(self, request: Request, payload: bytes = b"") -> Message:
        self._send(request, payload)
        self._catch_up()
        return self._reply(request)

    def _query_u64(self, request: Request) -> int:
        return self._query(request).unpack(wire.U64)[0]

    def _reply(self, request: Request) -> Message:
        reply = self._channel.receive()
        if reply is None:
            raise VhostUserError("The back end does not answer.")
        fds_wanted = request is Request.GET_INFLIGHT_FD
        if (
            reply.request != request
            or not reply.flags & wire.REPLY
            or (reply.fds and not fds_wanted)
        ):
            close_all(reply.fds)
            raise VhostUserError(f"The back end answered {request.name} with {reply.name}.")
        return reply


def eventfd() -> int:
    """A fresh non-blocking eventfd, for kick and call."""
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
