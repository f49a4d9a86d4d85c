"""Where gdb connects: a listening socket in the service's loop, one debugger at a time."""

from __future__ import annotations

import socket
import struct

from crumble_common import log
from crumble_common.eventloop import EventLoop
from crumble_native import rv64
from crumble_vmm.debug.session import GdbSession
from crumble_vmm.debug.target import MachineTarget, need_soft
from crumble_vmm.machine import Machine

_CHUNK = 64 << 10
MAX_TRACE = 16384


class DebugServer:
    """Serves gdb on `listener`, which it owns, until `close`."""

    def __init__(self, loop: EventLoop, machine: Machine, listener: socket.socket) -> None:
        need_soft(machine)
        self._loop, self._machine, self._listener = loop, machine, listener
        self._peer: socket.socket | None = None
        self._session: GdbSession | None = None
        self._target: MachineTarget | None = None
        self._out = bytearray()
        listener.setblocking(False)
        loop.add_fd(listener.fileno(), "debugger", self._accept)

    @property
    def busy(self) -> bool:
        """Whether a debugger is there."""
        return self._peer is not None

    def close(self) -> None:
        """The VM ends."""
        if self._session is not None and not self._session.over:
            self._send(self._session.ended())
        self._drop()
        self._loop.remove_fd(self._listener.fileno())
        self._listener.close()

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        if self._peer is not None:
            peer.close()
            return
        peer.setblocking(False)
        self._peer = peer
        self._target = MachineTarget(self._machine, self._stopped)
        self._session = GdbSession(self._target)
        self._loop.add_fd(peer.fileno(), "debugger", self._receive)
        log.info("debugger connected")

    def _receive(self) -> None:
        assert self._peer is not None and self._session is not None
        try:
            data = self._peer.recv(_CHUNK)
            reply = self._session.receive(data) if data else b""
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            log.info("debugger lost", why=str(error))
            data = reply = b""
        self._send(reply)
        if not data or self._session.over:
            self._leave()

    def _stopped(self, cpu: int, signal: int, watch: int | None) -> None:
        if self._session is not None:
            self._send(self._session.stopped(cpu, signal, watch=watch))

    def _send(self, data: bytes) -> None:
        self._out += data
        if self._peer is None or not self._out:
            return
        try:
            del self._out[: self._peer.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self._out.clear()
        again = (lambda: self._send(b"")) if self._out else None
        self._loop.set_writable(self._peer.fileno(), "debugger", again)

    def _leave(self) -> None:
        if self._session is not None and not self._session.over and self._target is not None:
            self._target.leave()
        self._drop()

    def _drop(self) -> None:
        if self._peer is not None:
            self._loop.remove_fd(self._peer.fileno())
            self._peer.close()
        self._peer = self._session = self._target = None
        self._out.clear()


def start_trace(machine: Machine, cpu: int, count: int) -> None:
    """From now on vCPU `cpu` remembers its last instructions. ValueError for numbers there cannot be."""
    need_soft(machine)
    if not 0 <= cpu < len(machine.cpus) or not 1 <= count <= MAX_TRACE:
        raise ValueError("no such trace")
    machine.pause()
    machine.cpus[cpu].debug_hart().set_debug(rv64.Debug(trace=count))
    machine.resume()


def end_trace(machine: Machine, cpu: int) -> bytes:
    """Entries of u64 pc, u32 instruction, u32 privilege, the oldest first; the vCPU is at full speed again."""
    machine.pause()
    hart = machine.cpus[cpu].debug_hart()
    entries = b"".join(struct.pack("<QII", *entry) for entry in hart.trace())
    hart.set_debug(rv64.Debug())
    machine.resume()
    return entries
