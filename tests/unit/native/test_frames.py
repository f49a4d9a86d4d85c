"""Bursts of frames from a driver: joined exactly as the Python beside it says, whatever a guest writes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_native.frames import BURST, JOINED, MAX_FRAME, Incoming, Taken
from crumble_native.vring import MalformedRingError
from crumble_netd.header import Malformed, checksum, ipv4, ipv6, tcp, virtio_net
from crumble_netd.header.virtio_net import DATA_VALID, NEEDS_CSUM, NOTHING, Offload
from framework.frames import GROUP, HERE, frame, ring, stamps


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
