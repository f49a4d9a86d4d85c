"""Segments from the peer, in the order of RFC 9293 §3.10.7, with RFC 5961's and RFC 7323's checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crumble_netd.header.tcp import ACK, FIN, RST, SYN, Segment
from crumble_netd.tcp import acknowledge, transmit
from crumble_netd.tcp.control_block import MAX_SCALED
from crumble_netd.tcp.outputs import Data, PeerClosed
from crumble_netd.tcp.sequence import MASK, add, at_most, before, distance
from crumble_netd.tcp.state import RECEIVING, Event, State

if TYPE_CHECKING:
    from crumble_netd.tcp.connection import Connection

# RFC 5961 §7 and §10: challenge ACKs a second.
_CHALLENGES = 10
# RFC 7323 §5.5: a timestamp older than this is no measure any more.
_TS_RECENT_LIFE = 24 * 86400.0
# What a RST is to the application. When the peer has closed, all that it sent is here, and stays good.
_RESET_IN = {
    State.SYN_RECEIVED: "refused",
    State.CLOSING: "closed",
    State.LAST_ACK: "closed",
    State.TIME_WAIT: "closed",
}
_MIN_MSS = 88  # below this a header outweighs its data; RFC 9293 allows ignoring it


def learn_syn(conn: Connection, segment: Segment, now: float) -> None:
    """Takes sequence number, window and options from the peer's SYN."""
    block, options = conn.block, segment.options
    block.irs = segment.seq
    block.rcv_nxt = block.rcv_adv = block.last_ack_sent = add(segment.seq, 1)
    block.snd_wnd = block.max_snd_wnd = segment.window
    block.snd_wl1, block.snd_wl2 = segment.seq, segment.ack
    if options.mss:
        block.mss = max(min(options.mss, conn.settings.mss), _MIN_MSS)
    block.scale_ok = options.scale is not None
    block.snd_scale = options.scale or 0
    if not block.scale_ok:
        block.rcv_scale = 0
        block.rcv_limit = min(block.rcv_limit, MAX_SCALED)
    block.sack_ok = options.sack_ok
    block.ts_ok = options.timestamps is not None
    if options.timestamps is not None:
        block.ts_recent, block.ts_recent_at = options.timestamps[0], now
        block.mss = max(block.mss - 12, _MIN_MSS - 12)


def arrive(conn: Connection, segment: Segment, now: float) -> None:
    """One segment."""
    state = conn.block.state
    if state in (State.CLOSED, State.LISTEN):
        return
    if state is State.SYN_SENT:
        _in_syn_sent(conn, segment, now)
    elif _acceptable(conn, segment, now):
        _acceptable_segment(conn, segment, now)


# -- SYN-SENT (§3.10.7.3) -----------------------------------------------------------------------


def _in_syn_sent(conn: Connection, segment: Segment, now: float) -> None:
    block, flags = conn.block, segment.flags
    acked = bool(flags & ACK)
    if acked and segment.ack != block.snd_nxt:
        if not flags & RST:
            transmit.send(conn, segment.ack, RST, now)
        return
    if flags & RST:
        if acked:
            conn.end("refused")
        return
    if not flags & SYN:
        return
    block.last_received = now
    learn_syn(conn, segment, now)
    if acked:
        block.snd_una = segment.ack
        block.rtx_at = 0.0
        conn.move(Event.SYN_ACK)
        acknowledge.measure(conn, segment, now)
        conn.established(now)
        transmit.send_ack(conn, now)
        transmit.push(conn, now)
    else:
        conn.move(Event.SYN)
        transmit.send_syn(conn, SYN | ACK, now)


# -- All other states (§3.10.7.4) ---------------------------------------------------------------


def _acceptable(conn: Connection, segment: Segment, now: float) -> bool:
    """First check: timestamps and sequence number. What fails is answered with an ACK, RSTs are not."""
    block = conn.block
    reset = bool(segment.flags & RST)
    if (
        block.state is State.SYN_RECEIVED
        and segment.flags & (SYN | ACK) == SYN
        and segment.seq == block.irs
    ):
        transmit.send_syn(conn, SYN | ACK, now)  # ours was lost
        return False
    if (
        block.state is State.SYN_RECEIVED
        and segment.flags & (SYN | ACK) == SYN | ACK
        and segment.seq == block.irs
        and segment.ack == block.snd_nxt
    ):
        conn.ack_wanted = True  # simultaneous open (figure 7): the peer may still want one
        return True
    if block.ts_ok and not reset and not _paws(conn, segment, now):
        return False
    if _in_window(conn, segment):
        return True
    if not reset:
        # A closed window must not keep ACKs out (§3.10.7.4: "special allowance").
        if segment.seq == block.rcv_nxt and segment.flags & ACK and not segment.flags & SYN:
            acknowledge.acknowledged(conn, segment, now)
        if block.state is State.TIME_WAIT and segment.flags & FIN:
            block.end_at = now + 2 * conn.settings.msl
        transmit.send_ack(conn, now)
    return False


