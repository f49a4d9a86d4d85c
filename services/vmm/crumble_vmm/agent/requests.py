"""Requests of the control plane that the agent answers."""

from __future__ import annotations

from typing import Any

from crumble_common.errors import GuestError
from crumble_common.messages import vm as messages
from crumble_common.service import Reply
from crumble_vmm.agent.session import AgentSession


def ask_agent(session: AgentSession, message: Any, reply: Reply) -> bool:
    """False when it is no such request; GuestError when there is no agent."""
    if not isinstance(message, messages.AGENT_REQUESTS):
        return False
    if not session.ready:
        raise GuestError("The guest's agent is not ready.", code="guest.no_agent")
    match message:
        case messages.ProcessStart():
            session.start(message, reply)
        case messages.FileRead(path, offset, size):
            session.read_file(path, offset, size, reply)
        case messages.FileWrite(path, data, offset, mode):
            session.write_file(path, data, offset, mode, reply)
        case messages.Sync():
            session.sync(reply)
    return True
