"""Bursts of frames: joined and cut exactly as the Python beside it says, whatever a guest writes."""

from __future__ import annotations

import mmap
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_native.frames import BURST, JOINED, MAX_FRAME, TOO_LARGE, Incoming, Outgoing, Taken
from crumble_native.memory import PAGE_SIZE, Memory
from crumble_native.vring import MalformedRingError, Virtqueue, inflight_size
from crumble_netd.commands import Frame
from crumble_netd.header import Malformed, checksum, ethernet, ipv4, ipv6, tcp, virtio_net
from crumble_netd.header.virtio_net import DATA_VALID, NEEDS_CSUM, NOTHING, Offload
from crumble_netd.policy import Policy
from crumble_netd.port import Port
from crumble_netd.segment import fit
from framework.netd_guest import parse
from framework.virtqueue_driver import VirtqueueDriver

RAM = 0x8000_0000
HERE, THERE, GROUP = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2", b"\xff" * 6
ENDS4 = (bytes([10, 0, 2, 15]), bytes([10, 0, 2, 1]))
ENDS6 = (bytes(15) + b"\1", bytes(15) + b"\2")


def ring(size: int = 256, *, event_idx: bool = True) -> tuple[VirtqueueDriver, Virtqueue]:
    memory = Memory()
    memory.add(RAM, mmap.mmap(-1, 1024 * PAGE_SIZE))
    arena = (RAM + 16 * PAGE_SIZE, 1008 * PAGE_SIZE)
    driver = VirtqueueDriver(memory, size=size, at=RAM, arena=arena, event_idx=event_idx)
    queue = Virtqueue(memory, size, driver.desc, driver.avail, driver.used, event_idx=event_idx)
    return driver, queue


def frame(
    data: bytes, seq: int = 0, *, six: bool = False, ack: int = 5, flags: int = tcp.ACK,
    port: int = 1000, options: bytes = b"", window: int = 100, to: bytes = HERE, left: bool = False,
) -> bytes:  # fmt: skip
    source, target = ENDS6 if six else ENDS4
    seq, ack = seq & 0xFFFFFFFF, ack & 0xFFFFFFFF
    head = tcp.build(port, 80, seq, ack, flags, window, options)
    pseudo = checksum.pseudo(source, target, tcp.PROTOCOL, len(head) + len(data))
    total = pseudo if left else checksum.internet([head, data], pseudo)
    head = head[:16] + total.to_bytes(2, "big") + head[18:]
    build = ipv6.build if six else ipv4.build
    kind = ethernet.IPV6 if six else ethernet.IPV4
    ip = build(source, target, tcp.PROTOCOL, len(head) + len(data))
    return ethernet.build(to, THERE, kind) + ip + head + data


def stamps(value: int) -> bytes:
    return tcp.build_options(tcp.Options(timestamps=(value & 0xFFFFFFFF, 7)))


def send(
    frames: list[tuple[Offload, bytes]], *, mac: bytes | None = HERE, left: bool = False
) -> list[Taken]:
    """What one burst makes of frames; copied."""
    driver, queue = ring()
    for offload, data in frames:
        driver.submit([virtio_net.build(offload, 0) + data], [])
    incoming = Incoming()
    chains, found = incoming.take(queue, BURST, mac, left=left)
    assert chains == len(frames)
    found = [taken._replace(data=memoryview(bytes(taken.data))) for taken in found]
    assert driver.collect() == []
    incoming.give(queue)
    assert len(driver.collect()) == len(frames)
    assert incoming.size == sum(len(data) + virtio_net.SIZE for _, data in frames)
    return found


# -- From the driver.


