"""A dead predecessor's flows, from the ledger and its parked sockets, as if nothing had happened.

What the ledger has may be a few system calls old. The kernel's counts (`progress.py`) say how far the host's side
really came: bytes read last are in the ring already, bytes written last are the guest's to send again in vain.
What the guest was told is in the ledger, since it is written down before; what it had acknowledged it says again.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from crumble_common import log
from crumble_netd import progress
from crumble_netd.commands import HostClose, HostRead, HostShutdown
from crumble_netd.flow_table import Flow, Key
from crumble_netd.host_sockets import socket_address
from crumble_netd.layers.credit import CREDIT_START
from crumble_netd.ledger import Ledger, Slot
from crumble_netd.loop import HostSide
from crumble_netd.progress import Progress
from crumble_netd.stack import Stack
from crumble_netd.tcp import congestion, transmit
from crumble_netd.tcp.buffers import SendBuffer
from crumble_netd.tcp.connection import Connection
from crumble_netd.tcp.control_block import ControlBlock
from crumble_netd.tcp.sequence import MASK, add, at_most, distance, latest
from crumble_netd.tcp.state import SYNCHRONIZED, State
from crumble_netd.tcp_flow import TcpFlow

# States in which the guest's FIN is among what it sent.
_ENDED = frozenset((State.CLOSE_WAIT, State.LAST_ACK, State.CLOSING, State.TIME_WAIT))
# From the first segments after a pause on, s: what the round trips were nobody knows.
_RTO = 0.2


def revive(stack: Stack, host: HostSide, ledger: Ledger, parked: dict[str, int], port: int) -> int:
    """Has every flow of a port go on that can; the number of those. Takes fds out of `parked`.

    One that cannot is forgotten: the guest's next segment of it is answered with a RST.
    """
    revived = 0
    stack.flows.reserve(max((slot.flow for slot in ledger.flows()), default=0))
    for slot in list(ledger.flows()):
        if _port(slot) not in (port, None):
            continue
        name = f"flow:{slot.flow}"
        fd = parked.pop(name, -1)
        sock = socket.socket(fileno=fd) if fd >= 0 else None
        try:
            _revive(stack, host, slot, sock)
            revived += 1
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            log.info("flow lost", flow=slot.flow, why=error)
            slot.end()
            if sock is not None:
                sock.close()
                host.forget(name)
    return revived


def _port(slot: Slot) -> int | None:
    """Whose flow it is; None when that cannot be read."""
    try:
        number: int = Key(*slot.identity()["key"]).port
    except (ValueError, KeyError, TypeError):
        return None
    return number


def _revive(stack: Stack, host: HostSide, slot: Slot, sock: socket.socket | None) -> None:
    who = slot.identity()
    key = Key(*who["key"])
    port = stack.ports[key.port]
    target = (who["target"][0], who["target"][1])
    if key.kind == "tcp":
        if sock is None:
            raise ValueError("its socket is gone")
        flow = TcpFlow(key, port, slot.flow, target, who["begun"], stack.now(), slot=slot)
        flow.service = who["service"]
        _stream(stack, host, flow, slot, sock)
    else:
        _datagrams(
            stack, host, Flow(key, port, slot.flow, target, who["begun"], slot=slot), who, sock
        )


def _datagrams(
    stack: Stack, host: HostSide, flow: Flow, who: dict[str, Any], sock: socket.socket | None
) -> None:
    if who["service"] != "nat":
        host.peer(flow.number, who["service"], socket_address(*flow.target))
    elif sock is None:
        raise ValueError("its socket is gone")
    else:
        host.datagrams(flow.number, sock)
        host.revived(flow.number)
    stack.udp.revive(flow)


def _stream(stack: Stack, host: HostSide, flow: TcpFlow, slot: Slot, sock: socket.socket) -> None:
    block = slot.block()
    there = progress.of(sock, active=flow.service == "nat")
    waiting = _from_guest(block, slot, there)
    host.stream(flow.number, sock, written=there.written, waiting=waiting)
    host.revived(flow.number)
    if block.state is State.CLOSED:
        stack.tcp.ending[flow.number] = slot
        stack.emit(HostClose(flow.number))
        return
    connection = stack.tcp.opening.connection(flow)
    connection.block = block
    flow.connection = connection
    stack.flows.add(flow)
    _to_guest(connection, slot, there)
    _credit(stack, flow, connection, slot)
    if block.state in _ENDED:
        stack.emit(HostShutdown(flow.number))
    _go_on(connection, stack.now())
    stack.tcp.revived(flow)


def _from_guest(block: ControlBlock, slot: Slot, there: Progress) -> SendBuffer | None:
    """Corrects what has come from the guest; what of it the host's kernel does not have."""
    ended = block.state in _ENDED
    first = add(block.irs, 1)
    received = add(block.rcv_nxt, -ended)
    behind = distance(add(first, there.written), received) if block.irs or block.rcv_nxt else 0
    block.held, block.taken = max(behind, 0), 0
    if behind > 0:
        room = slot.rooms[1]
        if behind > room or room > len(slot.from_guest):
            raise ValueError("bytes from the guest are missing")
        return SendBuffer(
            there.written & MASK, slot.from_guest, slot.enlarged_from_guest, room=room, size=behind
        )
    if behind < 0 and not ended:
        block.rcv_nxt = add(first, there.written)
    block.rcv_adv = latest(block.rcv_adv, block.rcv_nxt)
    block.last_ack_sent = block.rcv_nxt
    return None


