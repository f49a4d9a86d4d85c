"""What an ACK means for what was sent: RFC 9293 §3.10.7.4 fifth check, RFC 5681, RFC 6675, RFC 6298."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crumble_netd.header.tcp import FIN, SYN, Segment
from crumble_netd.tcp import rtt, transmit
from crumble_netd.tcp.outputs import Ended, Freed
from crumble_netd.tcp.scoreboard import DUP_THRESH
from crumble_netd.tcp.sequence import MASK, add, at_most, before, distance, latest
from crumble_netd.tcp.state import Event, State

if TYPE_CHECKING:
    from crumble_netd.tcp.connection import Connection


def acknowledged(conn: Connection, segment: Segment, now: float) -> None:
    """A plausible ACK: frees, measures, updates the window, recovers, sends what became possible."""
    block = conn.block
    fresh = distance(block.snd_una, segment.ack)
    if fresh > distance(block.snd_una, block.snd_nxt):
        return
    window = segment.window << block.snd_scale
    flight = distance(block.snd_una, block.snd_nxt)
    duplicate = (
        fresh == 0
        and flight > 0
        and not segment.payload
        and not segment.flags & (SYN | FIN)
        and window == block.snd_wnd
    )
    if fresh > 0:
        _advance(conn, segment, now)
    news = False
    if block.sack_ok and (segment.options.sack or conn.scoreboard.ranges):
        news = conn.scoreboard.update(block.snd_una, block.snd_nxt, segment.options.sack)
    _update_window(conn, segment, window, now)
    if block.state is State.CLOSED:
        return
    if fresh > 0:
        _progress(conn, fresh, flight, now)
    elif news or (duplicate and not block.sack_ok):
        block.dup_acks += 1
    _detect_loss(conn, now)
    transmit.push(conn, now)


def measure(conn: Connection, segment: Segment, now: float) -> None:
    """A round-trip measurement, if this ACK is one (RFC 7323 §4.1; Karn's rule without timestamps)."""
    block, stamps = conn.block, segment.options.timestamps
    if block.ts_ok and stamps is not None and stamps[1]:
        elapsed = (transmit.timestamp(conn, now) - stamps[1]) & MASK
        if elapsed < 1 << 20:
            rtt.sample(block, elapsed / 1000)
    elif block.timed_at and at_most(block.timed_seq, segment.ack):
        rtt.sample(block, now - block.timed_at)
        block.timed_at = 0.0


def _advance(conn: Connection, segment: Segment, now: float) -> None:
    """snd_una moves."""
    block = conn.block
    block.snd_una = segment.ack
    measure(conn, segment, now)
    block.tries = 0
    freed = conn.buffer.discard(segment.ack)
    if freed:
        conn.outputs.append(Freed(freed))
    block.lost_mark = latest(block.lost_mark, block.snd_una)
    block.high_rxt = latest(block.high_rxt, block.snd_una)
    block.rtx_at = now + block.rto if block.snd_una != block.snd_nxt else 0.0
    if block.fin_sent and block.snd_una == block.snd_nxt:
        conn.move(Event.ACK_OF_FIN)
        if block.state is State.TIME_WAIT:
            transmit.enter_time_wait(conn, now)
        elif block.state is State.CLOSED:
            conn.outputs.append(Ended("closed"))


def _update_window(conn: Connection, segment: Segment, window: int, now: float) -> None:
    block = conn.block
    newer = before(block.snd_wl1, segment.seq) or (
        block.snd_wl1 == segment.seq and at_most(block.snd_wl2, segment.ack)
    )
    if newer:
        if window > block.snd_wnd and block.persist_at:
            block.persist_at, block.probes = 0.0, 0
        block.snd_wnd = window
        block.max_snd_wnd = max(block.max_snd_wnd, window)
        block.snd_wl1, block.snd_wl2 = segment.seq, segment.ack
    if block.keepalive_at:
        block.keepalive_at = now + conn.settings.keepalive_idle


def _progress(conn: Connection, fresh: int, flight: int, now: float) -> None:
    """New data was acknowledged: grows the window, or goes on with recovery."""
    block = conn.block
    if not block.recovering:
        block.dup_acks = 0
        limited = (
            block.cwnd < 2 * flight
            if block.cwnd < block.ssthresh
            else block.cwnd <= flight + (1 << 16)
        )
        if limited:
            conn.control.acked(block, fresh, now)
        return
    if at_most(block.recovery_point, block.snd_una):
        block.recovering = False
        block.dup_acks = 0
        block.lost_mark = block.high_rxt = block.snd_una
        return
    if block.cwnd < block.ssthresh:  # after a time-out: slow start on
        conn.control.acked(block, fresh, now)
    if not block.sack_ok and before(block.lost_mark, add(block.snd_una, 1)):
        # NewReno's partial ACK (RFC 6582 §3.2): the next one is lost too.
        block.dup_acks = 0
        block.lost_mark = add(block.snd_una, min(block.mss, distance(block.snd_una, block.snd_nxt)))
        block.high_rxt = block.snd_una


def _detect_loss(conn: Connection, now: float) -> None:
    block = conn.block
    if block.snd_una == block.snd_nxt:
        return
    edge = block.snd_una
    if block.sack_ok:
        edge = conn.scoreboard.lost_edge(block.snd_una, block.mss)
        if before(block.lost_mark, edge):
            block.lost_mark = edge
    if block.recovering:
        return
    if edge != block.snd_una or block.dup_acks >= DUP_THRESH:
        _enter_recovery(conn, now)


def _enter_recovery(conn: Connection, now: float) -> None:
    block = conn.block
    flight = distance(block.snd_una, block.snd_nxt)
    block.recovering = True
    block.recovery_point = block.snd_nxt
    block.high_rxt = block.snd_una
    block.timed_at = 0.0
    conn.control.lost(block, flight, now)
    first = add(block.snd_una, min(block.mss, flight))
    block.lost_mark = latest(block.lost_mark, first)
    transmit.retransmit_first(conn, now)
