"""A strict, streaming reader of tar archives: ustar, PAX and GNU, as container tools write them.

POSIX.1-2017 pax "ustar Interchange Format" and "pax Extended Header"; GNU's long names and base-256
numbers. Anything it does not understand is refused, never guessed at: a reader that disagrees with
others about an archive is how files get smuggled. Names and targets come out as they are written;
whoever uses them resolves them. Raises RemoteError "image.archive".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from crumble_ocid.compression import ByteReader, corrupt

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_MAX_HEADER = 1 << 20  # bytes of a PAX header or a GNU long name, as in other readers
_MAX_SIZE = 1 << 43
_MAX_SECONDS = 1 << 33  # keeps nanoseconds within 63 bits
_XATTR = b"SCHILY.xattr."
# name, mode, uid, gid, size, mtime, checksum, type, linkname, magic+version, -, -, major, minor, prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_WITH_DATA = b"0\x007"


@dataclass(slots=True)
class Member:
    """One entry. kind: the type flag as a character, "0" for every regular file."""

    name: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes
    major: int
    minor: int
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class TarReader:
    """Iterates over members; `data` gives the current one's bytes, `close` reads to the very end."""

    def __init__(self, reader: ByteReader) -> None:
        self._reader = reader
        self._left = 0  # bytes of the current member not read yet
        self._padding = 0

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            yield member

    def data(self) -> Iterator[memoryview]:
        """The current member's bytes, in chunks."""
        while self._left:
            part = self._reader.some(self._left)
            if not part:
                raise corrupt("is truncated")
            self._left -= len(part)
            yield part

    def read(self, limit: int) -> bytes:
        """The current member's bytes whole; raises when there are over `limit`."""
        if self._left > limit:
            raise corrupt(f"has a member of {self._left} bytes where at most {limit} are accepted")
        return b"".join(self.data())

    def _next(self) -> Member | None:
        pax: dict[bytes, bytes] = {}
        while True:
            self._reader.skip(self._left + self._padding)
            self._left = self._padding = 0
            block = self._reader.read(_BLOCK)
            # An archive may end without its two zero blocks, as Go's reader has it too: whether
            # something is missing is the digest's to say.
            if not block or block == _ZEROS:
                return None
            if len(block) < _BLOCK:
                raise corrupt("is truncated")
            member, body = _parse_header(block)
            if member.kind in "xgLK":
                data = self._body(body)
                _extend(pax, member.kind, data)
                continue
            _apply_pax(member, pax)
            if member.kind == "0":
                self._left, self._padding = member.size, -member.size % _BLOCK
            else:
                member.size = 0  # whatever a header says: these have no body
            return member

    def _body(self, size: int) -> bytes:
        if size > _MAX_HEADER:
            raise corrupt(f"has an extended header of {size} bytes")
        data = self._reader.read(size)
        if len(data) < size:
            raise corrupt("is truncated")
        self._reader.skip(-size % _BLOCK)
        return data


def _parse_header(block: bytes) -> tuple[Member, int]:
    (
        name,
        mode,
        uid,
        gid,
        size_field,
        mtime,
        checksum,
        flag,
        target,
        magic,
        _,
        _,
        major,
        minor,
        prefix,
    ) = _HEADER.unpack(block)
    stored = _number(checksum)
    if stored != sum(block) - sum(checksum) + 8 * 0x20:
        raise corrupt("is damaged: a header's checksum is wrong")
    name = name.partition(b"\0")[0]
    if magic[:6] == b"ustar\0" and (prefix := prefix.partition(b"\0")[0]):
        name = prefix + b"/" + name
    size = _number(size_field)
    kind = _kind(flag, name)
    if kind in "34":
        numbers = _number(major), _number(minor)
        if not all(0 <= number < 1 << 20 for number in numbers):
            raise corrupt("has a device with wild numbers")
    else:
        numbers = 0, 0
    member = Member(
        name,
        kind,
        _number(mode) & 0o7777,
        _number(uid),
        _number(gid),
        _checked_size(size),
        _nanoseconds(_number(mtime)),
        target.partition(b"\0")[0],
        *numbers,
    )
    return member, size


