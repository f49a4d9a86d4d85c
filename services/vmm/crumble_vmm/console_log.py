"""What the guest's kernel prints: kept, passed on, and read for the reason of its end.

Bytes come one by one from the UART, in vCPU threads; they are handed on in batches, in the loop's
thread. The last KEPT bytes stay for who asks why a guest died.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Protocol

KEPT = 64 << 10
_PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]*)")
# Printed when the kernel will sit there for ever: too early for panic=-1, or that was changed.
_STANDS = b"---[ end Kernel panic"
_PREFIX = re.compile(rb"^\[ *\d+\.\d+\] ?(\[ *T\d+\] ?)?")


class Loop(Protocol):
    """What is needed of the event loop."""

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Calls in the loop's thread."""


class ConsoleLog:
    """One guest's console. `forward(data)` gets everything, in the loop's thread.

    on_stand: called in the loop's thread when the kernel says that it panicked and does nothing more.
    """

    def __init__(self, loop: Loop, forward: Callable[[bytes], None]) -> None:
        self.on_stand: Callable[[], None] = lambda: None
        self._loop = loop
        self._forward = forward
        self._overlap = b""
        self._lock = threading.Lock()
        self._kept = bytearray()
        self._fresh = bytearray()

    def write(self, data: bytes) -> None:
        """The guest printed. Any thread."""
        with self._lock:
            self._kept += data
            if len(self._kept) > 2 * KEPT:
                del self._kept[:-KEPT]
            first = not self._fresh
            self._fresh += data
        if first:
            self._loop.call_soon_threadsafe(self.flush)

    def flush(self) -> None:
        """Hands on what has not been yet. In the loop's thread."""
        with self._lock:
            data = bytes(self._fresh)
            self._fresh.clear()
        if data:
            self._forward(data)
            recent = self._overlap + data
            self._overlap = recent[1 - len(_STANDS) :]
            if _STANDS in recent:
                self.on_stand()

    def tail(self) -> bytes:
        """The last bytes, at most KEPT."""
        with self._lock:
            return bytes(self._kept[-KEPT:])

    def restore(self, data: bytes) -> None:
        """What a predecessor's guest printed last: kept as if it had been printed here."""
        with self._lock:
            self._kept[:] = data[-KEPT:]

    def panic(self) -> str:
        """What the kernel said when it panicked, "" when it didn't."""
        found = _PANIC.search(self.tail())
        return _text(found[1]) if found else ""

    def after(self, marker: str) -> str:
        """The rest of the last line that holds `marker`, "" when there is none."""
        _, there, rest = self.tail().rpartition(marker.encode())
        return _text(re.split(rb"[\r\n]", rest)[0]) if there else ""

    def last_lines(self, count: int) -> str:
        """The last lines before the end, or before a panic; without the kernel's time stamps."""
        before_panic = self.tail().split(b"Kernel panic - not syncing")[0]
        lines = [_text(_PREFIX.sub(b"", line)) for line in before_panic.splitlines()]
        return "\n".join(list(filter(None, lines))[-count:])


def _text(data: bytes) -> str:
    """For a person's terminal: no control characters."""
    text = data.decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "?" for char in text).strip()
