"""How TCP connections to guests begin: their first numbers, and by which of a guest's addresses a forward reaches it.

What listens in a guest does so at its IPv4 address, at its IPv6 one, or at both, and nobody tells which. So a
connection has ways, the best first (`Stack.forwarded`). One that the guest refuses is left for good; on one that
says nothing the next SYN goes by the next way, in turn, at the times of SYNs sent again (RFC 6298).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from crumble_netd.tcp.connection import Connection
from crumble_netd.tcp.rtt import MAX_RTO
from crumble_netd.tcp.sequence import MASK
from crumble_netd.tcp.settings import Settings
from crumble_netd.tcp.state import State

if TYPE_CHECKING:
    from crumble_netd.stack import Stack
    from crumble_netd.tcp_flow import TcpFlow

_HEADERS4, _HEADERS6 = 40, 60
# SYNs to a silent address of a guest that has refused at another: 3 s.
_LAST_TRIES = 1


class Opening:
    """Of one stack."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._secret = stack.random(16)

    def connection(self, flow: TcpFlow) -> Connection:
        """A connection for a flow, closed, kept in the ledger from when it says something."""
        key, stack, port = flow.key, self._stack, flow.port
        material = key.guest + key.remote + bytes(str((key.guest_port, key.remote_port)), "ascii")
        digest = hashlib.blake2s(material, key=self._secret, digest_size=8).digest()
        # RFC 6528: a clock of 4 us, and a secret's word on these ends.
        iss = (int(stack.now() * 250_000) + int.from_bytes(digest[:4], "big")) & MASK
        six = len(key.guest) == 16
        settings = Settings(
            mss=port.mtu - (_HEADERS6 if six else _HEADERS4),
            max_segment=port.largest(ipv6=six),
        )
        offset = int.from_bytes(digest[4:], "big")
        if flow.slot is None and stack.ledger is not None and flow.service != "dns":
            flow.slot = stack.ledger.take(stream=True)
        connection = Connection(iss, settings, ts_offset=offset)
        if flow.slot is not None:
            connection.keep(flow.slot.to_guest, flow.slot.enlarged_to_guest)
        connection.paused = stack.paused(port)
        connection.grow = stack.budget.take
        flow.window = connection.block.rcv_limit
        return connection

    def refused(self, flow: TcpFlow) -> bool:
        """The guest has refused: whether there is another way, which is tried now."""
        if not flow.others:
            return False
        flow.refused = True
        self._turn(flow, 0, 1.0)
        return True

    def silent(self, flow: TcpFlow) -> bool:
        """A deadline has come: whether it was that of a SYN, and the next one has gone another way."""
        assert flow.connection is not None
        block, now = flow.connection.block, self._stack.now()
        if block.state is not State.SYN_SENT or not 0 < block.rtx_at <= now:
            return False
        if flow.refused and block.tries >= _LAST_TRIES:
            flow.connection.end("refused")
            return False
        if not flow.others or block.tries >= flow.connection.settings.syn_tries:
            return False
        if len(flow.key.guest) == 4:
            flow.port.has_ipv4 = False
        flow.others.append(flow.key)
        self._turn(flow, block.tries + 1, min(2 * block.rto, MAX_RTO))
        return True

    def _turn(self, flow: TcpFlow, tries: int, rto: float) -> None:
        """Begins anew with the next way's ends."""
        stack = self._stack
        stack.flows.change(flow, flow.others.pop(0))
        flow.noted = ()  # whose flow it is has changed
        flow.connection = connection = self.connection(flow)
        connection.block.tries, connection.block.rto = tries, rto
        connection.open(stack.now())
        connection.block.last_received = flow.begun
