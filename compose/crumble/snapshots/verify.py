"""Looks at every byte of a snapshot; once, as long as nothing changes that could change them."""

from __future__ import annotations

import contextlib
import os
import secrets

from crumble.snapshots import manifest as form
from crumble.snapshots import sums
from crumble.snapshots.draft import TRUSTED, identity
from crumble.snapshots.manifest import CHUNK, SUM, corrupt
from crumble.snapshots.meter import Meter, Tell, silent
from crumble.snapshots.store import Snapshot
from crumble_common.errors import CrumbleError


def verify(snapshot: Snapshot, tell: Tell = silent) -> None:
    """Raises GuestError "snapshot.corrupt", naming the file that is not what was written."""
    meter = Meter(tell, "checksums", _bytes_to_read(snapshot))
    for name, file in snapshot.manifest.files.items():
        fd = snapshot.open(name)
        try:
            if not name.endswith(form.MEMORY) and sums.of_file(fd, meter) != file.sha256:
                raise corrupt(snapshot.path.name, f"{name} was changed")
        finally:
            os.close(fd)
    for name in snapshot.manifest.memories:
        _verify_memory(snapshot, name, meter)


def is_trusted(snapshot: Snapshot) -> bool:
    """It was verified since this machine was started, and no file of it was written since."""
    try:
        with os.fdopen(snapshot.open(TRUSTED), "rb") as file:
            return file.read(1 << 16) == identity(snapshot.directory, snapshot.manifest)
    except (CrumbleError, OSError):
        return False


def verify_and_trust(snapshot: Snapshot) -> None:
    """As `verify`; `is_trusted` from then on, where the directory can be written."""
    before = identity(snapshot.directory, snapshot.manifest)
    verify(snapshot)
    new = f".{TRUSTED}-{secrets.token_hex(4)}"
    with contextlib.suppress(OSError):
        (snapshot.path / new).write_bytes(before)
        (snapshot.path / new).replace(snapshot.path / TRUSTED)


def _bytes_to_read(snapshot: Snapshot) -> int:
    total = 0
    for name, file in snapshot.manifest.files.items():
        fd = snapshot.open(name)
        try:
            total += sums.data_size(fd, file.size) if name.endswith(form.MEMORY) else file.size
        finally:
            os.close(fd)
    return total


def _verify_memory(snapshot: Snapshot, name: str, meter: Meter) -> None:
    size = snapshot.manifest.memory
    with os.fdopen(snapshot.open(f"{name}.sums"), "rb") as file:
        wanted = file.read(form.sums_size(size))
    fd = snapshot.open(name)
    try:
        found = sums.of_memory(fd, size, meter)
    finally:
        os.close(fd)
    if found != wanted:
        index = next(
            n for n in range(0, len(wanted), SUM) if found[n : n + SUM] != wanted[n : n + SUM]
        )
        where = index // SUM * CHUNK
        which = "its memory" if name == form.MEMORY else f"{name}, which it builds on,"
        raise corrupt(snapshot.path.name, f"{which} was changed in the MiB at {where:#x}")
