"""A frame of one guest for another whose device takes less: checksums filled in, large segments cut (§5.1.6.2)."""

from __future__ import annotations

from crumble_netd.commands import Frame
from crumble_netd.header import Malformed, checksum, ethernet, ipv6, tcp, virtio_net
from crumble_netd.header.virtio_net import NOTHING, Offload
from crumble_netd.layers.ethernet import MAX_FRAME
from crumble_netd.port import Port

_FIN_PSH, _CWR, _FLAGS = 0x09, 0x80, 13
_FIRST_HEADERS = ethernet.SIZE + 60 + 60
# Less than any sender's (Linux' least MSS is 48): one frame must not become tens of thousands.
_LEAST = 32


def fit(frame: memoryview, offload: Offload, port: Port) -> list[Frame]:
    """The frames that `port` gets instead; raises Malformed. The frame's IP header has been checked."""
    kind = offload.gso_type & ~virtio_net.GSO_ECN
    if not offload.checksum_left:
        return [_whole(frame, NOTHING)]
    if not kind:
        if port.features & virtio_net.F_GUEST_CSUM:
            start, at = offload.csum_start, offload.csum_offset
            return [_whole(frame, Offload(virtio_net.NEEDS_CSUM, csum_start=start, csum_offset=at))]
        return [_filled(frame, offload)]
    six = kind == virtio_net.GSO_TCPV6
    start, end = _tcp_header(frame, offload, six)
    if port.checksums and port.segments(ipv6=six):
        return [_whole(frame, offload._replace(hdr_len=end))]
    return _cut(frame, start, end, offload.gso_size, six)


def packets(frame: Frame) -> list[Frame]:
    """A frame of ours, for who wants to see packets."""
    offload = frame.offload
    if frame.size <= MAX_FRAME:
        return [frame]
    whole = memoryview(frame.head + b"".join(frame.payload))
    six = offload.gso_type == virtio_net.GSO_TCPV6
    return _cut(whole, offload.csum_start, offload.hdr_len, offload.gso_size, six)


def _whole(frame: memoryview, offload: Offload) -> Frame:
    return Frame(bytes(frame[: ethernet.SIZE]), [frame[ethernet.SIZE :]], offload)


def _filled(frame: memoryview, offload: Offload) -> Frame:
    """The field holds the pseudo-header's sum: the sum over all of it is the checksum."""
    data = bytearray(frame)
    start, at = offload.csum_start, offload.csum_start + offload.csum_offset
    value = checksum.internet([data[start:]]) or 0xFFFF
    data[at : at + 2] = value.to_bytes(2, "big")
    return Frame(bytes(data), [])


def _tcp_header(frame: memoryview, offload: Offload, six: bool) -> tuple[int, int]:
    """Where the TCP header begins and ends."""
    start = ethernet.SIZE + (ipv6.SIZE if six else (frame[ethernet.SIZE] & 0xF) * 4)
    version = 6 if six else 4
    if (
        offload.csum_start != start
        or offload.csum_offset != tcp.CHECKSUM
        or offload.gso_size < _LEAST
    ):
        raise Malformed("virtio.gso")
    if frame[ethernet.SIZE] >> 4 != version or len(frame) < start + tcp.SIZE:
        raise Malformed("virtio.gso")
    if frame[ethernet.SIZE + (6 if six else 9)] != tcp.PROTOCOL:
        raise Malformed("virtio.gso")
    end = start + (frame[start + 12] >> 4) * 4
    if not start + tcp.SIZE <= end <= min(len(frame), _FIRST_HEADERS):
        raise Malformed("virtio.gso")
    return start, end


def _cut(frame: memoryview, start: int, end: int, size: int, six: bool) -> list[Frame]:
    payload = frame[end : _packet_end(frame, six) or len(frame)]
    found = []
    for at in range(0, len(payload), size) or [0]:
        piece = payload[at : at + size]
        head = bytearray(frame[:end])
        _number(head, start, at, first=at == 0, last=at + size >= len(payload))
        _measure(head, start, len(piece), at // size, six)
        source_at = ethernet.SIZE + (8 if six else 12)
        width = 16 if six else 4
        source = bytes(head[source_at : source_at + width])
        target = bytes(head[source_at + width : source_at + 2 * width])
        pseudo = checksum.pseudo(source, target, tcp.PROTOCOL, end - start + len(piece))
        field = start + tcp.CHECKSUM
        head[field : field + 2] = bytes(2)
        value = checksum.internet([head[start:], piece], pseudo)
        head[field : field + 2] = value.to_bytes(2, "big")
        found.append(Frame(bytes(head), [piece]))
    return found


def _packet_end(frame: memoryview, six: bool) -> int:
    """Where IP says that it ends: frames may be padded. 0: it does not say."""
    at = ethernet.SIZE + (4 if six else 2)
    length = frame[at] << 8 | frame[at + 1]
    if not length:
        return 0
    return ethernet.SIZE + length + (ipv6.SIZE if six else 0)


def _number(head: bytearray, start: int, at: int, *, first: bool, last: bool) -> None:
    """Sequence number and flags of a piece (RFC 3168 §6.1.2: CWR is of the first only)."""
    seq = int.from_bytes(head[start + 4 : start + 8], "big") + at
    head[start + 4 : start + 8] = (seq & 0xFFFFFFFF).to_bytes(4, "big")
    if not last:
        head[start + _FLAGS] &= ~_FIN_PSH & 0xFF
    if not first:
        head[start + _FLAGS] &= ~_CWR & 0xFF


def _measure(head: bytearray, start: int, size: int, index: int, six: bool) -> None:
    """Lengths, and of IPv4 the identification and checksum."""
    at = ethernet.SIZE
    total = len(head) - start + size
    if six:
        head[at + 4 : at + 6] = total.to_bytes(2, "big")
        return
    head[at + 2 : at + 4] = (total + start - at).to_bytes(2, "big")
    identification = int.from_bytes(head[at + 4 : at + 6], "big") + index
    head[at + 4 : at + 6] = (identification & 0xFFFF).to_bytes(2, "big")
    head[at + 10 : at + 12] = bytes(2)
    value = checksum.internet([head[at:start]])
    head[at + 10 : at + 12] = value.to_bytes(2, "big")
