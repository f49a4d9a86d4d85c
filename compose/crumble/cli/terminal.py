"""The user's terminal: raw while a guest's terminal is shown on it, restored whatever happens."""

from __future__ import annotations

import contextlib
import os
import termios
import tty
from collections.abc import Iterator


def size(fd: int) -> tuple[int, int]:
    """(rows, columns); (24, 80) when it is no terminal."""
    try:
        found = os.get_terminal_size(fd)
    except OSError:
        return 24, 80
    return (found.lines, found.columns) if found.lines and found.columns else (24, 80)


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Passes every key through, unchanged; nothing when `fd` is no terminal."""
    try:
        before = termios.tcgetattr(fd)
    except termios.error:
        yield
        return
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
