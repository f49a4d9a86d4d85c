"""Packets of gdb's remote serial protocol (GDB manual, appendix E.1), without any I/O."""

from __future__ import annotations

INTERRUPT = b"\x03"
# What qSupported announces; a client that sends more is not gdb.
PACKET_SIZE = 0x4000
_ESCAPE = 0x7D
_SPECIAL = frozenset(b"#$}*")


def checksum(body: bytes) -> int:
    """Of a packet's body as it is sent."""
    return sum(body) & 0xFF


def escape(data: bytes) -> bytes:
    """Binary data for a packet's body."""
    out = bytearray()
    for byte in data:
        out += bytes((_ESCAPE, byte ^ 0x20)) if byte in _SPECIAL else bytes((byte,))
    return bytes(out)


def unescape(body: bytes) -> bytes:
    """What `escape` was given."""
    out, pending = bytearray(), False
    for byte in body:
        if byte == _ESCAPE and not pending:
            pending = True
            continue
        out.append(byte ^ 0x20 if pending else byte)
        pending = False
    return bytes(out)


def encode(body: bytes) -> bytes:
    """A packet with this body, which is escaped already."""
    return b"$%b#%02x" % (body, checksum(body))


class PacketReader:
    """Bytes in, packets out. `answers`: acknowledgements to send, until `no_ack`."""

    def __init__(self) -> None:
        self.no_ack = False
        self._buffer = bytearray()
        self._answers = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies of whole packets, and INTERRUPT. Raises ValueError when the peer is not gdb."""
        self._buffer += data
        found: list[bytes] = []
        while self._buffer:
            first = self._buffer[0]
            if first == INTERRUPT[0]:
                found.append(INTERRUPT)
                del self._buffer[0]
            elif first != ord("$"):  # acknowledgements, and noise
                del self._buffer[0]
            elif not self._packet(found):
                break
        return found

    def answers(self) -> bytes:
        """What must be sent for what was fed."""
        taken = bytes(self._answers)
        self._answers.clear()
        return taken

    def _packet(self, found: list[bytes]) -> bool:
        end = self._buffer.find(b"#")
        if end < 0 or len(self._buffer) < end + 3:
            if len(self._buffer) > 2 * PACKET_SIZE + 8:
                raise ValueError("a packet without an end")
            return False
        body = bytes(self._buffer[1:end])
        sent = bytes(self._buffer[end + 1 : end + 3])
        del self._buffer[: end + 3]
        good = sent.lower() == b"%02x" % checksum(body)
        if not self.no_ack:
            self._answers += b"+" if good else b"-"
        if good or self.no_ack:
            found.append(body)
        return True
