"""The content-addressed store: blobs, indexed layers, and the references that keep them.

    blobs/sha256/HEX        manifests, configs, compressed layers, .deb files, as they came
    layers/HEX.index        an indexed layer, by diff_id (see crumble_common.layer_index)
    layers/HEX.contents
    references/HASH.json    one a reference and platform
    work/                   what is being made: partial downloads and temporary files, each locked
    leases/                 one a running operation: digests it relies on; locked while it runs
    lock                    shared: a short change; exclusive: collecting garbage

Several processes and threads use it at once. Everything appears by rename, complete and durable; a
layer is there when its index is. A lock is a flock, so a killed process leaves none behind, and what
it was making is resumed (downloads) or removed when the store is next opened.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from crumble_common.errors import HostError
from crumble_common.messages.fs import Layer
from crumble_common.paths import private_dir
from crumble_ocid.digest import digest_bytes, matches
from crumble_ocid.files import (
    commit,
    discard_if_unused,
    host_errors,
    is_same_file,
    try_lock,
    write_atomically,
)

_KEEP_PARTIAL = 7 * 86400  # seconds a download that stopped is kept for resuming
_POLL = 0.05  # seconds between looks at work another process does


class Lease:
    """Digests a running operation relies on: nothing collects them before it ends."""

    def __init__(self, store: Store, file: IO[bytes]) -> None:
        self._store = store
        self._file = file

    def add(self, *digests: str) -> None:
        """Call before asking whether the store has them."""
        with self._store.locked(fcntl.LOCK_SH):
            self._file.write("".join(f"{digest}\n" for digest in digests).encode())
            self._file.flush()


class Store:
    """A store in a directory of ours; created when missing. Raises HostError."""

    def __init__(self, root: Path) -> None:
        self.root = private_dir(root)
        with host_errors("use the image store", root):
            for name in ("blobs/sha256", "blobs/sha512", "layers", "references", "work", "leases"):
                private_dir(root / name)
            self._recover()

    # Blobs

    def blob_path(self, digest: str) -> Path:
        """Where a blob is, or would be."""
        algorithm, _, text = digest.partition(":")
        return self.root / "blobs" / algorithm / text

    def has_blob(self, digest: str) -> bool:
        """True when the blob is complete in the store."""
        return self.blob_path(digest).exists()

    def read_blob(self, digest: str, limit: int) -> bytes:
        """A small blob whole; raises HostError "store.missing" or "store.corrupt"."""
        path = self.blob_path(digest)
        try:
            data = path.read_bytes() if path.stat().st_size <= limit else b""
        except FileNotFoundError:
            raise HostError(
                f"The image store lacks {digest}.",
                code="store.missing",
                hint="Remove the image and pull it again.",
            ) from None
        if not matches(data, digest):
            raise HostError(
                f"{path} is damaged.",
                code="store.corrupt",
                hint="Remove the image and pull it again.",
            )
        return data

    def put_blob(self, data: bytes, digest: str = "") -> str:
        """Stores bytes under their digest (by default the sha256 one) and returns it."""
        digest = digest or digest_bytes(data)
        path = self.blob_path(digest)
        with host_errors("write", path), self.temporary() as (file, temporary):
            file.write(data)
            commit(file, temporary, path)
        return digest

    # Work in progress

    @contextlib.contextmanager
    def temporary(self, name: str = "") -> Iterator[tuple[IO[bytes], Path]]:
        """A new locked file in work/; removed at the end unless it was renamed."""
        path = self.root / "work" / f"{name or 'temporary'}-{os.urandom(8).hex()}"
        with self.locked(fcntl.LOCK_SH):
            file = path.open("x+b")
            try_lock(file)
        try:
            yield file, path
        finally:
            path.unlink(missing_ok=True)
            file.close()

    @contextlib.contextmanager
    def temporary_directory(self, name: str) -> Iterator[Path]:
        """A new locked directory in work/; removed at the end unless it was renamed."""
        path = self.root / "work" / f"{name}-{os.urandom(8).hex()}"
        with self.locked(fcntl.LOCK_SH):
            path.mkdir(mode=0o700)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)

    @contextlib.contextmanager
    def work(
        self,
        name: str,
        done: Callable[[], bool],
        waiting: Callable[[int], None],
        *,
        keep: bool = False,
    ) -> Iterator[tuple[IO[bytes], Path] | None]:
        """The one right to make something, through its locked file in work/.

        Waits while another thread or process makes it, telling `waiting` the file's size; gives None
        when `done` says that it is made. keep: what is in the file is left for the next one.
        """
        path = self.root / "work" / name
        while not done():
            with path.open("a+b") as file:
                if try_lock(file) and is_same_file(file, path):
                    try:
                        yield None if done() else (file, path)
                    finally:
                        if (not keep or done()) and is_same_file(file, path):
                            path.unlink()
                    return
                waiting(file.seek(0, 2))
            time.sleep(_POLL)
        yield None

    @contextlib.contextmanager
    def locked(self, how: int) -> Iterator[None]:
        """Holds the store's lock, shared (LOCK_SH) or alone (LOCK_EX). Only for a moment."""
        with (self.root / "lock").open("ab") as file:
            fcntl.flock(file, how)
            yield

    @contextlib.contextmanager
    def lease(self) -> Iterator[Lease]:
        """A lease for one operation."""
        path = self.root / "leases" / os.urandom(8).hex()
        with self.locked(fcntl.LOCK_SH):
            file = path.open("x+b")
            try_lock(file)
        try:
            yield Lease(self, file)
        finally:
            path.unlink(missing_ok=True)
            file.close()

    def leased(self) -> set[str]:
        """Digests running operations rely on; call with the lock held alone."""
        found: set[str] = set()
        for path in (self.root / "leases").iterdir():
            if not discard_if_unused(path):
                found.update(path.read_text("ascii").split())
        return found

    def _recover(self) -> None:
        """Removes what killed processes left behind, but downloads that can be resumed."""
        with self.locked(fcntl.LOCK_EX):
            self.leased()
            oldest = time.time() - _KEEP_PARTIAL
            for path in (self.root / "work").iterdir():
                if path.suffix != ".partial" or path.stat().st_mtime < oldest:
                    discard_if_unused(path)
            for path in (self.root / "layers").iterdir():
                orphan = path.suffix == ".contents" and not path.with_suffix(".index").exists()
                if orphan or path.suffix not in (".contents", ".index"):
                    path.unlink(missing_ok=True)
            for path in (self.root / "references").glob(".*"):
                path.unlink(missing_ok=True)

    # Layers

    def layer(self, diff_id: str) -> Layer:
        """Where an indexed layer is, or would be."""
        base = str(self.root / "layers" / diff_id.partition(":")[2])
        return Layer(f"{base}.index", f"{base}.contents")

    def has_layer(self, diff_id: str) -> bool:
        """True when the layer is indexed."""
        return Path(self.layer(diff_id).index).exists()

    def commit_layer(
        self,
        diff_id: str,
        contents: IO[bytes],
        contents_path: Path,
        index: IO[bytes],
        index_path: Path,
    ) -> None:
        """Gives a layer's two temporary files their names: the contents first, then the index."""
        layer = self.layer(diff_id)
        with self.locked(fcntl.LOCK_SH):
            commit(contents, contents_path, Path(layer.contents))
            commit(index, index_path, Path(layer.index))

    # References

    def reference_path(self, reference: str, platform: str) -> Path:
        """The file of a reference and platform."""
        name = digest_bytes(f"{reference}\n{platform}".encode()).partition(":")[2]
        return self.root / "references" / f"{name}.json"

    def write_reference(self, reference: str, platform: str, data: bytes) -> None:
        """Sets what a reference names."""
        path = self.reference_path(reference, platform)
        with host_errors("write", path), self.locked(fcntl.LOCK_SH):
            write_atomically(path, data)
