"""Runs of buffers, as a descriptor chain gives them."""

from __future__ import annotations


def total(views: list[memoryview]) -> int:
    """Their length together."""
    return sum(map(len, views))


def join(views: list[memoryview]) -> bytes:
    """A copy of all bytes."""
    return b"".join(views)


def first_bytes(views: list[memoryview], size: int) -> list[memoryview]:
    """Views of the first `size` bytes (or of all, when there are fewer)."""
    kept: list[memoryview] = []
    for view in views:
        if size <= len(view):
            if size:
                kept.append(view[:size])
            break
        kept.append(view)
        size -= len(view)
    return kept


def skip_bytes(views: list[memoryview], size: int) -> list[memoryview]:
    """Views of all but the first `size` bytes."""
    kept: list[memoryview] = []
    for view in views:
        if size >= len(view):
            size -= len(view)
        else:
            kept.append(view[size:] if size else view)
            size = 0
    return kept


def place(views: list[memoryview], data: bytes) -> None:
    """Copies `data` to the start of the views, which are long enough."""
    at = 0
    for view in views:
        part = data[at : at + len(view)]
        view[: len(part)] = part
        at += len(part)
        if at == len(data):
            return
    raise ValueError("the reply does not fit")
