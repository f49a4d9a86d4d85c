"""Whole files of a guest, in chunks."""

from __future__ import annotations

from crumble.sdk.session import Session
from crumble_common.messages.vm import FileRead, FileWrite

_CHUNK = 1 << 20


def read(link: Session, target: str, path: str) -> bytes:
    """The contents of a file of the VM `target`; GuestError "file.ENOENT" and the like."""
    parts: list[bytes] = []
    offset = 0
    while True:
        got = link.call(FileRead(path, offset, _CHUNK), to=target)
        parts.append(got.data)
        offset += len(got.data)
        if got.eof or not got.data:
            return b"".join(parts)


def write(link: Session, target: str, path: str, data: bytes, mode: int) -> None:
    """Creates or replaces one."""
    view = memoryview(data)
    for offset in range(0, max(1, len(view)), _CHUNK):
        chunk = bytes(view[offset : offset + _CHUNK])
        link.call(FileWrite(path, chunk, offset, mode), to=target)
