"""Steady TCP flows between a driver's rings and a socket: what is served, what is left, and what is written down first."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_native import flow as native
from crumble_native.flow import TIMES, WORDS
from crumble_netd.header import ethernet, tcp, virtio_net
from framework.flow_world import GUEST, ISS, MSS, ROOM, SEQ, FlowWorld


@pytest.fixture
def world() -> Iterator[FlowWorld]:
    made = FlowWorld()
    yield made
    made.close()


# -- From the guest.


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("stamps", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_bytes_in_order_are_written_and_acknowledged_once(
    six: bool, stamps: bool, left: bool
) -> None:
    world = FlowWorld(six=six, stamps=stamps)
    assert world.send(
        world.frame(b"one", left=left), world.frame(b"two", SEQ + 3, left=left),
        world.frame(b"three", SEQ + 6, left=left, flags=tcp.ACK | tcp.PSH),
    ) == (3, False)  # fmt: skip
    assert world.received() == b"onetwothree"
    (segment,) = world.segments()
    assert (segment.seq, segment.ack, segment.flags) == (ISS, SEQ + 11, tcp.ACK)
    assert (segment.options.timestamps is not None) == stamps
    assert world.noted() == {"rcv_nxt": SEQ + 11, "rcv_adv": SEQ + ROOM, "snd_una": ISS}
    assert len(world.tx.collect()) == 3
    moved = world.flows.recall(7)
    assert (moved.sent, moved.ack_due) == (11, False)
    assert moved.numbers[len(TIMES) + WORDS.index("rcv_nxt")] == SEQ + 11
    world.close()


LEFT: dict[str, dict[str, Any]] = {
    "a gap": {"seq": SEQ + 1},
    "old": {"seq": SEQ - 1},
    "fin": {"flags": tcp.ACK | tcp.FIN},
    "reset": {"flags": tcp.RST},
    "no ack": {"flags": tcp.PSH},
    "acknowledges the future": {"ack": ISS + 1},
    "acknowledges the past": {"ack": ISS - 1},
    "an old timestamp": {"value": 9},
    "no timestamp": {"options": b""},
    "sack": {"options": tcp.build_options(tcp.Options(sack=((1, 2),), timestamps=(11, 0)))},
    "wrong checksum": {"left": False, "spoil": True},
    "another's": {"mac": GUEST},
}


@pytest.mark.parametrize("what", LEFT.values(), ids=LEFT.keys())
def test_what_is_special_is_left_in_the_ring_with_what_follows(
    world: FlowWorld, what: dict[str, Any]
) -> None:
    special = world.frame(b"two", **{"seq": SEQ + 3, **what})
    if "seq" in what:
        special = world.frame(b"two", **what)
        assert world.send(special, world.frame(b"one")) == (0, True)
        return
    assert world.send(world.frame(b"one"), special, world.frame(b"x", SEQ + 6)) == (1, True)
    assert world.received() == b"one"
    assert [s.ack for s in world.segments()] == [SEQ + 3]
    chain = world.tx_queue.pop()
    assert chain is not None
    assert chain.read() == special


def test_more_than_the_window_is_left(world: FlowWorld) -> None:
    sizes = [30_000, 30_000, 6_000]
    at, chains = SEQ, []
    for size in sizes:
        chains.append(world.frame(bytes(size), at))
        at += size
    assert world.send(*chains) == (2, True)
    assert len(world.received()) == 60_000


def test_what_the_host_has_no_room_for_is_left_and_comes_again(world: FlowWorld) -> None:
    while True:
        try:
            world.ours.send(bytes(1 << 16))
        except BlockingIOError:
            break
    assert world.send(world.frame(b"one"), world.frame(b"two", SEQ + 3)) == (0, True)
    assert world.segments() == []
    world.received()
    assert tuple(world.flows.burst(world.tx_queue, world.rx_queue, 50.0)) == (2, False)
    assert world.received() == b"onetwo"


def test_half_of_a_segment_is_not_acknowledged_in_whole() -> None:
    world = FlowWorld()
    world.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    chains = [world.frame(bytes([i]) * 6000, SEQ + i * 6000) for i in range(9)]
    served, left = world.send(*chains)
    got = world.received()
    assert left
    assert served == len(got) // 6000
    assert [s.ack for s in world.segments()] == ([SEQ + len(got)] if got else [])
    assert world.noted()["rcv_nxt"] == SEQ + len(got)
    world.close()


def test_another_flow_s_bytes_do_not_mix(world: FlowWorld) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        key = world.key[:-2] + struct.pack("!H", 81)
        first = world.ours
        world.ours = ours
        assert world.lend(8, key=key)
        world.ours = first
        other = bytearray(world.frame(b"B", SEQ))
        at = virtio_net.SIZE + ethernet.SIZE + 20 + 2
        other[at : at + 2] = struct.pack("!H", 81)
        assert world.send(world.frame(b"a"), bytes(other), world.frame(b"c", SEQ + 1)) == (3, False)
        assert world.received() == b"ac"
        assert theirs.recv(10) == b"B"


def test_one_cannot_be_lent_twice(world: FlowWorld) -> None:
    assert not world.lend(7)
    assert not world.lend(8)
    world.flows.recall(7)
    assert world.flows.live == 0
    assert world.lend(8)
    assert not world.lend(9, key=world.key[:-1] + b"\0", snd_nxt=ISS + 5), (
        "more on its way than there is"
    )


# -- To the guest.


@pytest.mark.parametrize("fill", [False, True])
def test_bytes_from_the_host_go_as_far_as_windows_do(fill: bool) -> None:
    world = FlowWorld(fill=fill)
    data = bytes(range(256)) * 80
    world.theirs.send(data)
    world.read()
    segments = world.segments()
    assert b"".join(bytes(s.payload) for s in segments) == data[: 10 * MSS]
    assert [s.seq for s in segments] == [(ISS + i * MSS) & 0xFFFFFFFF for i in range(10)]
    assert world.flows.events() == [(7, native.TIMER, 0)]
    assert world.flows.deadline(7) == 51.0
    world.send(world.frame(ack=ISS + 10 * MSS))
    segments = world.segments()
    assert b"".join(bytes(s.payload) for s in segments) == data[10 * MSS :]
    assert segments[-1].flags == tcp.ACK | tcp.PSH
    assert world.noted()["snd_una"] == (ISS + 10 * MSS) & 0xFFFFFFFF
    moved = world.flows.recall(7)
    assert (moved.received, moved.size, moved.credit) == (20480, 10480, ROOM - 10480)
    world.close()


def test_without_buffers_it_waits_and_loses_nothing() -> None:
    world = FlowWorld(buffers=3)
    world.theirs.send(bytes(range(250)) * 20)
    world.read()
    assert world.flows.blocked
    first = world.segments()
    assert len(first) == 3
    world.send(world.frame(b"x"))  # its ACK waits, too
    assert world.segments() == []
    world.give(10)
    world.flows.unblock(world.rx_queue, 50.0)
    assert not world.flows.blocked
    rest = world.segments()
    assert b"".join(bytes(s.payload) for s in first + rest) == bytes(range(250)) * 20
    assert rest[-1].ack == SEQ + 1
    world.close()


def test_credit_ends_and_comes_back_with_acknowledgements() -> None:
    world = FlowWorld(credit=3000)
    world.theirs.send(bytes(5000))
    world.read()
    assert world.flows.events() == [(7, native.TIMER | native.WATCH, 0)]
    assert not world.flows.watch(7)
    assert sum(len(s.payload) for s in world.segments()) == 3000
    world.send(world.frame(ack=ISS + 3000))  # reads on by itself
    assert sum(len(s.payload) for s in world.segments()) == 2000
    assert world.flows.events()[0][1] & native.WATCH
    assert world.flows.watch(7)
    world.close()


def test_a_window_that_shrinks_is_kept_to(world: FlowWorld) -> None:
    world.theirs.send(bytes(4000))
    world.read()
    assert len(world.segments()) == 4
    world.send(world.frame(ack=ISS + 1000, window=500))  # 3000 are on their way
    world.theirs.send(bytes(100))
    world.read()
    assert world.segments() == []
    world.send(world.frame(ack=ISS + 4000, window=500))
    assert [len(s.payload) for s in world.segments()] == [100]


def test_the_socket_s_end_and_errors_are_somebody_else_s(world: FlowWorld) -> None:
    world.theirs.close()
    world.read()
    assert world.flows.events() == [(7, native.RECALL, 0)]
    assert world.send(world.frame(b"x")) == (0, True)


def test_a_broken_ring_is_told() -> None:
    world = FlowWorld(buffers=0)
    world.rx.set_available(0, 300)
    world.rx.set_avail_idx(1)
    world.send(world.frame(b"x"))
    with pytest.raises(Exception, match="head index"):
        world.flows.check(world.rx_queue)
    world.close()


# -- Hostile.


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_frame_does_harm(data: st.DataObject) -> None:
    """Whatever a guest sends: what the host gets is the stream's next bytes, and no more is acknowledged."""
    world = FlowWorld(six=data.draw(st.booleans()), stamps=data.draw(st.booleans()))
    stream, sent = bytes(range(256)) * 8, 0
    for _ in range(data.draw(st.integers(1, 12))):
        size = data.draw(st.integers(0, 300))
        chain = bytearray(
            world.frame(stream[sent : sent + size], SEQ + sent, left=data.draw(st.booleans()))
        )
        for _ in range(data.draw(st.sampled_from([0, 0, 1, 2]))):
            chain[data.draw(st.integers(0, min(len(chain), 90) - 1))] = data.draw(
                st.integers(0, 255)
            )
        cut = data.draw(st.sampled_from([len(chain)] * 4 + [data.draw(st.integers(1, len(chain)))]))
        parts = [bytes(chain[:cut])]
        if cut > 60 and data.draw(st.booleans()):
            at = data.draw(st.integers(1, cut - 1))
            parts = [bytes(chain[:at]), bytes(chain[at:cut])]
        world.tx.submit(parts, [])
        _, left = world.flows.burst(world.tx_queue, world.rx_queue, 50.0)
        if left:
            taken = world.tx_queue.pop()
            assert taken is not None
            world.tx_queue.push(taken, 0)
        sent = (world.noted()["rcv_nxt"] - SEQ) if any(world.notes[:16]) else 0
    got = world.received()
    assert len(got) == world.flows.recall(7).sent
    assert all(SEQ <= s.ack <= SEQ + len(got) for s in world.segments())
    world.close()