def _kind(flag: bytes, name: bytes) -> str:
    if flag in _WITH_DATA:
        # Before POSIX a directory was a file whose name ends in a slash.
        return "5" if flag == b"\0" and name.endswith(b"/") else "0"
    if flag == b"S":
        raise corrupt("holds a sparse file, which is not supported")
    if flag not in b"123456xgLK":
        raise corrupt(f"holds an entry of the unknown type {flag!r}")
    return flag.decode()


def _number(text: bytes) -> int:
    """An octal or base-256 number."""
    if text[0] & 0x80:
        value = int.from_bytes(text, "big") & ((1 << (8 * len(text) - 1)) - 1)
        negative = text[0] & 0x40
        return value - (1 << (8 * len(text) - 1)) if negative else value
    digits = text.replace(b"\0", b" ").split()
    try:
        if len(digits) > 1:
            raise ValueError
        return int(digits[0], 8) if digits else 0
    except ValueError:
        raise corrupt(f"is damaged: {text!r} is no number") from None


def _extend(pax: dict[bytes, bytes], kind: str, data: bytes) -> None:
    """Takes in what an extended header says of the next member."""
    if kind == "x":
        pax.update(_parse_pax(data))
    elif kind == "L":
        pax[b"path"] = data.partition(b"\0")[0]
    elif kind == "K":
        pax[b"linkpath"] = data.partition(b"\0")[0]
    # "g", for all members: container tools write only comments into it, and other readers skip it


def _parse_pax(data: bytes) -> dict[bytes, bytes]:
    """Records "LENGTH KEY=VALUE\\n"."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        length = data[at:space]
        if space < 0 or not length.isdigit():
            raise corrupt("is damaged: a PAX record has no length")
        end = at + int(length)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or end <= space or data[end - 1 : end] != b"\n" or not equals:
            raise corrupt("is damaged: a PAX record has a wrong length")
        found[key] = value
        at = end
    return found


def _apply_pax(member: Member, pax: dict[bytes, bytes]) -> None:
    for key, value in pax.items():
        if key.startswith(b"GNU.sparse."):
            raise corrupt("holds a sparse file, which is not supported")
        if key.startswith(_XATTR):
            _add_xattr(member, key[len(_XATTR) :], value)
        elif value and key in _PAX_FIELDS:  # an empty value takes a global one back; there are none
            name, parse = _PAX_FIELDS[key]
            setattr(member, name, parse(value))
    if b"\0" in member.name or b"\0" in member.target:
        raise corrupt("has a name with a zero byte in it")
    if not (0 <= member.uid < 1 << 32 and 0 <= member.gid < 1 << 32):
        raise corrupt("has an owner with a wild number")


def _add_xattr(member: Member, name: bytes, value: bytes) -> None:
    if (
        not name or len(name) > 255 or b"\0" in name or len(value) > 65536
    ):  # xattr(7): the VFS limits
        raise corrupt("has a bad extended attribute")
    member.xattrs[name] = value


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise corrupt(f"is damaged: {text[:40]!r} is no number")
    return int(text)


def _checked_size(size: int) -> int:
    if not 0 <= size <= _MAX_SIZE:
        raise corrupt(f"has a member of {size} bytes")
    return size


def _nanoseconds(seconds: int, fraction: int = 0) -> int:
    return max(-_MAX_SECONDS, min(seconds, _MAX_SECONDS)) * 1_000_000_000 + fraction


def _parse_time(text: bytes) -> int:
    """ "-12.345" seconds as nanoseconds."""
    whole, _, part = text.removeprefix(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 20 or (part and not part.isdigit()):
        raise corrupt(f"is damaged: {text[:40]!r} is no time")
    value = _nanoseconds(int(whole), int(part[:9].ljust(9, b"0") if part else 0))
    return -value if text.startswith(b"-") else value


_PAX_FIELDS: dict[bytes, tuple[str, Callable[[bytes], object]]] = {
    b"path": ("name", bytes),
    b"linkpath": ("target", bytes),
    b"size": ("size", lambda value: _checked_size(_decimal(value))),
    b"uid": ("uid", _decimal),
    b"gid": ("gid", _decimal),
    b"mtime": ("mtime_ns", _parse_time),
}
