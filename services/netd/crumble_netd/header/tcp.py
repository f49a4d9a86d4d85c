"""TCP headers and options (RFC 9293 §3.1; RFC 7323 window scale and timestamps; RFC 2018 SACK)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from crumble_netd.header import Malformed, checksum

SIZE = 20
MAX_HEADER = 60
PROTOCOL = 6
CHECKSUM = 16
_LAYOUT = struct.Struct("!HHIIBBHHH")
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
MAX_SCALE = 14  # RFC 7323 §2.3
_END, _NOP, _MSS, _SCALE, _SACK_OK, _SACK, _TIMESTAMPS = 0, 1, 2, 3, 4, 5, 8
_MAX_BLOCKS = 4


class Options(NamedTuple):
    """Options of a segment; None or empty where absent. timestamps: value, echo reply."""

    mss: int | None = None
    scale: int | None = None
    sack_ok: bool = False
    sack: tuple[tuple[int, int], ...] = ()
    timestamps: tuple[int, int] | None = None


NO_OPTIONS = Options()


class Segment(NamedTuple):
    """A segment. window: as on the wire, unscaled."""

    source: int
    destination: int
    seq: int
    ack: int
    flags: int
    window: int
    options: Options
    payload: memoryview

    @property
    def length(self) -> int:
        """SEG.LEN: octets of sequence space it takes."""
        flags = self.flags
        return len(self.payload) + (1 if flags & SYN else 0) + (1 if flags & FIN else 0)


def parse(data: memoryview, pseudo: int, *, trusted: bool) -> Segment:
    """The segment in an IP payload; raises Malformed.

    pseudo: the pseudo-header's sum. trusted: its checksum was left to us and is not there.
    """
    if len(data) < SIZE:
        raise Malformed("tcp.short")
    source, destination, seq, ack, offset, flags, window, _, _ = _LAYOUT.unpack_from(data)
    size = (offset >> 4) * 4
    if not SIZE <= size <= len(data):
        raise Malformed("tcp.length")
    if source == 0 or destination == 0:
        raise Malformed("tcp.port")
    if not trusted and not checksum.valid([data], pseudo):
        raise Malformed("tcp.checksum")
    _check_flags(flags & 0x3F)
    options = NO_OPTIONS if size == SIZE else parse_options(bytes(data[SIZE:size]))
    return Segment(source, destination, seq, ack, flags & 0x3F, window, options, data[size:])


def _check_flags(flags: int) -> None:
    """What no TCP sends: nothing set, SYN with FIN, SYN with RST (christmas trees and scans)."""
    if flags & SYN and flags & (FIN | RST | URG):
        raise Malformed("tcp.flags")
    if not flags & (SYN | ACK | RST):
        raise Malformed("tcp.flags")


def parse_options(data: bytes) -> Options:
    """Options; unknown ones are passed over, as are those of a wrong length. Raises Malformed."""
    mss: int | None = None
    scale: int | None = None
    sack_ok = False
    sack: tuple[tuple[int, int], ...] = ()
    timestamps: tuple[int, int] | None = None
    at = 0
    while at < len(data) and data[at] != _END:
        kind = data[at]
        if kind == _NOP:
            at += 1
            continue
        if at + 1 >= len(data) or data[at + 1] < 2 or at + data[at + 1] > len(data):
            raise Malformed("tcp.options")
        size = data[at + 1]
        body = data[at + 2 : at + size]
        if kind == _MSS and size == 4:
            mss = int.from_bytes(body, "big")
        elif kind == _SCALE and size == 3:
            scale = min(body[0], MAX_SCALE)
        elif kind == _SACK_OK and size == 2:
            sack_ok = True
        elif kind == _SACK and size % 8 == 2:
            words = struct.unpack(f"!{(size - 2) // 4}I", body)
            sack = tuple(zip(words[::2], words[1::2], strict=True))[:_MAX_BLOCKS]
        elif kind == _TIMESTAMPS and size == 10:
            timestamps = struct.unpack("!II", body)
        at += size
    return Options(mss, scale, sack_ok, sack, timestamps)


def build_options(options: Options) -> bytes:
    """Options on the wire, padded; as many SACK blocks as fit."""
    parts = []
    if options.mss is not None:
        parts.append(struct.pack("!BBH", _MSS, 4, options.mss))
    if options.sack_ok:
        parts.append(bytes((_SACK_OK, 2)) if options.timestamps else bytes((1, 1, _SACK_OK, 2)))
    if options.timestamps is not None:
        pad = b"" if options.sack_ok else b"\x01\x01"
        parts.append(pad + struct.pack("!BBII", _TIMESTAMPS, 10, *options.timestamps))
    if options.scale is not None:
        parts.append(bytes((_NOP, _SCALE, 3, options.scale)))
    if options.sack:
        blocks = options.sack[: 3 if options.timestamps else 4]
        words = [word for block in blocks for word in block]
        head = bytes((1, 1, _SACK, 2 + 8 * len(blocks)))
        parts.append(head + struct.pack(f"!{len(words)}I", *words))
    return b"".join(parts)


def build(
    source: int,
    destination: int,
    seq: int,
    ack: int,
    flags: int,
    window: int,
    options: bytes = b"",
    total: int = 0,
) -> bytes:
    """A header; `total` is what stands in its checksum field."""
    offset = (SIZE + len(options)) << 2
    fields = (source, destination, seq, ack, offset, flags, window, total, 0)
    return _LAYOUT.pack(*fields) + options
