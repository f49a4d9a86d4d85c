"""Flows in the ledger: what of them is written down, and when all of it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crumble_netd.flow_table import Flow
    from crumble_netd.tcp.control_block import ControlBlock
    from crumble_netd.tcp_flow import TcpFlow


def note(flow: TcpFlow, block: ControlBlock) -> None:
    """A connection's numbers: those that move, and all of them when its state has changed."""
    slot = flow.slot
    if slot is None:
        return
    now = (block.state, block.fin_queued, block.fin_sent, block.mss)
    if now == flow.noted:
        slot.write_numbers(block)
    elif flow.noted:
        slot.write_block(block)
    else:
        slot.begin(flow.number, identity(flow, flow.service), block)
    flow.noted = now


def identity(flow: Flow, service: str) -> dict[str, Any]:
    """Whose flow it is."""
    return {"key": flow.key, "target": flow.target, "begun": flow.begun, "service": service}