@pytest.mark.parametrize("six", [False, True])
def test_segments_in_order_become_one(six: bool) -> None:
    pieces = [b"abc", b"d" * 1400, b"ef"]
    seq, frames = 0xFFFFFFF0, []
    for piece in pieces:
        flags = tcp.ACK | (tcp.PSH if piece == b"ef" else 0)
        frames.append((NOTHING, frame(piece, seq, six=six, flags=flags, options=stamps(1))))
        seq += len(piece)
    (taken,) = send(frames)
    whole = frame(b"".join(pieces), 0xFFFFFFF0, six=six, flags=tcp.ACK | tcp.PSH, options=stamps(1))
    sums = (14 + (40 if six else 20) + 16, 2)
    assert blank(taken.data, sums) == blank(whole, sums)
    assert (taken.frames, taken.header[0]) == (3, DATA_VALID | JOINED)


def blank(data: bytes | memoryview, where: tuple[int, int]) -> bytes:
    at, size = where
    return bytes(data[:at]) + bytes(size) + bytes(data[at + size :])


def test_of_acks_the_last_one_counts_but_duplicates_are_kept() -> None:
    acks = [10, 20, 30, 30, 30, 40]
    found = send([(NOTHING, frame(b"", ack=ack, options=stamps(ack))) for ack in acks])
    assert [int.from_bytes(taken.data[42:46], "big") for taken in found] == [30, 30, 40]
    assert [taken.frames for taken in found] == [3, 1, 2]
    sack = tcp.build_options(tcp.Options(sack=((1, 2),)))
    assert len(send([(NOTHING, frame(b"", ack=ack, options=sack)) for ack in acks])) == 6


@pytest.mark.parametrize(
    "second",
    [
        frame(b"next", 5),
        frame(b"next", 3),
        frame(b"next", 4, port=1001),
        frame(b"next", 4, ack=6),
        frame(b"next", 4, window=99),
        frame(b"next", 4, flags=tcp.ACK | tcp.FIN),
        frame(b"next", 4, options=stamps(1)),
        frame(b"next", 4, six=True),
        frame(b"", 4),
        frame(b"next", 4)[:-1] + b"X",
        frame(b"next", 4)[:-1],
        frame(b"next", 4)[:20],
        frame(b"next", 4).replace(HERE, GROUP),
    ],
)
def test_what_does_not_follow_comes_by_itself(second: bytes) -> None:
    first, other = send([(NOTHING, frame(b"data")), (NOTHING, second)])
    assert (bytes(first.data), bytes(other.data)) == (frame(b"data"), second)


def test_padding_is_taken_off() -> None:
    (taken,) = send([(NOTHING, frame(b"ab") + bytes(4)), (NOTHING, frame(b"cd", 2) + bytes(4))])
    assert bytes(taken.data[54:]) == b"abcd"


def test_nothing_is_joined_when_nobody_asks() -> None:
    frames = [(NOTHING, frame(b"data")), (NOTHING, frame(b"next", 4))]
    assert [bytes(taken.data) for taken in send(frames, mac=None)] == [data for _, data in frames]
    assert all(taken.header[0] == 0 for taken in send(frames, mac=None))


def test_checksums_that_were_left_to_us() -> None:
    offload = Offload(NEEDS_CSUM, csum_start=34, csum_offset=16)
    frames = [(offload, frame(b"data", left=True)), (offload, frame(b"next", 4, left=True))]
    assert len(send(frames, left=True)) == 1
    assert len(send(frames, left=False)) == 2
    assert len(send([frames[0], (NOTHING, frame(b"next", 4))], left=True)) == 2
    assert len(send([(o._replace(csum_start=35), f) for o, f in frames], left=True)) == 2
    # A guest cannot say that its checksums were verified.
    (taken,) = send([(Offload(DATA_VALID | JOINED), frame(b"data")[:-1] + b"X")])
    assert taken.header[0] == 0


def test_chains_that_hold_no_frame_are_left_out() -> None:
    driver, queue = ring()
    driver.submit([b"short"], [])
    driver.submit([], [100])
    driver.submit([bytes(virtio_net.SIZE + MAX_FRAME + 1)], [])
    driver.submit([bytes(virtio_net.SIZE + MAX_FRAME)], [])
    incoming = Incoming()
    chains, found = incoming.take(queue, BURST, HERE, left=False)
    assert (chains, incoming.left_out, len(found)) == (4, (2, 1), 1)
    incoming.give(queue)
    with pytest.raises(ValueError, match="not in flight"):
        incoming.give(queue)


