"""Congestion control: Reno (RFC 5681) and CUBIC (RFC 9438). State is in the control block.

On a network of one hop in shared memory it seldom matters; it does where guests bridge to others.
"""

from __future__ import annotations

from typing import Protocol

from crumble_netd.tcp.control_block import ControlBlock

# What the send buffer may hold bounds it anyway.
MAX_CWND = 16 << 20
_BETA, _C = 0.7, 0.4
_ALPHA = 3 * (1 - _BETA) / (1 + _BETA)


class Congestion(Protocol):
    """An algorithm; one object serves all connections."""

    def acked(self, block: ControlBlock, count: int, now: float) -> None:
        """`count` bytes were acknowledged outside recovery, while cwnd was the limit."""

    def lost(self, block: ControlBlock, flight: int, now: float) -> None:
        """A loss was seen: sets ssthresh, and cwnd for recovery."""


def initial_window(mss: int) -> int:
    """RFC 6928 §2; its 14600 bytes are ten segments of an Ethernet, which is what is meant here too."""
    return 10 * mss


def timed_out(control: Congestion, block: ControlBlock, flight: int, now: float) -> None:
    """RFC 5681 §3.1 (4): a retransmission time-out; ssthresh only at the first of several."""
    if block.tries == 0:
        control.lost(block, flight, now)
    block.cwnd = block.mss


def _slow_start(block: ControlBlock, count: int) -> int:
    """Appropriate byte counting (RFC 3465); what is left of `count` is for congestion avoidance."""
    if block.cwnd >= block.ssthresh:
        return count
    step = min(count, block.ssthresh - block.cwnd)
    block.cwnd = min(block.cwnd + step, MAX_CWND)
    return count - step


class Reno:
    """RFC 5681."""

    def acked(self, block: ControlBlock, count: int, now: float) -> None:  # noqa: ARG002
        """Of Congestion."""
        if count := _slow_start(block, count):
            step = max(1, block.mss * count // block.cwnd)
            block.cwnd = min(block.cwnd + step, MAX_CWND)

    def lost(self, block: ControlBlock, flight: int, now: float) -> None:  # noqa: ARG002
        """Of Congestion."""
        block.ssthresh = max(flight // 2, 2 * block.mss)
        block.cwnd = block.ssthresh


class Cubic:
    """RFC 9438; windows in segments, as there."""

    def acked(self, block: ControlBlock, count: int, now: float) -> None:
        """Of Congestion (§4.2 to §4.5)."""
        count = _slow_start(block, count)
        if not count:
            return
        mss = block.mss
        cwnd = block.cwnd / mss
        if block.epoch_start == 0.0:
            self._begin(block, cwnd, now)
        t = now - block.epoch_start + block.srtt
        target = _C * (t - block.k) ** 3 + block.w_max
        target = min(max(target, cwnd), 1.5 * cwnd)
        block.w_est += _ALPHA * (count / mss) / cwnd
        if block.w_est > cwnd and block.w_est > target:
            cwnd = block.w_est
        else:
            cwnd += (target - cwnd) / cwnd * (count / mss)
        block.cwnd = min(int(cwnd * mss), MAX_CWND)

    @staticmethod
    def _begin(block: ControlBlock, cwnd: float, now: float) -> None:
        block.epoch_start = now
        block.w_max = max(block.w_max, cwnd)
        block.k = ((block.w_max - cwnd) / _C) ** (1 / 3)
        block.w_est = cwnd
        block.cwnd_epoch = block.cwnd

    def lost(self, block: ControlBlock, flight: int, now: float) -> None:  # noqa: ARG002
        """Of Congestion (§4.6, fast convergence §4.7)."""
        cwnd = block.cwnd / block.mss
        block.w_max = cwnd * (1 + _BETA) / 2 if cwnd < block.w_max else cwnd
        block.epoch_start = 0.0
        block.ssthresh = max(int(min(flight, block.cwnd) * _BETA), 2 * block.mss)
        block.cwnd = block.ssthresh
