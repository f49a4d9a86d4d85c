"""Looks at every byte of a snapshot."""

from __future__ import annotations

import os

from crumble.snapshots import manifest as form
from crumble.snapshots import sums
from crumble.snapshots.manifest import CHUNK, SUM, corrupt
from crumble.snapshots.store import Snapshot


def verify(snapshot: Snapshot) -> None:
    """Raises GuestError "snapshot.corrupt", naming the file that is not what was written."""
    for name, file in snapshot.manifest.files.items():
        fd = snapshot.open(name)
        try:
            if name != form.MEMORY and sums.of_file(fd) != file.sha256:
                raise corrupt(snapshot.path.name, f"{name} was changed")
        finally:
            os.close(fd)
    _verify_memory(snapshot)


def _verify_memory(snapshot: Snapshot) -> None:
    size = snapshot.manifest.memory
    with os.fdopen(snapshot.open(form.SUMS), "rb") as file:
        wanted = file.read(form.sums_size(size))
    fd = snapshot.open(form.MEMORY)
    try:
        found = sums.of_memory(fd, size)
    finally:
        os.close(fd)
    if found != wanted:
        index = next(
            n for n in range(0, len(wanted), SUM) if found[n : n + SUM] != wanted[n : n + SUM]
        )
        where = index // SUM * CHUNK
        raise corrupt(snapshot.path.name, f"its memory was changed in the MiB at {where:#x}")
