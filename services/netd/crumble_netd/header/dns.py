"""DNS messages (RFC 1035 §4), as far as a resolver in the middle needs them."""

from __future__ import annotations

import struct
from typing import NamedTuple

from crumble_netd.header import Malformed

SIZE = 12
MAX_MESSAGE = 65_535
_HEAD = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
RESPONSE, TRUNCATED, DESIRED, AVAILABLE, AUTHORITATIVE = 0x8000, 0x0200, 0x0100, 0x0080, 0x0400
_OPCODE, CHECKING_DISABLED = 0x7800, 0x0010
A, SOA, PTR, AAAA, OPT, ANY = 1, 6, 12, 28, 41, 255
IN = 1
NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, NAME_ERROR, NOT_IMPLEMENTED, REFUSED = range(6)
_MAX_NAME = 255
# Records looked at in one message; a full one of the shortest records has some 5,000.
_MAX_RECORDS = 4096


class Question(NamedTuple):
    """name: labels, lower case. end: where the question ends in the message."""

    name: tuple[bytes, ...]
    type: int
    kind: int
    end: int

    @property
    def text(self) -> str:
        """The name as people write it."""
        return b".".join(self.name).decode("ascii", "replace")


class Record(NamedTuple):
    """One resource record. ttl_at, data_at: offsets in the message. type OPT: kind is the UDP size."""

    section: int
    type: int
    kind: int
    ttl: int
    ttl_at: int
    data_at: int
    size: int


class Message(NamedTuple):
    """What was understood of a message. section 0: answers, 1: authority, 2: additional."""

    identifier: int
    flags: int
    question: Question
    records: tuple[Record, ...]

    @property
    def code(self) -> int:
        """RCODE, without its extension."""
        return self.flags & 0xF

    def opt(self) -> Record | None:
        """The EDNS record (RFC 6891 §6.1)."""
        return next((record for record in self.records if record.type == OPT), None)

    def udp_size(self) -> int:
        """The largest UDP message the sender takes."""
        opt = self.opt()
        return max(512, opt.kind) if opt else 512


def parse(data: bytes) -> Message:
    """A message with one question; raises Malformed."""
    if len(data) < SIZE:
        raise Malformed("dns.short")
    identifier, flags, questions, *counts = _HEAD.unpack_from(data)
    if questions != 1 or flags & _OPCODE:
        raise Malformed("dns.question")
    question = _question(data)
    at = question.end
    records = []
    if sum(counts) > _MAX_RECORDS:
        raise Malformed("dns.records")
    for section, count in enumerate(counts):
        for _ in range(count):
            record, at = _record(data, at, section)
            records.append(record)
    return Message(identifier, flags, question, tuple(records))


def _question(data: bytes) -> Question:
    name, at = parse_name(data, SIZE)
    if at + 4 > len(data):
        raise Malformed("dns.question")
    kind, klass = struct.unpack_from("!HH", data, at)
    return Question(name, kind, klass, at + 4)


def parse_name(data: bytes, at: int) -> tuple[tuple[bytes, ...], int]:
    """A name's labels in lower case, and where it ends; pointers may only lead back (§4.1.4)."""
    labels: list[bytes] = []
    end = 0
    size = 0
    lowest = at
    while True:
        if at >= len(data):
            raise Malformed("dns.name")
        count = data[at]
        if count == 0:
            return tuple(labels), end or at + 1
        if count >= 0xC0:
            if at + 2 > len(data):
                raise Malformed("dns.name")
            end = end or at + 2
            at = (count & 0x3F) << 8 | data[at + 1]
            if at >= lowest:
                raise Malformed("dns.pointer")
            lowest = at
            continue
        size += count + 1
        if count > 63 or at + 1 + count > len(data) or size >= _MAX_NAME:
            raise Malformed("dns.name")
        labels.append(data[at + 1 : at + 1 + count].lower())
        at += 1 + count


def _skip_name(data: bytes, at: int) -> int:
    while at < len(data):
        count = data[at]
        if count >= 0xC0:
            return at + 2
        at += 1 + count
        if count == 0:
            return at
    raise Malformed("dns.name")


def _record(data: bytes, at: int, section: int) -> tuple[Record, int]:
    at = _skip_name(data, at)
    if at + _RECORD.size > len(data):
        raise Malformed("dns.record")
    kind, klass, ttl, size = _RECORD.unpack_from(data, at)
    after = at + _RECORD.size + size
    if after > len(data):
        raise Malformed("dns.record")
    return Record(section, kind, klass, ttl, at + 4, at + _RECORD.size, size), after


def build_name(labels: tuple[bytes, ...]) -> bytes:
    """Labels on the wire."""
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def build_record(kind: int, ttl: int, data: bytes) -> bytes:
    """A record about the question's own name."""
    return b"\xc0\x0c" + _RECORD.pack(kind, IN, ttl, len(data)) + data


def answer(query: bytes, message: Message, code: int, records: list[bytes], more: int = 0) -> bytes:
    """A response to `query`, with records from `build_record`; an EDNS record when it had one."""
    flags = RESPONSE | AVAILABLE | message.flags & (DESIRED | CHECKING_DISABLED) | code | more
    opt = b"\0" + _RECORD.pack(OPT, 1232, 0, 0) if message.opt() else b""
    head = _HEAD.pack(message.identifier, flags, 1, len(records), 0, 1 if opt else 0)
    return head + query[SIZE : message.question.end] + b"".join(records) + opt


def truncated(response: bytes, message: Message) -> bytes:
    """The response without its records, saying that there is more over TCP."""
    flags = int.from_bytes(response[2:4], "big") | TRUNCATED
    head = _HEAD.pack(message.identifier, flags, 1, 0, 0, 0)
    return head + response[SIZE : message.question.end]


def with_identifier(data: bytes, identifier: int) -> bytes:
    """The message under another number."""
    return identifier.to_bytes(2, "big") + data[2:]


def aged(data: bytes, records: tuple[Record, ...], seconds: int) -> bytes:
    """The message as it is `seconds` later: TTLs have gone down."""
    changed = bytearray(data)
    for record in records:
        if record.type != OPT:
            struct.pack_into("!I", changed, record.ttl_at, max(0, record.ttl - seconds))
    return bytes(changed)
