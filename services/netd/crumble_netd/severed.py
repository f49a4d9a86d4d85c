"""Connections of a guest that was captured: in a clone nobody is at their other end, and it is told so.

A guest that only waits for bytes would do so for ever: nothing that it sends tells it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack

from crumble_common.errors import UsageError
from crumble_netd.flow_table import Key
from crumble_netd.tcp.sequence import MASK
from crumble_netd.tcp_flow import TcpFlow

if TYPE_CHECKING:
    from crumble_netd.port import Port
    from crumble_netd.stack import Stack

# Of one guest; those beyond that end by their own timers.
_MOST = 4096


def connections_of(stack: Stack, port: Port) -> bytes:
    """What `sever` takes: both ends of each, and the sequence number that the guest expects next, or will. Empty
    when there are none.
    """
    found = []
    for flow in stack.flows.all():
        if flow.port is port and isinstance(flow, TcpFlow) and flow.connection is not None:
            key = flow.key
            ends = (key.guest, key.guest_port, key.remote, key.remote_port)
            found.append((*ends, flow.connection.block.snd_nxt))
    return bytes(msgpack.packb(found[:_MOST])) if found else b""


def sever(stack: Stack, port: Port, connections: bytes) -> None:
    """Resets them in the guest, but for those that there are again; UsageError for nonsense."""
    for guest, guest_port, remote, remote_port, seq in _parsed(connections):
        key = Key("tcp", port.number, guest, guest_port, remote, remote_port)
        if stack.flows.find(key) is None and stack.may_use(port, guest):
            stack.tcp.reset(port, key, seq)


def _parsed(connections: bytes) -> list[tuple[bytes, int, bytes, int, int]]:
    """They come from a file."""
    try:
        found = [
            (bytes(guest), int(guest_port), bytes(remote), int(remote_port), int(seq))
            for guest, guest_port, remote, remote_port, seq in msgpack.unpackb(connections)
        ]
    except Exception:  # noqa: BLE001  msgpack raises many kinds for bad bytes
        found = [(b"", 0, b"", 0, 0)]
    for guest, guest_port, remote, remote_port, seq in found:
        ends = len(guest) == len(remote) and len(guest) in (4, 16)
        ports = 0 < guest_port <= 0xFFFF and 0 < remote_port <= 0xFFFF
        if not ends or not ports or not 0 <= seq <= MASK:
            raise UsageError("There are no such connections.", code="net.connections")
    return found[:_MOST]
