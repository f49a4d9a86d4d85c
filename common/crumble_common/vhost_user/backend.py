"""The device's side of vhost-user: one connection, one device.

`Backend` answers the front end's messages, maps its memory, and starts and stops the device's rings;
the device itself (`Device`) never sees a message. Driven by an event loop:

    backend = Backend(sock, device)
    loop.add_fd(backend.fileno(), "vhost-user", on_readable)   # on_readable: backend.handle_readable()

A ring runs while it has been given a size, addresses and a kick (SET_VRING_KICK), is enabled, and
memory is there. It starts at once, without waiting for a first kick: a kick may have come before us.

The peer is not trusted with anything but its own VM: a request that makes no sense changes nothing; it
is answered with an error when the peer asked for an answer (REPLY_ACK), and ends the connection otherwise.
"""

from __future__ import annotations

import mmap
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from crumble_common import log
from crumble_common.vhost_user import inflight, wire
from crumble_common.vhost_user.channel import Channel, Disconnected, close_all
from crumble_common.vhost_user.memory_table import MemoryTable
from crumble_common.vhost_user.ring import Ring
from crumble_common.vhost_user.wire import Message, ProtocolFeature, Request, VhostUserError

_PROTOCOL_FEATURES = (
    ProtocolFeature.MQ.mask
    | ProtocolFeature.REPLY_ACK.mask
    | ProtocolFeature.BACKEND_REQ.mask
    | ProtocolFeature.INFLIGHT_SHMFD.mask
    | ProtocolFeature.RESET_DEVICE.mask
    | ProtocolFeature.CONFIGURE_MEM_SLOTS.mask
    | ProtocolFeature.STATUS.mask
)

_REQUESTS = frozenset(Request)


class Device(Protocol):
    """What a back end serves. Called from the thread that calls `handle_readable`."""

    @property
    def features(self) -> int:
        """Virtio feature bits offered, without bit 30."""

    @property
    def queues(self) -> int:
        """Number of virtqueues, at most 255."""

    @property
    def config(self) -> bytes | None:
        """The configuration space; None: CONFIG is not offered (QEMU's own device has it)."""

    def negotiated(self, features: int) -> None:
        """The features the driver took; may come more than once."""

    def start(self, ring: Ring) -> None:
        """Serve `ring` from now on. Chains may be there already; `ring.kick_fd` says when more are."""

    def stop(self, index: int) -> None:
        """Stop serving; chains popped are pushed, or stay in the in-flight region, when it returns."""

    def reset(self) -> None:
        """The driver or front end reset the device; all rings are stopped."""


@dataclass
class _Reply:
    payload: bytes
    fds: list[int] = field(default_factory=list)


