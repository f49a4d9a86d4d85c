"""Listening Unix sockets for services that are used alone."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from crumble_common.errors import UsageError


def listen_at(path: str) -> socket.socket:
    """A listening Unix socket at `path`, there when connections are taken; replaces a stale one."""
    where = Path(path)
    if where.exists() and not where.is_socket():
        raise UsageError(f"Cannot listen at {path}: it exists and is no socket.")
    temporary = where.with_name(f"{where.name}.{os.getpid()}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(temporary))
        sock.listen(1)
        temporary.rename(where)
    except OSError as error:
        sock.close()
        temporary.unlink(missing_ok=True)
        raise UsageError(f"Cannot listen at {path}: {error.strerror or error}.") from error
    return sock
