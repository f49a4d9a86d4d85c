"""The generation ID: tells the guest's kernel that it is another VM than a moment ago.

Linux' driver ("microsoft,vmgenid" in the device tree) reads 16 bytes; when the interrupt says that they may
have changed, and they have, it reseeds its random pool before anyone draws from it. After a restore the agent
does so as well (guest/system.py); the kernel is sooner.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from crumble_vmm.chipset.builder import RegisterDevice
from crumble_vmm.chipset.lines import Line
from crumble_vmm.snapshot.state import NoState

SIZE = 0x1000
_ID_SIZE = 16


class GenerationId(RegisterDevice):
    """The bytes. Reading them is all a guest can do, and takes the interrupt back."""

    def __init__(self, name: str, line: Line, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self.name = name
        self._line = line
        self._lock = threading.Lock()
        self._id = entropy(_ID_SIZE)

    def reset(self) -> None:
        """It stays the same VM."""
        self._line.set(False)

    def mmio_read(self, offset: int, size: int, /) -> int:
        """Any piece."""
        with self._lock:
            self._line.set(False)
            return int.from_bytes(self._id[offset : offset + size], "little")

    def mmio_write(self, offset: int, size: int, value: int, /) -> None:
        """There is nothing to write."""

    def set_state(self, state: NoState) -> None:  # noqa: ARG002  there is none
        """A new VM, with an identity of its own: says so."""
        self._line.set(True)
