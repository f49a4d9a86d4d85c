"""A snapshot as one file: export and import.

    8 bytes "CRBSNAP1", then one zstd frame of:
        u32 length, the manifest
        for each of its files, by name: records u64 offset, u32 length > 0, data; the last one is
        all ones, 0. What no record covers is a hole. Little-endian; offsets rise.

The image's layers go along, so that it can be used where the image is not. What comes in is written
below a temporary name, never beyond the sizes in its manifest, and verified to the last byte.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from crumble.snapshots import manifest as form
from crumble.snapshots import sums
from crumble.snapshots.draft import Draft
from crumble.snapshots.manifest import CHUNK, Manifest, StoredFile
from crumble.snapshots.meter import Meter, Tell, silent
from crumble.snapshots.store import Snapshot, Store
from crumble.snapshots.verify import verify
from crumble_common import paths
from crumble_common.errors import CrumbleError, GuestError, HostError, UsageError

MAGIC = b"CRBSNAP1"
_LENGTH = struct.Struct("<I")
_RECORD = struct.Struct("<QI")
_END = ((1 << 64) - 1, 0)
_ZSTD_LEVEL = 3
_MAX_WINDOW = 1 << 27


def image_files(manifest: Manifest) -> dict[str, Path]:
    """Names in a snapshot of its image's layers, and where the image store has them."""
    store = paths.store_dir() / "layers"
    found = {}
    for number, layer in enumerate(manifest.image.layers):
        for suffix in ("index", "contents"):
            name = f"image-{number}.{suffix}"
            if name not in manifest.files:
                found[name] = store / f"{layer}.{suffix}"
    return found


