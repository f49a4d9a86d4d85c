"""The control block: all numbers of one connection, in one flat record that can be kept and restored.

Names are RFC 9293's (§3.3.1), RFC 7323's and RFC 6675's. Times are seconds on the stack's clock, 0 when
a timer is off; sizes are bytes. Buffers are elsewhere (`buffers.py`, `reassembly.py`, `scoreboard.py`).
"""

from __future__ import annotations

import dataclasses
import operator
import struct
from dataclasses import dataclass

from crumble_netd.tcp.state import State

DEFAULT_MSS = 536  # RFC 9293 §3.7.1, IPv4 without the option
MAX_SCALED = 0xFFFF


@dataclass(slots=True)
class ControlBlock:
    """One connection's numbers."""

    state: State = State.CLOSED
    # Send sequence space. snd_wl1, snd_wl2: the segment of the last window update.
    iss: int = 0
    snd_una: int = 0
    snd_nxt: int = 0
    snd_wnd: int = 0
    snd_wl1: int = 0
    snd_wl2: int = 0
    max_snd_wnd: int = 0
    snd_scale: int = 0
    mss: int = DEFAULT_MSS
    fin_queued: bool = False
    fin_sent: bool = False
    # Receive sequence space. rcv_adv: the right edge told to the peer. rcv_limit: bytes we would hold.
    irs: int = 0
    rcv_nxt: int = 0
    rcv_adv: int = 0
    rcv_limit: int = 0
    rcv_scale: int = 0
    rcv_mss: int = DEFAULT_MSS
    held: int = 0
    taken: int = 0
    # Options agreed on.
    scale_ok: bool = False
    sack_ok: bool = False
    ts_ok: bool = False
    ts_recent: int = 0
    ts_recent_at: float = 0.0
    ts_offset: int = 0
    last_ack_sent: int = 0
    # Round trips (RFC 6298). timed_seq, timed_at: the one segment timed when there are no timestamps.
    srtt: float = 0.0
    rttvar: float = 0.0
    rto: float = 1.0
    timed_seq: int = 0
    timed_at: float = 0.0
    # Congestion (RFC 5681, RFC 9438) and recovery (RFC 6675).
    cwnd: int = 0
    ssthresh: int = 1 << 30
    w_max: float = 0.0
    w_est: float = 0.0
    k: float = 0.0
    epoch_start: float = 0.0
    cwnd_epoch: int = 0
    dup_acks: int = 0
    recovering: bool = False
    recovery_point: int = 0
    high_rxt: int = 0
    lost_mark: int = 0
    # Timers, and how often each has expired in vain.
    rtx_at: float = 0.0
    persist_at: float = 0.0
    keepalive_at: float = 0.0
    end_at: float = 0.0
    tries: int = 0
    probes: int = 0
    last_sent: float = 0.0
    last_received: float = 0.0
    challenges: int = 0
    challenged_at: float = 0.0

    def to_bytes(self) -> bytes:
        """The block as `from_bytes` takes it."""
        return _LAYOUT.pack(*_VALUES(self))

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> ControlBlock:
        """The block that `to_bytes` wrote; raises ValueError when it cannot be one."""
        if len(data) < _LAYOUT.size:
            raise ValueError("a control block is too short")
        block = cls(*_LAYOUT.unpack_from(data))
        block.state = State(block.state)
        return block


def _code(field: dataclasses.Field[object]) -> str:
    kinds = {"bool": "?", "float": "d", "int": "q", "State": "q"}
    return kinds[str(field.type)]


_FIELDS = dataclasses.fields(ControlBlock)
_VALUES = operator.attrgetter(*(field.name for field in _FIELDS))
_LAYOUT = struct.Struct("<" + "".join(map(_code, _FIELDS)))
SIZE = _LAYOUT.size
