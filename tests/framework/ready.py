"""Waiting for file descriptors, whatever their numbers (select(2) stops at 1,024)."""

from __future__ import annotations

import select
from typing import Any


def readable(*sources: Any, timeout: float) -> list[Any]:
    """Those of `sources` (fds or things with fileno()) that can be read within `timeout` seconds."""
    by_number = {_number(source): source for source in sources}
    poller = select.poll()
    for number in by_number:
        poller.register(number, select.POLLIN)
    return [by_number[number] for number, _ in poller.poll(timeout * 1000)]


def readable_or_writable(source: Any, *, timeout: float) -> tuple[bool, bool]:
    """Whether `source` can be read, and written, waiting `timeout` seconds for either."""
    poller = select.poll()
    poller.register(source, select.POLLIN | select.POLLOUT)
    events = dict(poller.poll(timeout * 1000)).get(_number(source), 0)
    gone = select.POLLHUP | select.POLLERR
    return bool(events & (select.POLLIN | gone)), bool(events & (select.POLLOUT | gone))


def _number(source: Any) -> int:
    return source if isinstance(source, int) else int(source.fileno())
