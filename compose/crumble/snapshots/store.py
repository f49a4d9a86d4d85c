"""The directory of snapshots: found, made, used, removed. Several processes use it at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgpack

from crumble.snapshots import manifest as form
from crumble.snapshots import sums
from crumble.snapshots.draft import READ, Draft
from crumble.snapshots.manifest import Manifest, StoredFile, corrupt
from crumble.snapshots.meter import Meter, Tell, silent
from crumble_common import directories, log, paths
from crumble_common.errors import CrumbleError, HostError, UsageError
from crumble_common.memory_base import parse_runs

# What boot snapshots may take before the least recently used go, bytes; $CRUMBLE_SNAPSHOT_LIMIT, MiB.
_LIMIT = 8 << 30


@dataclass(frozen=True)
class State:
    """What the services said: state.msgpack. net: the guest's connections."""

    vm: bytes
    fsd: bytes
    net: bytes = b""


@dataclass(frozen=True)
class Found:
    """A snapshot as `ls` shows it. size: bytes on disk. problem: why it cannot be used, if so."""

    name: str
    size: int
    used: float
    manifest: Manifest | None
    problem: str = ""


class Snapshot:
    """One that is in use: nobody removes it before `close`. State and sizes were checked; the rest is for
    `verify`. runs: where the memory files have pages, of all but the lowest.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.directory = fd
        try:
            self.manifest = read_manifest(path, fd)
            for name, file in self.manifest.files.items():
                _check_size(self.path, fd, name, file)
            self.state = _read_state(self.path, fd, self.manifest)
            self.runs = [_read_runs(self, name) for name in self.manifest.memories[1:]]
        except BaseException:
            self.close()
            raise

    def open(self, name: str) -> int:
        """One of its files, for reading; the caller's to close."""
        return _open(self.path, self.directory, name)

    def close(self) -> None:
        """Lets it be removed."""
        if self.directory >= 0:
            os.close(self.directory)
            self.directory = -1


class Store:
    """The snapshots of a data directory."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or paths.data_dir() / "snapshots"

    def begin(self) -> Draft:
        """A new one; HostError when the directory cannot be written."""
        self.sweep()
        with self._guard():
            path = self.path / f".tmp-{secrets.token_hex(6)}"
            path.mkdir(mode=0o700)
            held = directories.lock(path)
            assert held is not None
            return Draft(path, held)

    def publish(
        self,
        draft: Draft,
        about: Manifest,
        state: State,
        runs: bytes | None = None,
        tell: Tell = silent,
    ) -> Manifest:
        """Sums, writes down and names a draft, whose memory is complete; it is closed.

        runs: where it has memory, when it builds on others, whose files are in it. tell: how far the sums are.
        Raises UsageError "snapshot.exists", HostError; the draft is then still the caller's.
        """
        with _disk_errors():
            draft.write(form.STATE, msgpack.packb(vars(state)))
            memory = draft.fds[form.MEMORY]
            os.ftruncate(memory, about.memory)
            meter = Meter(tell, "checksums", sums.data_size(memory, about.memory))
            draft.write(form.SUMS, sums.of_memory(memory, about.memory, meter))
            if runs is not None:
                draft.write(form.PAGES, runs)
            files = {name: _stored(name, fd) for name, fd in draft.fds.items()}
            made = Manifest(**{**vars(about), "files": files})
            draft.write(form.MANIFEST, form.encode(made))
            draft.trust(made)
        self.name(draft, made.name)
        return made

    def name(self, draft: Draft, name: str) -> None:
        """The moment from which it is there: a half-written one never has a name."""
        with _disk_errors():
            draft.sync()
        target = self.path / name
        try:
            draft.path.rename(target)
        except OSError as error:
            if target.exists():
                raise _exists(name) from None
            raise HostError(f"Cannot make {target}: {error.strerror}.", code="host.disk") from None
        draft.close()
        directories.sync(self.path)

    def open(self, name: str) -> Snapshot:
        """Uses one; UsageError "snapshot.unknown", and what is wrong with it."""
        snapshot = Snapshot(self.path / name, self._hold(name))
        with contextlib.suppress(OSError):
            os.utime(snapshot.path)  # the least recently used goes first
        return snapshot

    def _hold(self, name: str) -> int:
        if not form.NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot be a snapshot's name.", code="snapshot.name")
        path = self.path / name
        try:
            fd = directories.lock(path, fcntl.LOCK_SH)
            if fd is not None and path.stat().st_ino == os.fstat(fd).st_ino:
                return fd
        except (FileNotFoundError, NotADirectoryError):
            pass
        raise UsageError(
            f"There is no snapshot {name}.",
            code="snapshot.unknown",
            hint="`crumble snapshot ls` lists them.",
        )

    def names(self) -> list[str]:
        """Of every snapshot."""
        try:
            entries = sorted(path.name for path in self.path.iterdir())
        except FileNotFoundError:
            return []
        return [name for name in entries if not name.startswith(".")]

    def full_name(self, text: str) -> str:
        """A name, or the start of one that no other has."""
        names = self.names()
        starts = [name for name in names if name.startswith(text)] if text not in names else []
        return starts[0] if len(starts) == 1 and len(text) >= 4 else text

    def found(self) -> list[Found]:
        """Every snapshot, the last used first."""
        found = [self._found(name) for name in self.names()]
        return sorted((item for item in found if item), key=lambda item: -item.used)

    def _found(self, name: str) -> Found | None:
        try:
            fd = self._hold(name)
        except CrumbleError:
            return None
        path = self.path / name
        try:
            used, size = os.fstat(fd).st_mtime, size_on_disk(path)
            try:
                return Found(name, size, used, read_manifest(path, fd))
            except CrumbleError as error:
                return Found(name, size, used, None, str(error.message))
        finally:
            os.close(fd)

    def remove(self, name: str) -> int:
        """Removes one; bytes freed. UsageError "snapshot.unknown", "snapshot.in_use"."""
        with self._guard():
            os.close(self._hold(name))
            held = directories.lock(self.path / name)
            if held is None:
                raise UsageError(
                    f"The snapshot {name} is in use.",
                    code="snapshot.in_use",
                    hint="Stop the VMs that were started from it first.",
                )
            freed = size_on_disk(self.path / name)
            doomed = self.path / f".tmp-{secrets.token_hex(6)}"
            (self.path / name).rename(doomed)
        try:
            shutil.rmtree(doomed, ignore_errors=True)
        finally:
            os.close(held)
        return freed

    def shrink(self, limit: int | None = None) -> list[str]:
        """Removes boot snapshots, least recently used first, until the others fit; their names."""
        limit = limit_from_environment() if limit is None else limit
        boots = [item for item in self.found() if item.name.startswith("boot-")]
        total, gone = sum(item.size for item in boots), []
        while boots and total > limit:
            oldest = boots.pop()
            with contextlib.suppress(CrumbleError):
                self.remove(oldest.name)
                gone.append(oldest.name)
            total -= oldest.size
        return gone

    def sweep(self) -> None:
        """Removes what processes that were killed were making."""
        if not self.path.is_dir():
            return
        with self._guard():
            for path in self.path.glob(".tmp-*"):
                held = None
                with contextlib.suppress(FileNotFoundError):  # published or discarded just now
                    held = directories.lock(path)
                if held is not None:
                    log.info("unfinished snapshot removed", path=path)
                    shutil.rmtree(path, ignore_errors=True)
                    os.close(held)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Nobody else makes, sweeps or removes meanwhile."""
        paths.private_dir(self.path)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with _disk_errors():
                yield
        finally:
            os.close(fd)


