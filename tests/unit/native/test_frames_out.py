"""Frames to a driver: large segments cut exactly as the Python beside it says, into whatever buffers there are."""

from __future__ import annotations

import mmap
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_native.frames import TOO_LARGE, Outgoing
from crumble_native.vring import inflight_size
from crumble_netd.commands import Frame
from crumble_netd.header import tcp, virtio_net
from crumble_netd.header.virtio_net import NEEDS_CSUM, NOTHING, Offload
from crumble_netd.policy import Policy
from crumble_netd.port import Port
from crumble_netd.segment import fit
from framework.frames import frame, ring, stamps
from framework.netd_guest import parse
from framework.virtqueue_driver import VirtqueueDriver


def received(driver: VirtqueueDriver) -> list[tuple[bytes, bytes]]:
    """virtio_net_hdr and frame of each that came."""
    found, parts, missing = [], b"", 0
    for _, _, data in driver.collect():
        missing = missing or struct.unpack_from("<H", data, 10)[0]
        parts += data
        missing -= 1
        if not missing:
            found.append((parts[:12], parts[12:]))
            parts = b""
    assert not missing
    return found


@settings(max_examples=200, deadline=None)
@given(
    six=st.booleans(), size=st.integers(0, 9000), mss=st.integers(32, 3000),
    flags=st.sampled_from([16, 24, 17, 0x98, 0x99]), buffers=st.sampled_from([70, 200, 4096]),
    at=st.integers(0, 9000), room=st.integers(1, 100),
)  # fmt: skip
def test_large_segments_are_cut_as_in_python(
    six: bool, size: int, mss: int, flags: int, buffers: int, at: int, room: int
) -> None:
    """However few buffers there are at a time, and wherever its pieces are cut: the reference's frames."""
    whole = frame(
        bytes(i & 0xFF for i in range(size)), 0xFFFFFF00, six=six, flags=flags, left=True,
        options=stamps(1),
    )  # fmt: skip
    start = 54 if six else 34
    kind = virtio_net.GSO_TCPV6 if six else virtio_net.GSO_TCPV4
    offload = Offload(NEEDS_CSUM, kind, start + 32, mss, start, 16)
    expected = fit(memoryview(whole), offload, Port(1, b"", b"", 1500, Policy()))
    driver, queue = ring()
    outgoing, done, result = Outgoing(merge=True), 0, 0
    parts = [whole[: start + 32], whole[start + 32 :][:at], whole[start + 32 :][at:]]
    found = []
    while not result:
        for _ in range(room):
            driver.submit([], [buffers])
        result, done = outgoing.put(queue, parts, offload, cut=True, fill=True, done=done)
        found += driver.collect()
        assert queue.in_flight == 0
        room = 100
    driver.collect = lambda: found  # type: ignore[method-assign]  # they are collected
    got = received(driver)
    assert [data for _, data in got] == [f.head + b"".join(f.payload) for f in expected]
    assert all(header[:10] == bytes(10) for header, _ in got)


@pytest.mark.parametrize("six", [False, True])
def test_a_segment_larger_than_a_packet_is_cut_into_what_the_driver_takes(six: bool) -> None:
    size, mss, start = 200_000, 1448, 54 if six else 34
    data = bytes(i % 251 for i in range(size))
    whole = frame(data, six=six, flags=24, left=True, options=stamps(1))
    kind = virtio_net.GSO_TCPV6 if six else virtio_net.GSO_TCPV4
    offload = Offload(NEEDS_CSUM, kind, start + 32, mss, start, 16)
    driver, queue = ring()
    for _ in range(200):
        driver.submit([], [2000])
    parts = [whole[: start + 32], memoryview(whole)[start + 32 : 70_000], whole[70_000:]]
    assert Outgoing(merge=True).put(queue, parts, offload, cut=False, fill=False)[0] == 1
    got, seq = b"", 0
    for header, raw in received(driver):
        found = Offload(*struct.unpack_from("<BBHHHH", header))
        packet = parse(Frame(raw, [], found))  # verifies lengths, and the sums that were left
        segment = packet.message
        assert isinstance(segment, tcp.Segment)
        assert segment.seq == seq
        assert found == offload
        got, seq = got + bytes(segment.payload), seq + len(segment.payload)
        assert bool(segment.flags & tcp.PSH) == (seq == size)
    assert got == data
    expected = fit(memoryview(whole), offload, Port(1, b"", b"", 1500, Policy()))
    small, queue = ring()
    for _ in range(200):
        small.submit([], [2000])
    assert Outgoing(merge=False).put(queue, parts, offload, cut=True, fill=True)[0] == 1
    assert [raw for _, raw in received(small)] == [f.head + b"".join(f.payload) for f in expected]