def _to_guest(connection: Connection, slot: Slot, there: Progress) -> None:
    """The send buffer: what was read and not acknowledged; as far as the window goes, on its way and lost.

    What the window has no room for was not sent, or is not taken: were it counted as sent, a closed window
    would be left to the retransmission timer, which backs off, instead of being probed.
    """
    block, room = connection.block, slot.rooms[0]
    if room > len(slot.to_guest):
        raise ValueError("a ring is too large")
    first = add(block.iss, 1)
    end = add(first, there.read)
    # With FIN acknowledged snd_una is one beyond.
    held = max(0, distance(latest(block.snd_una, first), end))
    if held > room:
        held = room
    connection.buffer = SendBuffer(
        add(end, -held), slot.to_guest, slot.enlarged_to_guest, room=room, size=held
    )
    if block.state in SYNCHRONIZED:
        block.snd_una = latest(block.snd_una, connection.buffer.start)
        edge = latest(block.snd_nxt, add(block.snd_una, block.snd_wnd))
        last = end if at_most(end, edge) else edge
        block.snd_nxt = add(end, 1) if block.fin_sent else last


def _credit(stack: Stack, flow: TcpFlow, connection: Connection, slot: Slot) -> None:
    """Buffers as large as they were, whatever the budget says."""
    block = connection.block
    flow.credit = slot.rooms[0]
    flow.window = min(flow.window, block.rcv_limit)
    stack.budget.used += flow.credit - CREDIT_START + block.rcv_limit - flow.window
    if block.state in SYNCHRONIZED:
        flow.granted = flow.credit - connection.buffer.size
        stack.emit(HostRead(flow.number, flow.granted))


def _go_on(connection: Connection, now: float) -> None:
    """Says where we are, and sends again what may not have arrived."""
    block = connection.block
    block.timed_at = block.epoch_start = block.persist_at = 0.0
    block.dup_acks = block.tries = block.probes = 0
    block.recovering = False
    block.rto = _RTO
    block.rtx_at = now + block.rto if block.snd_una != block.snd_nxt else 0.0
    if block.state not in SYNCHRONIZED:
        return
    block.cwnd = congestion.initial_window(block.mss)
    if block.state is State.TIME_WAIT:
        return
    block.keepalive_at = now + connection.settings.keepalive_idle
    transmit.lose_all(connection)
    transmit.send_ack(connection, now)
    connection.resume(now)


def drop(host: HostSide, ledger: Ledger, parked: dict[str, int], port: int) -> None:
    """Ends every flow of a port that does not come back."""
    for slot in list(ledger.flows()):
        if _port(slot) == port:
            name = f"flow:{slot.flow}"
            slot.end()
            if (fd := parked.pop(name, -1)) >= 0:
                os.close(fd)
                host.forget(name)


def close_all(parked: dict[str, int], host: HostSide) -> None:
    """What nobody has taken is closed, and not kept any more."""
    for name, fd in parked.items():
        os.close(fd)
        host.forget(name)
    parked.clear()