def _paws(conn: Connection, segment: Segment, now: float) -> bool:
    """RFC 7323 §5.3: False for a segment that is to be dropped."""
    block, stamps = conn.block, segment.options.timestamps
    if stamps is None:
        # §3.2: SHOULD be dropped; a SYN again is answered by the challenge below.
        return bool(segment.flags & SYN)
    old = before(stamps[0], block.ts_recent)
    if old and now - block.ts_recent_at < _TS_RECENT_LIFE:
        transmit.send_ack(conn, now)
        return False
    end = add(segment.seq, segment.length)
    if at_most(segment.seq, block.last_ack_sent) and at_most(block.last_ack_sent, end):
        block.ts_recent, block.ts_recent_at = stamps[0], now
    return True


def _in_window(conn: Connection, segment: Segment) -> bool:
    """Table 6 of §3.10.7.4."""
    block = conn.block
    window = distance(block.rcv_nxt, block.rcv_adv)
    start = distance(block.rcv_nxt, segment.seq)
    length = segment.length
    if length == 0:
        return start == 0 if window <= 0 else 0 <= start < window
    if window <= 0:
        return False
    return start < window and start + length > 0


def _acceptable_segment(conn: Connection, segment: Segment, now: float) -> None:
    block, flags = conn.block, segment.flags
    if flags & RST:
        # RFC 5961 §3.2: only the exact number resets.
        if segment.seq == block.rcv_nxt:
            conn.end(_RESET_IN.get(block.state, "reset"))
        else:
            _challenge(conn, now)
        return
    if flags & SYN and block.state is not State.SYN_RECEIVED:
        _challenge(conn, now)  # RFC 5961 §4.2
        return
    if not flags & ACK:
        return
    block.last_received = now
    block.probes = 0
    if block.state is State.SYN_RECEIVED and not _completes_handshake(conn, segment, now):
        return
    if not _plausible(conn, segment):
        _challenge(conn, now)  # RFC 5961 §5.2
        return
    acknowledge.acknowledged(conn, segment, now)
    if block.state in (State.CLOSED, State.TIME_WAIT):
        if flags & FIN and block.state is State.TIME_WAIT:
            conn.ack_wanted = True
        return
    _text(conn, segment, now)


def _completes_handshake(conn: Connection, segment: Segment, now: float) -> bool:
    block = conn.block
    if segment.ack != block.snd_nxt:
        transmit.send(conn, segment.ack, RST, now)
        return False
    block.snd_una = segment.ack
    block.rtx_at = 0.0
    # The SYN's window was not scaled; this one is.
    block.snd_wnd = block.max_snd_wnd = segment.window << block.snd_scale
    block.snd_wl1, block.snd_wl2 = segment.seq, segment.ack
    conn.move(Event.ACK_OF_SYN)
    acknowledge.measure(conn, segment, now)
    conn.established(now)
    return True


def _plausible(conn: Connection, segment: Segment) -> bool:
    block = conn.block
    oldest = add(block.snd_una, -max(block.max_snd_wnd, 1))
    return at_most(oldest, segment.ack) and at_most(segment.ack, block.snd_nxt)


def _challenge(conn: Connection, now: float) -> None:
    block = conn.block
    if now - block.challenged_at >= 1.0:
        block.challenged_at, block.challenges = now, 0
    if block.challenges < _CHALLENGES:
        block.challenges += 1
        transmit.send_ack(conn, now)


# -- Seventh and eighth: text and FIN -----------------------------------------------------------


def _text(conn: Connection, segment: Segment, now: float) -> None:
    block, reassembly = conn.block, conn.reassembly
    if block.state not in RECEIVING:
        if segment.length:
            conn.ack_wanted = True
        return
    seq, payload = segment.seq, segment.payload
    if segment.flags & SYN:
        seq = add(seq, 1)
    if segment.flags & FIN:
        reassembly.fin = add(seq, len(payload))
    skip = max(0, distance(seq, block.rcv_nxt))
    room = distance(add(seq, skip), block.rcv_adv)
    payload = payload[skip : skip + max(room, 0)]
    if payload:
        _keep(conn, add(seq, skip), payload, now)
    elif segment.length:
        conn.ack_wanted = True
    _finish(conn, now)


def _keep(conn: Connection, seq: int, payload: memoryview, now: float) -> None:
    block, reassembly = conn.block, conn.reassembly
    if seq != block.rcv_nxt:
        reassembly.insert(seq, bytes(payload))
        transmit.send_ack(conn, now)
        return
    _deliver(conn, payload)
    if reassembly:
        for data in reassembly.take(block.rcv_nxt):
            _deliver(conn, data)
        transmit.send_ack(conn, now)  # the gap is filled: the sender waits for this
    else:
        conn.ack_wanted = True


def _deliver(conn: Connection, data: bytes | memoryview) -> None:
    block = conn.block
    block.rcv_nxt = (block.rcv_nxt + len(data)) & MASK
    block.held += len(data)
    conn.outputs.append(Data(data))


def _finish(conn: Connection, now: float) -> None:
    """The peer's FIN, once everything before it is here."""
    block = conn.block
    if conn.reassembly.fin != block.rcv_nxt:
        return
    block.rcv_nxt = add(block.rcv_nxt, 1)
    block.rcv_adv = block.rcv_nxt if before(block.rcv_adv, block.rcv_nxt) else block.rcv_adv
    conn.move(Event.FIN)
    conn.outputs.append(PeerClosed())
    if block.state is State.TIME_WAIT:
        transmit.enter_time_wait(conn, now)
    transmit.send_ack(conn, now)