def test_a_burst_ends_when_its_memory_does_and_a_broken_ring_is_told_after_what_was_good() -> None:
    driver, queue = ring()
    for _ in range(6):
        driver.submit([bytes(virtio_net.SIZE + 65_000)], [])
    driver.set_available(6, 999)
    driver.set_avail_idx(7)
    incoming, counts = Incoming(), []
    for _ in range(2):
        counts.append(incoming.take(queue, BURST, HERE, left=False)[0])
        incoming.give(queue)
    assert counts == [5, 1]
    with pytest.raises(MalformedRingError, match="head"):
        incoming.take(queue, BURST, HERE, left=False)


@pytest.mark.parametrize("six", [False, True])
def test_large_segments_are_joined_too(six: bool) -> None:
    """What they make is longer than an IP header can say; the stack takes it whole."""
    start, size = (54, 60_000) if six else (34, 60_000)
    kind = virtio_net.GSO_TCPV6 if six else virtio_net.GSO_TCPV4
    offload = Offload(NEEDS_CSUM, kind, start + 20, 1000, start, 16)
    frames = [(offload, frame(bytes([n]) * size, n * size, six=six, left=True)) for n in range(3)]
    (taken,) = send(frames, left=True)
    assert taken.header[0] == NEEDS_CSUM | JOINED
    packet = taken.data[14:]
    head = ipv6.parse(packet, joined=True) if six else ipv4.parse(packet, joined=True)
    assert bytes(taken.data[start + 20 :]) == b"".join(bytes([n]) * size for n in range(3))
    assert (head.end if isinstance(head, ipv6.IPv6) else head.length) == len(packet)
    with pytest.raises(Malformed):
        ipv4.parse(packet)
    assert len(send(frames, left=False)) == 3
    other = frames[1][0]._replace(gso_type=3)
    assert len(send([frames[0], (other, frames[1][1])], left=True)) == 2


# The same in Python, a frame at a time.


class Joined:
    """What a burst is to be: frames, and of how many each is made."""

    def __init__(self) -> None:
        self.found: list[tuple[bytes, int]] = []
        self.open = False

    def take(self, data: bytes) -> None:
        size = plain_segment(data)
        if size and self.open and (whole := joined(self.found[-1][0], data[:size])):
            self.found[-1] = (whole, self.found[-1][1] + 1)
            return
        self.found.append((data[:size] if size else data, 1))
        self.open = bool(size)


def plain_segment(data: bytes) -> int:
    """Its size without padding; 0 when it is not to be joined."""
    try:
        if data[:6] != HERE:
            return 0
        if data[12:14] == b"\x08\0":
            head = ipv4.parse(memoryview(data)[14:])
            if head.size != 20 or head.protocol != 6 or head.offset or head.more:
                return 0
            start, end = 34, 14 + head.length
            source, target = head.source, head.destination
        elif data[12:14] == b"\x86\xdd":
            if data[20] != 6 or data[14] >> 4 != 6:
                return 0
            start, end = 54, 54 + int.from_bytes(data[18:20], "big")
            source, target = data[22:38], data[38:54]
        else:
            return 0
        if end > len(data):
            return 0
        payload = memoryview(data)[start:end]
        pseudo = checksum.pseudo(source, target, 6, len(payload))
        tcp.parse(payload, pseudo, trusted=False)
    except Malformed:
        return 0
    plain = data[start + 13] & ~tcp.PSH == tcp.ACK and not data[start + 12] & 15
    return end if plain else 0