def limit_from_environment() -> int:
    """Bytes that boot snapshots may take."""
    try:
        return int(os.environ["CRUMBLE_SNAPSHOT_LIMIT"]) << 20
    except (KeyError, ValueError):
        return _LIMIT


def read_manifest(path: Path, directory: int) -> Manifest:
    """Raises what is wrong with it."""
    fd = _open(path, directory, form.MANIFEST)
    with os.fdopen(fd, "rb") as file:
        return form.decode(file.read(form.MAX_MANIFEST + 1), path.name)


def size_on_disk(path: Path) -> int:
    """Bytes; holes take none."""
    with contextlib.suppress(OSError):
        return sum(entry.lstat().st_blocks * 512 for entry in path.iterdir())
    return 0


def _read_state(path: Path, directory: int, manifest: Manifest) -> State:
    with os.fdopen(_open(path, directory, form.STATE), "rb") as file:
        if sums.of_file(file.fileno()) != manifest.files[form.STATE].sha256:
            raise corrupt(path.name, "its state was changed")
        data = file.read(form.MAX_STATE + 1)
    try:
        plain = msgpack.unpackb(data)
        state = State(plain["vm"], plain["fsd"], plain.get("net", b""))
    except Exception:  # noqa: BLE001  msgpack raises many kinds for bad bytes
        raise corrupt(path.name, "its state cannot be read") from None
    if not all(isinstance(part, bytes) for part in vars(state).values()):
        raise corrupt(path.name, "its state cannot be read")
    return state


def _read_runs(snapshot: Snapshot, memory: str) -> bytes:
    name, about = f"{memory}.pages", snapshot.manifest
    with os.fdopen(snapshot.open(name), "rb") as file:
        data = file.read(form.MAX_PAGES)
        good = sums.of_file(file.fileno()) == about.files[name].sha256
    with contextlib.suppress(ValueError):
        if good and list(parse_runs(data, about.memory // form.PAGE)) is not None:
            return data
    raise corrupt(snapshot.path.name, f"{name} was changed")


def _check_size(path: Path, directory: int, name: str, file: StoredFile) -> None:
    fd = _open(path, directory, name)
    try:
        size = os.fstat(fd).st_size
    finally:
        os.close(fd)
    if size != file.size:
        raise corrupt(path.name, f"{name} has {size} bytes instead of {file.size}")


def _open(path: Path, directory: int, name: str) -> int:
    kind = ", of one that it builds on," if name.startswith("parent-") else ""
    try:
        fd = os.open(name, READ | os.O_NONBLOCK, dir_fd=directory)
    except OSError as error:
        raise corrupt(path.name, f"{name}{kind} cannot be opened ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise corrupt(path.name, f"{name}{kind} is not a file")
    return fd


def _stored(name: str, fd: int) -> StoredFile:
    size = os.fstat(fd).st_size
    return StoredFile(size, "" if name.endswith(form.MEMORY) else sums.of_file(fd))


def _exists(name: str) -> UsageError:
    return UsageError(
        f"There is a snapshot {name} already.",
        code="snapshot.exists",
        hint=f"Choose another name, or `crumble snapshot rm {name}` first.",
    )


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(
            f"The snapshot cannot be written: {error.strerror or error}.",
            code="host.disk",
            hint="`crumble snapshot prune` and `crumble rmi` make room.",
        ) from error
