"""Round-trip time and retransmission time-out (RFC 6298)."""

from __future__ import annotations

from crumble_netd.tcp.control_block import ControlBlock

# (2.4) asks for 1 s; stacks in use take 0.2 s, and the peer here is on the same host.
MIN_RTO, MAX_RTO = 0.2, 60.0
INITIAL_RTO = 1.0
_GRANULARITY = 0.001


def sample(block: ControlBlock, measured: float) -> None:
    """One measurement, seconds (§2)."""
    measured = max(measured, 0.0)
    if block.srtt == 0.0:
        block.srtt, block.rttvar = measured or _GRANULARITY, measured / 2
    else:
        block.rttvar += (abs(block.srtt - measured) - block.rttvar) / 4
        block.srtt += (measured - block.srtt) / 8
    rto = block.srtt + max(_GRANULARITY, 4 * block.rttvar)
    block.rto = min(max(rto, MIN_RTO), MAX_RTO)


def back_off(block: ControlBlock) -> None:
    """(5.5): twice as long."""
    block.rto = min(block.rto * 2, MAX_RTO)
