"""The file of a deterministic VM's recording, as `vmm` is given it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from crumble_common.errors import UsageError
from crumble_common.messages.client import VmCreate


@contextmanager
def recording(request: VmCreate) -> Iterator[dict[str, int]]:
    """Its fd by name, open while it is handed over; nothing when there is none. UsageError when it cannot be."""
    path = request.record or request.replay
    if not path:
        yield {}
        return
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        fd = os.open(path, (write if request.record else os.O_RDONLY) | os.O_CLOEXEC, 0o600)
    except OSError as error:
        verb = "written" if request.record else "read"
        raise UsageError(
            f"The recording {path} cannot be {verb}: {error.strerror}.",
            code="vm.recording",
            hint="Name a file in a directory that you may use.",
        ) from None
    try:
        yield {"recording": fd}
    finally:
        os.close(fd)
