"""What goes to the peer and when: new data, retransmissions, ACKs, probes; and the timers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crumble_netd.header.tcp import ACK, FIN, NO_OPTIONS, PSH, RST, SYN, Options
from crumble_netd.tcp import congestion, rtt
from crumble_netd.tcp.control_block import MAX_SCALED
from crumble_netd.tcp.outputs import Ended, Send
from crumble_netd.tcp.sequence import MASK, add, before, distance
from crumble_netd.tcp.state import RECEIVING, SENDING, SYNCHRONIZED, Event, State

if TYPE_CHECKING:
    from crumble_netd.tcp.connection import Connection


def timestamp(conn: Connection, now: float) -> int:
    """TSval: milliseconds from an offset of the connection's own (RFC 7323 §5.4, §7.1)."""
    return (int(now * 1000) + conn.block.ts_offset) & MASK


# -- Segments -----------------------------------------------------------------------------------


def send_syn(conn: Connection, flags: int, now: float) -> None:
    """Our SYN, for the first time or again."""
    block = conn.block
    ours = not flags & ACK  # then all is offered; else what the peer offered
    options = Options(
        mss=conn.settings.mss,
        scale=conn.settings.rcv_scale if ours or block.scale_ok else None,
        sack_ok=ours or block.sack_ok,
        timestamps=(timestamp(conn, now), block.ts_recent) if ours or block.ts_ok else None,
    )
    window = min(block.rcv_limit, MAX_SCALED)  # §2.2 of RFC 7323: not scaled in a SYN
    if not ours:
        block.rcv_adv = add(block.rcv_nxt, window)
    ack = 0 if ours else block.rcv_nxt
    conn.outputs.append(Send(block.iss, ack, flags, window, options, []))
    block.snd_nxt = add(block.iss, 1)
    if block.tries == 0:
        block.timed_seq, block.timed_at = block.snd_nxt, now
    block.last_sent = now
    if not block.rtx_at:
        block.rtx_at = now + block.rto


def send(
    conn: Connection, seq: int, flags: int, now: float, payload: list[memoryview] | None = None
) -> None:
    """A segment in a synchronized state (or a RST)."""
    block = conn.block
    data = payload or []
    size = sum(map(len, data))
    window = advertise(conn)
    if flags & RST:
        conn.outputs.append(
            Send(seq, block.rcv_nxt if flags & ACK else 0, flags, 0, NO_OPTIONS, [])
        )
        return
    options = NO_OPTIONS
    if block.ts_ok or conn.reassembly:
        stamps = (timestamp(conn, now), block.ts_recent) if block.ts_ok else None
        blocks = conn.reassembly.blocks() if block.sack_ok else ()
        options = Options(sack=blocks, timestamps=stamps)
    mss = block.mss if size > block.mss else 0
    conn.outputs.append(Send(seq, block.rcv_nxt, flags, window, options, data, mss))
    conn.ack_wanted = False
    block.last_ack_sent = block.rcv_nxt
    block.last_sent = now


def send_ack(conn: Connection, now: float) -> None:
    """An ACK and nothing else."""
    send(conn, conn.block.snd_nxt, ACK, now)


