"""A VM's interface moves from one network to another, or its back end is another one: what `vmm` does for it."""

from __future__ import annotations

import os
import time

from crumble_common.messages.vm import NetDisconnect, NetReconnect, NetRest, NetWanted
from crumble_common.service import Context, Reply
from crumble_vmm.agent.session import AgentSession
from crumble_vmm.config import Network
from crumble_vmm.machine import Machine

_SEED_SIZE = 64


def move(
    message: NetReconnect | NetDisconnect | NetRest,
    machine: Machine,
    session: AgentSession,
    context: Context,
    reply: Reply,
) -> None:
    """Raises CrumbleError. The guest of another network is told by its agent who it is there; `moved` follows.

    Linux forgets that a link came up when its interface goes down in that moment: so the agent comes first.
    """
    if isinstance(message, NetDisconnect):
        machine.link.disconnect()
        reply.ok()
        return
    if isinstance(message, NetRest):
        machine.link.rest(lambda: context.send(NetWanted()))
        reply.ok()
        return
    other = Network.from_message(message.network) if message.network else None
    machine.link.reconnect(context.take_fd(message.socket_fd), other.mac if other else b"")
    if other is None:
        reply.ok()
    else:
        session.move(other.told(), time.time_ns(), os.urandom(_SEED_SIZE), reply)


def moved(machine: Machine, reply: Reply) -> None:
    """The guest has been told."""
    machine.link.up()
    reply.ok()