@pytest.mark.parametrize("six", [False, True])
def test_no_packet_is_longer_than_its_header_can_say(six: bool) -> None:
    """An IPv4 header counts itself, an IPv6 header does not: what is one packet there may be two here."""
    start, mss = 54 if six else 34, 1448
    kind = virtio_net.GSO_TCPV6 if six else virtio_net.GSO_TCPV4
    offload = Offload(NEEDS_CSUM, kind, start + 32, mss, start, 16)
    for size in (65_483, 65_484, 65_503, 65_504, 65_523, 65_524):
        data = bytes(i % 251 for i in range(size))
        whole = frame(data, six=six, flags=24, left=True, options=stamps(1))
        driver, queue = ring()
        driver.submit([], [66_000])
        driver.submit([], [66_000])
        outgoing = Outgoing(merge=True)
        assert outgoing.put(queue, [whole], offload, cut=False, fill=False)[0] == 1
        got = b""
        for header, raw in received(driver):
            found = Offload(*struct.unpack_from("<BBHHHH", header))
            segment = parse(Frame(raw, [], found)).message
            assert isinstance(segment, tcp.Segment)
            got += bytes(segment.payload)
        assert got == data


def test_a_checksum_is_filled_in() -> None:
    driver, queue = ring()
    driver.submit([], [2000])
    offload = Offload(NEEDS_CSUM, csum_start=34, csum_offset=16)
    parts = [frame(b"data", left=True)]
    assert Outgoing(merge=False).put(queue, parts, offload, cut=False, fill=True) == (1, 0)
    assert received(driver) == [(virtio_net.build(NOTHING, 1), frame(b"data"))]


@pytest.mark.parametrize("event_idx", [False, True])
def test_without_room_nothing_is_taken_and_more_is_asked_for(event_idx: bool) -> None:
    driver, queue = ring(event_idx=event_idx)
    region = mmap.mmap(-1, 8192)
    assert inflight_size(256) <= len(region)
    queue.track(region)
    outgoing = Outgoing(merge=True)
    for _ in range(3):
        driver.submit([], [1000])
    driver.kick_wanted()
    payload = bytes(3500)
    assert outgoing.put(queue, [payload], NOTHING, cut=False, fill=False)[0] == 0
    assert (queue.in_flight, queue.last_avail, driver.collect()) == (0, 0, [])
    assert not any(region[16 + 16 * head] for head in range(256))
    assert not queue.want_more()
    driver.submit([], [1000])
    assert driver.kick_wanted()
    assert queue.want_more()
    assert outgoing.put(queue, [payload], NOTHING, cut=False, fill=False)[0] == 1
    assert received(driver) == [(virtio_net.build(NOTHING, 4), payload)]


def test_what_does_not_fit_is_cut_off_and_said() -> None:
    driver, queue = ring()
    driver.submit([], [100])
    put = Outgoing(merge=False).put
    assert put(queue, [bytes(200)], NOTHING, cut=False, fill=False)[0] == TOO_LARGE
    assert [len(data) for _, _, data in driver.collect()] == [100]
    for header in (
        Offload(NEEDS_CSUM, 1, 200, 100, 34, 16),
        Offload(NEEDS_CSUM, 1, 30, 100, 34, 16),
        Offload(NEEDS_CSUM, 1, 54, 0, 34, 16),
        Offload(NEEDS_CSUM, 1, 54, 100, 10, 16),
    ):
        assert put(queue, [frame(b"x")], header, cut=True, fill=True)[0] == TOO_LARGE
    beyond = Offload(NEEDS_CSUM, csum_start=34, csum_offset=40_000)
    assert put(queue, [frame(b"x")], beyond, cut=False, fill=True)[0] == TOO_LARGE
    assert driver.collect() == []


def test_a_frame_of_many_pieces_is_one() -> None:
    driver, queue = ring()
    driver.submit([], [100])
    parts = Frame(b"a", [memoryview(bytes([i])) for i in range(9)])
    pieces = [parts.head, *parts.payload]
    assert Outgoing(merge=False).put(queue, pieces, NOTHING, cut=False, fill=False)[0] == 1
    assert received(driver)[0][1] == b"a" + bytes(range(9))
