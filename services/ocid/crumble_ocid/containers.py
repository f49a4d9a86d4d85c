"""Directories and tar files as sets of named parts: what image layouts and archives are kept in."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Protocol

from crumble_common.errors import HostError, RemoteError, UsageError
from crumble_ocid.compression import ByteReader, corrupt, decompress, kind_of, read_chunks
from crumble_ocid.files import as_host_error
from crumble_ocid.layer_builder import MAX_LAYER_BYTES
from crumble_ocid.outside import Outside
from crumble_ocid.store import Store
from crumble_ocid.tar_reader import TarReader
from crumble_ocid.tar_writer import END, header

_CHUNK = 1 << 20
_BLOCK = 512
_MAX_PARTS = 1 << 16
_MAX_LINKS = 8


class Source(Protocol):
    """Parts to read."""

    def size(self, name: str) -> int: ...

    def chunks(self, name: str) -> Iterator[bytes]: ...


def read_part(source: Source, name: str, limit: int) -> bytes:
    """A small part whole; raises RemoteError when it is over `limit` bytes."""
    size = source.size(name)
    if size > limit:
        raise RemoteError(
            f"{name} has {size} bytes, over the limit of {limit}.",
            code="image.archive",
            hint="Have the image made again by another tool.",
        )
    return b"".join(source.chunks(name))


def open_source(path: Path, store: Store) -> Source:
    """A directory, or a tar file (compressed ones are decompressed into the store's work first)."""
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            return Directory(path)
        if not stat.S_ISREG(info.st_mode):
            raise UsageError(
                f"{path} is neither a directory nor a file.",
                code="image.path",
                hint="Give the path of an OCI layout or of what `docker save` wrote.",
            )
        return TarFile(_plain(path, store))
    except FileNotFoundError:
        raise UsageError(
            f"There is no {path}.",
            code="image.path",
            hint="Give the path of an OCI layout or of what `docker save` wrote.",
        ) from None
    except OSError as error:
        raise as_host_error(error, "read", path) from error


class Directory:
    """Files below a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def size(self, name: str) -> int:
        with self._open(name) as file:
            return os.fstat(file.fileno()).st_size

    def chunks(self, name: str) -> Iterator[bytes]:
        with self._open(name) as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    def _open(self, name: str) -> IO[bytes]:
        path = self._root / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _missing(name) from None
        except OSError as error:
            raise as_host_error(error, "read", path) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)  # fdopen would refuse a directory, and leave it open
            raise HostError(
                f"{path} is not a file.",
                code="host.file",
                hint="The layout is damaged; write it again.",
            )
        return os.fdopen(fd, "rb")


class TarFile:
    """Members of an uncompressed tar file, at random. Closed when it is forgotten."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._parts: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        reader = ByteReader(read_chunks(file))
        for member in TarReader(reader):
            name = posixpath.normpath(member.name.decode("utf-8", "replace")).lstrip("/")
            if member.kind == "0":
                self._parts[name] = (reader.position, member.size)
            elif member.kind in "12":
                target = member.target.decode("utf-8", "replace")
                base = posixpath.dirname(name) if member.kind == "2" else ""
                self._links[name] = posixpath.normpath(posixpath.join(base, target))
            if len(self._parts) + len(self._links) > _MAX_PARTS:
                raise corrupt(f"has more than {_MAX_PARTS} members")

    def size(self, name: str) -> int:
        return self._find(name)[1]

    def chunks(self, name: str) -> Iterator[bytes]:
        offset, size = self._find(name)
        while size:
            chunk = os.pread(self._file.fileno(), min(size, _CHUNK), offset)
            if not chunk:
                raise corrupt("is truncated")
            offset, size = offset + len(chunk), size - len(chunk)
            yield chunk

    def _find(self, name: str) -> tuple[int, int]:
        """Through links, which old archives use for layers that repeat."""
        found = posixpath.normpath(name)
        for _ in range(_MAX_LINKS):
            if found in self._parts:
                return self._parts[found]
            if found not in self._links:
                break
            found = self._links[found]
        raise _missing(name)


def _plain(path: Path, store: Store) -> IO[bytes]:
    """The tar file open for reading, decompressed."""
    file = path.open("rb")
    kind = kind_of(file.read(6))
    file.seek(0)
    if not kind:
        return file
    with store.temporary("archive") as (plain, _), file:
        for chunk in decompress(read_chunks(file), MAX_LAYER_BYTES):
            plain.write(chunk)
        plain.flush()
        again = os.fdopen(os.dup(plain.fileno()), "rb")
    again.seek(0)
    return again


def _missing(name: str) -> RemoteError:
    return RemoteError(
        f"The image lacks its part {name[:200]!r}.",
        code="image.incomplete",
        hint="It was not written completely, or is no image; write it again.",
    )


class Sink(Protocol):
    """Parts to write. `finish` makes them durable; `abandon` removes them."""

    def add(self, name: str, size: int, chunks: Iterable[bytes | memoryview]) -> None: ...

    def finish(self) -> None: ...

    def abandon(self) -> None: ...


class DirectorySink:
    """Writes new files below a directory, which must be new or empty."""

    def __init__(self, root: Path, outside: Outside) -> None:
        self._root, self._outside = root, outside
        self._made: list[Path] = []
        try:
            if any(root.iterdir()):
                raise UsageError(
                    f"{root} is not empty.",
                    code="export.exists",
                    hint="Choose a directory that is new or empty.",
                )
        except FileNotFoundError:
            pass
        except OSError as error:
            raise as_host_error(error, "write to", root) from error

    def add(self, name: str, size: int, chunks: Iterable[bytes | memoryview]) -> None:
        path = self._root / name
        with self._outside.create(path) as file:
            self._made.append(path)
            for chunk in chunks:
                size -= file.write(chunk)
            if size:
                raise HostError(
                    f"{name} has another size than it should.",
                    code="store.corrupt",
                    hint="Remove the image and pull it again.",
                )
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        self._made.clear()

    def abandon(self) -> None:
        for path in self._made:
            self._outside.remove(path)


class TarSink:
    """Writes a new tar file."""

    def __init__(self, path: Path, outside: Outside) -> None:
        self._path, self._outside = path, outside
        self._file = outside.create(path)

    def add(self, name: str, size: int, chunks: Iterable[bytes | memoryview]) -> None:
        self._file.write(header(name.encode(), b"0", 0o644, size=size))
        for chunk in chunks:
            self._file.write(chunk)
        self._file.write(bytes(-size % _BLOCK))

    def finish(self) -> None:
        self._file.write(END)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        self._file.close()
        self._outside.remove(self._path)