class Backend:
    """One connection. Owns the socket, what it maps, and every fd the peer sent.

    page_state, base: see MemoryTable; only when the front end is our vmm.
    """

    def __init__(
        self,
        sock: socket.socket,
        device: Device,
        *,
        page_state: mmap.mmap | None = None,
        base: mmap.mmap | None = None,
    ) -> None:
        sock.setblocking(False)
        self._channel = Channel(sock)
        self._device = device
        self.table = MemoryTable(page_state, base)
        self.rings = [Ring(index) for index in range(device.queues)]
        self.features = 0
        self.protocol_features = 0
        self.backend_channel: socket.socket | None = None
        self._inflight: inflight.Inflight | None = None
        self._status = 0

    def capture_to(self, fd: int) -> None:
        """The VM is being captured: pages that we write are saved to `fd` first, which is ours now."""
        self.table.capture_to(fd)

    def fileno(self) -> int:
        """The socket's descriptor, for polling."""
        return self._channel.fileno()

    def handle_readable(self) -> bool:
        """Serves what has arrived. False when the front end is gone; then `close`.

        Raises VhostUserError when the front end broke the protocol: log it and `close`.
        """
        try:
            while (message := self._channel.receive()) is not None:
                self._serve(message)
        except Disconnected as error:
            log.debug("vhost-user ended", reason=error.message)
            return False
        return True

    def close(self) -> None:
        """Stops all rings and frees everything; the device may be given to another Backend."""
        for ring in self.rings:
            self._halt(ring)
            ring.close()
        if self.backend_channel is not None:
            self.backend_channel.close()
            self.backend_channel = None
        self.table.capture_to(-1)
        self._inflight = None
        self.table = MemoryTable()
        self._channel.close()

    # Messages.

    def _serve(self, message: Message) -> None:
        acknowledge = message.need_reply and bool(
            self.protocol_features & ProtocolFeature.REPLY_ACK.mask
        )
        try:
            reply = self._handle(message)
        except (VhostUserError, OSError) as error:
            if not acknowledge:
                raise VhostUserError(str(error)) from error
            log.warning("vhost-user request refused", request=message.name, error=error)
            reply = _Reply(wire.U64.pack(1))
        finally:
            close_all(message.fds)
        if reply is None and acknowledge:
            reply = _Reply(wire.U64.pack(0))
        if reply is not None:
            flags = wire.VERSION | wire.REPLY
            try:
                self._channel.send(Message(message.request, reply.payload, flags, reply.fds))
            finally:
                close_all(reply.fds)

    def _handle(self, message: Message) -> _Reply | None:
        if message.request not in _REQUESTS:
            raise VhostUserError(f"The front end sent {message.name}, which is not known here.")
        handler: Callable[[Message], _Reply | None] = getattr(self, "_" + message.name.lower())
        return handler(message)

    @staticmethod
    def _u64(message: Message) -> int:
        return message.unpack(wire.U64)[0]

    def _ring_and_number(self, message: Message) -> tuple[Ring, int]:
        index, number = message.unpack(wire.VRING_STATE)
        return self._ring(index), number

    def _ring(self, index: int) -> Ring:
        if index >= len(self.rings):
            raise VhostUserError(
                f"The front end named queue {index}; the device has {len(self.rings)}."
            )
        return self.rings[index]

    def _get_features(self, _message: Message) -> _Reply:
        return _Reply(wire.U64.pack(self._device.features | wire.F_PROTOCOL_FEATURES))

    def _set_features(self, message: Message) -> None:
        features = self._u64(message)
        unknown = features & ~(self._device.features | wire.F_PROTOCOL_FEATURES)
        if unknown:
            raise VhostUserError(f"The front end set features never offered: {unknown:#x}.")
        self.features = features
        self._device.negotiated(features & ~wire.F_PROTOCOL_FEATURES)
        if not features & wire.F_PROTOCOL_FEATURES:
            for ring in self.rings:
                ring.enabled = True
        self._update_all()

    def _get_protocol_features(self, _message: Message) -> _Reply:
        return _Reply(wire.U64.pack(self._offered_protocol_features()))

    def _offered_protocol_features(self) -> int:
        config = ProtocolFeature.CONFIG.mask if self._device.config is not None else 0
        return _PROTOCOL_FEATURES | config

    def _set_protocol_features(self, message: Message) -> None:
        features = self._u64(message)
        unknown = features & ~self._offered_protocol_features()
        if unknown:
            raise VhostUserError(
                f"The front end set protocol features never offered: {unknown:#x}."
            )
        self.protocol_features = features

    def _set_owner(self, _message: Message) -> None:
        pass

    def _reset_owner(self, _message: Message) -> None:
        """Deprecated; back ends are told to ignore it."""

    def _get_queue_num(self, _message: Message) -> _Reply:
        return _Reply(wire.U64.pack(len(self.rings)))

    def _get_status(self, _message: Message) -> _Reply:
        return _Reply(wire.U64.pack(self._status))

    def _set_status(self, message: Message) -> None:
        status = self._u64(message) & 0xFF
        if status == 0 and self._status != 0:
            self._reset()
        self._status = status

    def _reset_device(self, _message: Message) -> None:
        self._reset()

    def _reset(self) -> None:
        for ring in self.rings:
            self._halt(ring)
            ring.reset()
        self._inflight = None
        self._status = 0
        self._device.reset()

    def _set_backend_req_fd(self, message: Message) -> None:
        fd = message.take_fd()
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            close_all([fd])
            raise VhostUserError("SET_BACKEND_REQ_FD came with something that is no socket.")
        if self.backend_channel is not None:
            self.backend_channel.close()
        self.backend_channel = socket.socket(fileno=fd)

    # Memory.

    def _get_max_mem_slots(self, _message: Message) -> _Reply:
        return _Reply(wire.U64.pack(wire.MAX_REGIONS))

    def _set_mem_table(self, message: Message) -> None:
        regions = wire.parse_regions(message)
        self._remap(lambda: self.table.replace(regions, message.fds))

    def _add_mem_reg(self, message: Message) -> None:
        region = wire.parse_single_region(message)
        if len(message.fds) != 1:
            raise VhostUserError("ADD_MEM_REG came without its one file descriptor.")
        self.table.add(region, message.fds[0])
        self._update_all()

    def _rem_mem_reg(self, message: Message) -> None:
        region = wire.parse_single_region(message)
        self._remap(lambda: self.table.remove(region))

    def _remap(self, change: Callable[[], None]) -> None:
        """Changes the memory with all rings stopped; they go on where they were."""
        for ring in self.rings:
            self._halt(ring)
        try:
            change()
        finally:
            self._update_all()

    # Rings.

    def _set_vring_num(self, message: Message) -> None:
        ring, size = self._ring_and_number(message)
        ring.set_size(size)

    def _set_vring_addr(self, message: Message) -> None:
        index, _flags, desc, used, avail, _log = message.unpack(wire.VRING_ADDR)
        ring = self._ring(index)
        if (desc, avail, used) == ring.addresses:
            return
        running = ring.running
        self._halt(ring)
        ring.addresses = (desc, avail, used)
        if running:
            self._update(ring)

    def _set_vring_base(self, message: Message) -> None:
        ring, base = self._ring_and_number(message)
        if base > 0xFFFF:
            raise VhostUserError(f"{base} is no avail index of a split ring.")
        self._halt(ring)
        ring.base = base

    def _get_vring_base(self, message: Message) -> _Reply:
        ring, _ = self._ring_and_number(message)
        self._halt(ring)
        ring.drop_kick()
        return _Reply(wire.VRING_STATE.pack(ring.index, ring.base))

    def _set_vring_kick(self, message: Message) -> None:
        ring, fd = self._ring_and_fd(message)
        self._halt(ring)
        ring.set_kick(fd)
        self._update(ring)

    def _set_vring_call(self, message: Message) -> None:
        ring, fd = self._ring_and_fd(message)
        ring.set_call(fd)

    def _set_vring_err(self, message: Message) -> None:
        ring, fd = self._ring_and_fd(message)
        ring.set_err(fd)

    def _ring_and_fd(self, message: Message) -> tuple[Ring, int]:
        value = self._u64(message)
        ring = self._ring(value & wire.VRING_INDEX_MASK)
        return ring, -1 if value & wire.VRING_NO_FD else message.take_fd()

    def _set_vring_enable(self, message: Message) -> None:
        ring, enabled = self._ring_and_number(message)
        if enabled > 1:
            raise VhostUserError(f"SET_VRING_ENABLE came with {enabled}.")
        ring.enabled = bool(enabled)
        self._update(ring)

    def _update_all(self) -> None:
        for ring in self.rings:
            self._update(ring)

    def _update(self, ring: Ring) -> None:
        """Starts or stops a ring, as what is known of it now asks for."""
        wanted = ring.enabled and ring.ready() and len(self.table) > 0
        if ring.running and not wanted:
            self._halt(ring)
        elif wanted and not ring.running:
            ring.open(self.table, self.features, self._inflight)
            self._device.start(ring)

    def _halt(self, ring: Ring) -> None:
        if ring.running:
            self._device.stop(ring.index)
            ring.shut()

    # Configuration space and in-flight region.

    def _get_config(self, message: Message) -> _Reply:
        """An empty payload says that it failed."""
        config = self._device.config
        try:
            offset, size, flags, _ = wire.parse_config(message)
        except VhostUserError as error:
            log.warning("vhost-user request refused", request=message.name, error=error)
            return _Reply(b"")
        if config is None:
            return _Reply(b"")
        data = config[offset : offset + size].ljust(size, b"\0")
        return _Reply(wire.CONFIG_HEADER.pack(offset, size, flags) + data)

    def _set_config(self, _message: Message) -> None:
        raise VhostUserError("The configuration space of this device is read-only.")

    def _get_inflight_fd(self, message: Message) -> _Reply:
        _, _, queues, size = wire.parse_inflight(message)
        fd, length = inflight.create(queues, size)
        padded = len(message.payload) == wire.INFLIGHT_PADDED.size
        layout = wire.INFLIGHT_PADDED if padded else wire.INFLIGHT
        return _Reply(layout.pack(length, 0, queues, size), [fd])

    def _set_inflight_fd(self, message: Message) -> None:
        length, offset, queues, size = wire.parse_inflight(message)
        if len(message.fds) != 1:
            raise VhostUserError("SET_INFLIGHT_FD came without its one file descriptor.")
        self._inflight = inflight.Inflight.attach(message.fds[0], length, offset, queues, size)
