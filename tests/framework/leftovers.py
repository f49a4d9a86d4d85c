"""What Crumble leaves on the host after it has ended, which must be nothing.

    before = Leftovers(runtime, data)     # a snapshot of what others have there
    ... run something ...
    before.assert_none()

Looked at: processes (those with the runtime directory in their environment or command line, whatever
they call themselves), the runtime directory, shared memory, temporary files, and what a store must
not hold while nobody uses it. Ends are waited for, never slept for.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_SHM = Path("/dev/shm")
_LIMIT = 20.0
# What is measured once a boot of the host, and then known.
KEPT = ("kvm-probe.json",)


class Leftovers:
    """One world's. runtime, data: its CRUMBLE_RUNTIME_DIR and CRUMBLE_DATA_DIR. scratch: its TMPDIR."""

    def __init__(self, runtime: Path, data: Path, scratch: Path) -> None:
        self.runtime, self.data, self.scratch = runtime, data, scratch
        self._before = set(_shared_places())

    def found(self) -> list[str]:
        """Everything that is left now."""
        names = [f"process {pid} ({name})" for pid, name in processes(self.runtime).items()]
        names += [f"shared: {path}" for path in _shared_places() if path not in self._before]
        for place in (self.runtime, self.scratch):
            names += [str(path) for path in _entries(place) if path.name not in KEPT]
        return names + unfinished(self.data)

    def assert_none(self) -> None:
        """Waits for ends that are on their way; fails with the list of what stays."""
        deadline = time.monotonic() + _LIMIT
        while found := self.found():
            assert time.monotonic() < deadline, f"left behind: {found}"
            time.sleep(0.02)


def processes(runtime: Path) -> dict[int, str]:
    """Processes of one world by pid, with the names they show. Zombies are not counted."""
    marker = os.fsencode(runtime)
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if _mentions(entry, marker) and "Z" not in _state(entry):
                found[int(entry.name)] = (entry / "comm").read_text().strip()
    return found


def unfinished(data: Path) -> list[str]:
    """What a data directory must not hold when nobody uses it; downloads to be resumed may stay."""
    store = data / "store"
    found = [path for path in _entries(store / "work") if path.suffix != ".partial"]
    found += _entries(store / "leases")
    found += [path for path in _entries(store / "references") if path.name.startswith(".")]
    found += [path for path in _entries(data / "guest") if not path.name.startswith("init-")]
    found += (data / "snapshots").glob(".*")
    for path in _entries(store / "layers"):
        partner = path.with_suffix({".index": ".contents"}.get(path.suffix, ".index"))
        if not partner.exists():
            found.append(path)
    for kernel in (store / "kernels").glob("*/*/"):
        if not (kernel / "kernel.json").exists():
            found.append(kernel)
    return [f"store: {path.relative_to(data)}" for path in found]


def _mentions(entry: Path, marker: bytes) -> bool:
    if marker in (entry / "cmdline").read_bytes():
        return True
    with contextlib.suppress(PermissionError):
        return b"CRUMBLE_RUNTIME_DIR=" + marker + b"\0" in (entry / "environ").read_bytes()
    return False


def _state(entry: Path) -> str:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0]


def _entries(place: Path) -> list[Path]:
    return sorted(place.iterdir()) if place.is_dir() else []


def _shared_places() -> list[Path]:
    """What several users of a machine have in common, so that only what is new says something."""
    return [path for path in _entries(_SHM) if "crumble" in path.name]
