"""Reads .deb packages (deb(5)): an ar archive of debian-binary, control.tar.* and data.tar.*.

Streaming: a file of any size is read once, front to back. Packages come verified from a signed archive
or not at all, but are read with the same distrust as any layer. Raises RemoteError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from crumble_common.errors import RemoteError
from crumble_ocid.compression import ByteReader, corrupt, decompress, read_chunks
from crumble_ocid.debian.control import Stanza, parse_stanzas
from crumble_ocid.tar_reader import TarReader

_MAGIC = b"!<arch>\n"
_HEADER = 60
_MAX_CONTROL = 64 << 20  # decompressed; md5sums of the largest packages take a few MB
_MAX_DATA = 64 << 30
_MAX_FILE = 16 << 20


@dataclass(frozen=True)
class Control:
    """A package's control members: its control file (text and fields), and the others' bytes."""

    text: str
    fields: Stanza
    members: dict[str, bytes]
    modes: dict[str, int]


class DebReader:
    """The control part at once; then `data` gives the files, once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        if file.read(len(_MAGIC)) != _MAGIC:
            raise corrupt("is no .deb package")
        name, size = self._member()
        if name != "debian-binary" or self._file.read(size)[:2] != b"2.":
            raise corrupt("is no .deb package of version 2")
        self._file.read(size & 1)
        name, size = self._member()
        if not name.startswith("control.tar"):
            raise corrupt("has no control part where a .deb package has it")
        self.control = _read_control(_tar(self._file, size, _MAX_CONTROL))
        self._file.read(size & 1)

    def data(self) -> TarReader:
        """The files' archive."""
        return _reader(self.data_chunks())

    def data_chunks(self) -> Iterator[bytes]:
        """The files' archive, decompressed."""
        while True:
            name, size = self._member()
            if name.startswith("data.tar"):
                return decompress(read_chunks(self._file, size), _MAX_DATA)
            if not name.startswith("_"):  # deb(5): members to be passed over begin so
                raise corrupt(f"has the unknown part {name!r}")
            for _ in read_chunks(self._file, size + (size & 1)):
                pass

    def _member(self) -> tuple[str, int]:
        """The next ar header (ar(5), common format): name and size."""
        header = self._file.read(_HEADER)
        if len(header) < _HEADER or header[58:] != b"`\n" or not header[48:58].strip().isdigit():
            raise corrupt("is damaged or truncated: a part of the package is missing")
        return header[:16].decode("ascii", "replace").rstrip(" /"), int(header[48:58])


def _tar(file: IO[bytes], size: int, limit: int) -> TarReader:
    return _reader(decompress(read_chunks(file, size), limit))


def _reader(chunks: Iterator[bytes]) -> TarReader:
    return TarReader(ByteReader(chunks))


def _read_control(tar: TarReader) -> Control:
    members: dict[str, bytes] = {}
    modes: dict[str, int] = {}
    for member in tar:
        name = member.name.decode("utf-8", "replace").removeprefix("./")
        if member.kind == "0" and "/" not in name:
            members[name] = tar.read(_MAX_FILE)
            modes[name] = member.mode
    text = members.pop("control", b"").decode("utf-8", "replace").strip("\n") + "\n"
    fields = next(parse_stanzas(text), None)
    if fields is None or not fields.get("package"):
        raise RemoteError(
            "A package has no control file.",
            code="debian.data",
            hint="Try again, or another mirror (CRUMBLE_DEBIAN_MIRROR).",
        )
    return Control(text, fields, members, modes)
