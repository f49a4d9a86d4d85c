"""Checked reading of the variable parts of requests."""

from __future__ import annotations

import errno

from crumble_fsd.filesystem import fail

_NAME_MAX = 255


def take_name(body: bytes, at: int = 0) -> bytes:
    """The file name at `at`, which must end in NUL. EINVAL, ENAMETOOLONG."""
    end = body.find(b"\0", at)
    if end <= at:
        fail(errno.EINVAL)
    name = body[at:end]
    if end - at > _NAME_MAX:
        fail(errno.ENAMETOOLONG)
    if b"/" in name or name == b"." or name == b"..":
        fail(errno.EINVAL)
    return name


def take_names(body: bytes, at: int, longest: int = 0) -> tuple[bytes, bytes]:
    """Two strings: a name, then another, or (with `longest`) any string up to that length."""
    first = take_name(body, at)
    at += len(first) + 1
    if not longest:
        return first, take_name(body, at)
    end = body.find(b"\0", at)
    if end <= at:
        fail(errno.EINVAL)
    if end - at > longest:
        fail(errno.ENAMETOOLONG)
    return first, body[at:end]


def take_attribute(body: bytes, at: int) -> bytes:
    """An extended attribute's name. EINVAL, ERANGE."""
    end = body.find(b"\0", at)
    if end <= at:
        fail(errno.EINVAL)
    if end - at > _NAME_MAX:
        fail(errno.ERANGE)
    return body[at:end]