def joined(last: bytes, data: bytes) -> bytes | None:
    if last[:14] != data[:14]:
        return None
    six = data[12] == 0x86
    start = 54 if six else 34
    kept = (slice(14, 18), slice(20, 54)) if six else (slice(14, 16), slice(20, 24), slice(26, 34))
    if any(last[part] != data[part] for part in kept):
        return None
    a, b = (tcp.parse(memoryview(d)[start:], 0, trusted=True) for d in (last, data))
    ends = start + (last[start + 12] >> 4) * 4
    same = (slice(start, start + 4), slice(start + 12, start + 13), slice(start + 18, start + 20))
    if any(last[part] != data[part] for part in same):
        return None
    options, others = last[start + 20 : ends], data[start + 20 : ends]
    if not a.payload and not b.payload:
        later = 0 < (b.ack - a.ack) & 0xFFFFFFFF < 1 << 31
        alike = a.seq == b.seq and a.flags == b.flags == tcp.ACK and later
        elapsed = int.from_bytes(others[4:8], "big") - int.from_bytes(options[4:8], "big")
        stamped = options[:4] == others[:4] == b"\1\1\x08\x0a" and len(options) == 12
        alike = alike and (not options or (stamped and not elapsed & 0x80000000))
        return data if alike else None
    follows = a.payload and b.payload and b.seq == (a.seq + len(a.payload)) & 0xFFFFFFFF
    if not follows or (a.ack, a.window, options) != (b.ack, b.window, others):
        return None
    size = len(last) + len(b.payload) - 14
    whole = bytearray(last + bytes(b.payload))
    whole[start + 13] |= b.flags
    if six:
        whole[18:20] = (size - 40 if size - 40 <= 65_535 else 0).to_bytes(2, "big")
    else:
        whole[16:18] = (size if size <= 65_535 else 0).to_bytes(2, "big")
        whole[24:26] = bytes(2)
        whole[24:26] = checksum.internet([whole[14:34]]).to_bytes(2, "big")
    return bytes(whole)


@st.composite
def bursts(draw: st.DrawFn) -> list[bytes]:
    """Mostly segments in order of one stream or two, some of them broken."""
    frames, seq, ack = [], 0xFFFF_F000, 7
    for _ in range(draw(st.integers(1, 12))):
        data = bytes(draw(st.sampled_from([0, 0, 1, 2, 7, 100, 1448, 30_000])))
        ack += draw(st.sampled_from([0, 0, 1, 1 << 31]))
        built = bytearray(
            frame(
                data, seq, six=draw(st.integers(0, 9)) == 0, ack=ack,
                flags=draw(st.sampled_from([16, 16, 16, 24, 17, 2])),
                port=draw(st.sampled_from([1000, 1000, 1000, 1001])),
                options=draw(st.sampled_from([b"", stamps(1), stamps(1), stamps(2), b"\1" * 4])),
            )
        )  # fmt: skip
        seq += len(data) if draw(st.integers(0, 5)) else 0
        if draw(st.integers(0, 3)) == 0:
            at = draw(st.integers(0, min(len(built), 80) - 1))
            built[at] = draw(st.integers(0, 255))
        built += bytes(draw(st.sampled_from([0, 0, 3])))
        frames.append(bytes(built[: draw(st.sampled_from([len(built)] * 5 + [30, 60]))]))
    return frames


@settings(max_examples=300, deadline=None)
@given(bursts())
def test_bursts_are_what_they_are_in_python(frames: list[bytes]) -> None:
    """Frames are joined exactly where the reference joins them, to the same bytes; others are untouched."""
    expected = Joined()
    for data in frames:
        expected.take(data)
    found = send([(NOTHING, data) for data in frames])
    assert [(bytes(taken.data), taken.frames) for taken in found] == expected.found
    for taken in found:
        verified = taken.frames > 1 or plain_segment(bytes(taken.data)) > 0
        assert bool(taken.header[0] & DATA_VALID) == verified


# -- To the driver.


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
    driver.collect = lambda: found  # type: ignore[method-assign]
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