def advertise(conn: Connection) -> int:
    """The window field; moves the right edge, never back (RFC 9293 §3.8.6.2.2 against silly windows)."""
    block = conn.block
    free = max(0, block.rcv_limit - block.held)
    edge = add(block.rcv_nxt, free)
    grown = distance(block.rcv_adv, edge)
    if grown >= min(block.rcv_limit // 2, block.rcv_mss) or not conn_receives(conn):
        block.rcv_adv = edge if grown > 0 else block.rcv_adv
    window = max(0, distance(block.rcv_nxt, block.rcv_adv))
    if window >> block.rcv_scale > MAX_SCALED:
        window = MAX_SCALED << block.rcv_scale
    # Rounded down on the wire, so that nobody sends what would not be taken.
    block.rcv_adv = add(block.rcv_nxt, window)
    return window >> block.rcv_scale


def conn_receives(conn: Connection) -> bool:
    """The peer may still send data."""
    return conn.block.state in RECEIVING or conn.block.state is State.SYN_RECEIVED


def consumed(conn: Connection, count: int, now: float) -> None:
    """The application took bytes: lets the window grow, and tells the peer when it is worth it."""
    block = conn.block
    block.held -= count
    block.taken += count
    if block.taken >= block.rcv_limit:
        block.taken = 0
        limit = min(conn.settings.rcv_max, 1 << 30 if block.scale_ok else MAX_SCALED)
        step = min(block.rcv_limit, limit - block.rcv_limit)
        if step > 0 and conn.grow(step):
            block.rcv_limit += step
    if not conn_receives(conn):
        return
    edge = add(block.rcv_nxt, max(0, block.rcv_limit - block.held))
    gain = distance(block.rcv_adv, edge)
    open_now = distance(block.rcv_nxt, block.rcv_adv)
    worth = min(block.rcv_limit // 2, block.rcv_mss)
    if gain >= max(2 * block.rcv_mss, block.rcv_limit // 4) or (open_now < worth <= gain):
        send_ack(conn, now)


# -- Data ---------------------------------------------------------------------------------------


def pipe(conn: Connection) -> int:
    """Bytes taken to be on the way (RFC 6675 §4)."""
    block, board = conn.block, conn.scoreboard
    flight = distance(block.snd_una, block.snd_nxt)
    if not block.recovering and not board.ranges:
        return flight
    size = flight - board.sacked
    if block.recovering:
        size -= board.unsacked(block.high_rxt, block.lost_mark)
        if not block.sack_ok:
            size -= block.dup_acks * block.mss
    return max(size, 0)


def push(conn: Connection, now: float) -> None:
    """Sends what windows allow: what is lost first, then new data, then the FIN."""
    block = conn.block
    if block.state not in SENDING or conn.paused:
        return
    _after_idle(conn, now)
    if block.recovering:
        _retransmit(conn, now)
    _new_data(conn, now)
    if block.fin_queued and not block.fin_sent and block.snd_nxt == conn.buffer.end:
        _emit(conn, block.snd_nxt, 0, now)
    _watch_window(conn, now)


def _after_idle(conn: Connection, now: float) -> None:
    """RFC 5681 §4.1."""
    block = conn.block
    if block.snd_una == block.snd_nxt and block.last_sent and now - block.last_sent > block.rto:
        block.cwnd = min(block.cwnd, congestion.initial_window(block.mss))


def _limit(conn: Connection) -> int:
    """The most payload of one Send."""
    return max(conn.block.mss, conn.settings.max_segment)


def _new_data(conn: Connection, now: float) -> None:
    block, mss = conn.block, conn.block.mss
    budget = block.cwnd - pipe(conn)
    while True:
        waiting = distance(block.snd_nxt, conn.buffer.end)
        window = distance(block.snd_nxt, add(block.snd_una, block.snd_wnd))
        count = min(waiting, window, _limit(conn))
        if count <= 0 or block.fin_sent:
            return
        if count > budget:
            if budget < mss and block.snd_una != block.snd_nxt:
                return
            count = min(count, max(budget, mss))
        if count > mss:
            count -= count % mss if count < waiting else 0
        if count < mss and count < waiting and count < block.max_snd_wnd // 2:
            return  # a silly window: wait for a better one (RFC 9293 §3.8.6.2.1)
        _emit(conn, block.snd_nxt, count, now)
        budget -= count


def _emit(conn: Connection, seq: int, count: int, now: float) -> None:
    """Sends [seq, seq + count), and the FIN when it follows; the first time or again."""
    block, buffer = conn.block, conn.buffer
    end = add(seq, count)
    last = end == buffer.end
    flags = ACK | (PSH if count and last else 0)
    if last and block.fin_queued:
        flags |= FIN
        end = add(end, 1)
        if not block.fin_sent:
            block.fin_sent = True
            conn.move(Event.SENT_FIN)
    fresh = before(block.snd_nxt, end)
    send(conn, seq, flags, now, buffer.peek(seq, count) if count else None)
    if fresh:
        block.snd_nxt = end
        if not block.ts_ok and not block.timed_at:
            block.timed_seq, block.timed_at = end, now
    else:
        block.timed_at = 0.0  # Karn
    if not block.rtx_at:
        block.rtx_at = now + block.rto
    block.persist_at = 0.0


def _retransmit(conn: Connection, now: float) -> None:
    """Fills holes below the lost mark as the window allows (RFC 6675 §5 (C))."""
    block = conn.block
    budget = block.cwnd - pipe(conn)
    while budget >= block.mss or pipe(conn) == 0:
        hole = conn.scoreboard.hole(block.high_rxt, block.lost_mark)
        if hole is None:
            return
        budget -= _again(conn, *hole, now)


def retransmit_first(conn: Connection, now: float) -> None:
    """Fast retransmit: the first segment, whatever the window says."""
    block = conn.block
    if conn.paused:
        return
    hole = conn.scoreboard.hole(block.snd_una, block.lost_mark)
    if hole is not None:
        _again(conn, *hole, now)


def _again(conn: Connection, start: int, size: int, now: float) -> int:
    block = conn.block
    size = min(size, _limit(conn))
    _emit(conn, start, min(size, max(0, distance(start, conn.buffer.end))), now)
    block.high_rxt = add(start, size)
    return max(size, 1)


def lose_all(conn: Connection) -> None:
    """Everything on the way is taken for lost."""
    block = conn.block
    block.lost_mark, block.high_rxt = block.snd_nxt, block.snd_una
    block.recovery_point = block.snd_nxt
    block.recovering = block.snd_una != block.snd_nxt
    block.timed_at = 0.0


# -- Timers -------------------------------------------------------------------------------------


def _watch_window(conn: Connection, now: float) -> None:
    """Something is to be sent, nothing is on the way, and the window is why: probes (§3.8.6.1)."""
    block = conn.block
    waiting = distance(block.snd_nxt, conn.buffer.end) > 0
    if waiting and block.snd_una == block.snd_nxt and not block.fin_sent:
        if not block.persist_at:
            block.persist_at = now + block.rto
    else:
        block.persist_at = 0.0


def tick(conn: Connection, now: float) -> None:
    """Serves the timers that are due."""
    block = conn.block
    if block.end_at and now >= block.end_at:
        _end_of_wait(conn, now)
    if block.rtx_at and now >= block.rtx_at:
        _retransmission_timeout(conn, now)
    if block.persist_at and now >= block.persist_at:
        _probe_window(conn, now)
    if block.keepalive_at and now >= block.keepalive_at:
        _keep_alive(conn, now)


def _end_of_wait(conn: Connection, now: float) -> None:
    if conn.block.state is State.TIME_WAIT:
        conn.move(Event.EXPIRED)
        conn.outputs.append(Ended("closed"))
    else:
        conn.abort(now)


def _retransmission_timeout(conn: Connection, now: float) -> None:
    """RFC 6298 §5.4 to §5.6."""
    block = conn.block
    limits = conn.settings
    limit = limits.data_tries if block.state in SYNCHRONIZED else limits.syn_tries
    # A peer that answers, with a window of zero for all we know, is alive.
    if block.tries >= limit and now - block.last_received > 2 * block.rto:
        if block.state in SYNCHRONIZED:
            send(conn, block.snd_nxt, RST | ACK, now)
        conn.end("timeout")
        return
    flight = distance(block.snd_una, block.snd_nxt)
    if block.state in SYNCHRONIZED:
        congestion.timed_out(conn.control, block, flight, now)
    block.tries += 1
    rtt.back_off(block)
    block.rtx_at = now + block.rto
    block.timed_at = 0.0
    if block.state is State.SYN_SENT:
        send_syn(conn, SYN, now)
    elif block.state is State.SYN_RECEIVED:
        send_syn(conn, SYN | ACK, now)
    else:
        conn.scoreboard.clear()
        lose_all(conn)
        _again(conn, block.snd_una, min(flight, block.mss), now)


def _probe_window(conn: Connection, now: float) -> None:
    block = conn.block
    block.persist_at = 0.0
    window = distance(block.snd_nxt, add(block.snd_una, block.snd_wnd))
    waiting = distance(block.snd_nxt, conn.buffer.end)
    if window > 0 and waiting > 0:
        _emit(conn, block.snd_nxt, min(window, waiting, block.mss), now)
        return
    if block.probes >= conn.settings.data_tries:
        send(conn, block.snd_nxt, RST | ACK, now)
        conn.end("timeout")
        return
    send(conn, add(block.snd_una, -1), ACK, now)
    block.probes += 1
    block.persist_at = now + min(block.rto * (1 << min(block.probes, 8)), rtt.MAX_RTO)


def _keep_alive(conn: Connection, now: float) -> None:
    """RFC 9293 §3.8.4: a segment that the peer must answer."""
    block, settings = conn.block, conn.settings
    if block.snd_una != block.snd_nxt or block.persist_at:
        block.keepalive_at = now + settings.keepalive_idle
        return
    if block.probes >= settings.keepalive_probes:
        send(conn, block.snd_nxt, RST | ACK, now)
        conn.end("timeout")
        return
    block.probes += 1
    block.keepalive_at = now + settings.keepalive_interval
    send(conn, add(block.snd_una, -1), ACK, now)


def enter_time_wait(conn: Connection, now: float) -> None:
    """Waits out what may still be on the way (§3.6.1)."""
    block = conn.block
    block.rtx_at = block.persist_at = block.keepalive_at = 0.0
    block.end_at = now + 2 * conn.settings.msl