def export(snapshot: Snapshot, path: Path, tell: Tell = silent) -> int:
    """Writes it to `path`, which appears when it is complete; its size in bytes. tell: how far that is."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with host_errors(path), new.open("xb") as file:
            _write(snapshot, file, tell)
            file.flush()
            os.fsync(file.fileno())
            new.replace(path)
            return path.stat().st_size
    finally:
        new.unlink(missing_ok=True)


def _write(snapshot: Snapshot, file: IO[bytes], tell: Tell) -> None:
    with contextlib.ExitStack() as stack:
        fds = _sources(snapshot, stack)
        manifest = _whole(snapshot.manifest, fds, tell)
        text = form.encode(manifest)
        file.write(MAGIC)
        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
        stream = stack.enter_context(compressor.stream_writer(file, closefd=False))
        stream.write(_LENGTH.pack(len(text)) + text)
        meter = Meter(tell, "export", _data(manifest, fds))
        for name in sorted(manifest.files):
            for offset, data in _records(fds[name], manifest.files[name].size, meter):
                stream.write(_RECORD.pack(offset, len(data)))
                stream.write(data)
            stream.write(_RECORD.pack(*_END))


def _sources(snapshot: Snapshot, stack: contextlib.ExitStack) -> dict[str, int]:
    fds = {name: snapshot.open(name) for name in snapshot.manifest.files}
    for fd in fds.values():
        stack.callback(os.close, fd)
    for name, path in image_files(snapshot.manifest).items():
        try:
            fds[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise missing_image(snapshot.manifest) from None
        stack.callback(os.close, fds[name])
    return fds


def missing_image(manifest: Manifest) -> UsageError:
    """The layers below a snapshot are gone."""
    image = manifest.image
    return UsageError(
        f"The image {image.reference} that the snapshot {manifest.name} was taken of is not in the store.",
        code="snapshot.image",
        hint=f"Fetch that version again: {image.digest}.",
    )


def _whole(manifest: Manifest, fds: dict[str, int], tell: Tell) -> Manifest:
    files = dict(manifest.files)
    more = {name: os.fstat(fd).st_size for name, fd in fds.items() if name not in files}
    meter = Meter(tell, "image", sum(more.values()))
    for name, size in more.items():
        files[name] = StoredFile(size, sums.of_file(fds[name], meter))
    return dataclasses.replace(manifest, kind="user", files=files)


def _data(manifest: Manifest, fds: dict[str, int]) -> int:
    extents = (sums.extents(fds[name], file.size) for name, file in manifest.files.items())
    return sum(end - start for found in extents for start, end in found)


def _records(fd: int, size: int, meter: Meter) -> Iterator[tuple[int, bytes]]:
    for start, end in sums.extents(fd, size):
        for offset in range(start, end, CHUNK):
            data = os.pread(fd, min(CHUNK, end - offset), offset)
            meter.add(len(data))
            if data.count(0) != len(data):
                yield offset, data


def import_file(store: Store, path: Path, name: str = "", tell: Tell = silent) -> Manifest:
    """Takes a snapshot in, under its own name or another; raises what is wrong with it. tell: how far that is."""
    with host_errors(path), path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UsageError(
                f"{path} is no snapshot.",
                code="snapshot.file",
                hint="`crumble snapshot export` makes one.",
            )
        draft = store.begin()
        try:
            return _take_in(store, draft, _Input(file, path, tell), name, tell)
        finally:
            draft.discard()


def _take_in(store: Store, draft: Draft, source: _Input, name: str, tell: Tell) -> Manifest:
    (length,) = _LENGTH.unpack(source.read(_LENGTH.size))
    if length > form.MAX_MANIFEST:
        raise source.bad("its manifest is too large")
    manifest = form.decode(source.read(length), str(source.path))
    name = name or manifest.name
    if not form.NAME.fullmatch(name) or name.startswith("boot-"):
        raise UsageError(
            f"{name!r} cannot be a snapshot's name.",
            code="snapshot.name",
            hint="Choose one with --name.",
        )
    manifest = dataclasses.replace(manifest, kind="user", name=name, created=time.time())
    for entry in sorted(manifest.files):
        _fill(draft.create(entry), manifest.files[entry].size, source)
    source.end()
    draft.write(form.MANIFEST, form.encode(manifest))
    snapshot = Snapshot(
        draft.path, os.open(draft.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    )
    try:
        verify(snapshot, tell)
        draft.trust(manifest)
    finally:
        snapshot.close()
    store.name(draft, name)
    return manifest


def _fill(fd: int, size: int, source: _Input) -> None:
    os.ftruncate(fd, size)
    least = 0
    while True:
        offset, length = _RECORD.unpack(source.read(_RECORD.size))
        if (offset, length) == _END:
            return
        if not 0 < length <= CHUNK or offset < least or offset + length > size:
            raise source.bad("its records are not in order")
        os.pwrite(fd, source.read(length), offset)
        least = offset + length


class _Input:
    """The decompressed stream of a file that may be anything."""

    def __init__(self, file: IO[bytes], path: Path, tell: Tell) -> None:
        self.path = path
        self._file = file
        self._meter = Meter(tell, "import", os.fstat(file.fileno()).st_size)
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        self._stream: Any = decompressor.stream_reader(file, read_across_frames=False)

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        parts = []
        try:
            while size:
                data = self._stream.read(size)
                if not data:
                    raise self.bad("it ends too early")
                parts.append(data)
                size -= len(data)
        except zstandard.ZstdError:
            raise self.bad("it cannot be decompressed") from None
        self._meter.set(self._file.tell())
        return b"".join(parts)

    def end(self) -> None:
        """Nothing more may come: this is where zstd's own checksum is looked at."""
        try:
            if self._stream.read(1):
                raise self.bad("there is more than its manifest says")
        except zstandard.ZstdError:
            raise self.bad("it cannot be decompressed") from None

    def bad(self, what: str) -> GuestError:
        """What is wrong with the file."""
        return GuestError(
            f"{self.path} is damaged: {what}.",
            code="snapshot.corrupt",
            hint="Export or fetch it again.",
        )


@contextlib.contextmanager
def host_errors(path: Path) -> Iterator[None]:
    """What the disk says, as errors of ours."""
    try:
        yield
    except CrumbleError:
        raise
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise UsageError(f"There is no {path}.", code="snapshot.file") from None
        raise HostError(f"{path}: {error.strerror or error}.", code="host.disk") from error
