"""What serial ports have in common: output byte by byte, and typed input that waits for the guest.

Transmission takes no time. Received bytes wait in a queue much longer than a chip's, so that a paste into a
terminal isn't lost.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable

from crumble_vmm.chipset.builder import RegisterDevice
from crumble_vmm.chipset.lines import Line

# More typed-ahead input than this is refused (see `receive`).
MAX_INPUT = 64 << 10


class SerialPort(RegisterDevice):
    """A UART. `output` gets each byte the guest sends, in a vCPU's thread."""

    def __init__(self, name: str, line: Line, output: Callable[[bytes], None]) -> None:
        self.name = name
        self._line = line
        self._output = output
        self._lock = threading.Lock()
        self._input = bytearray()
        self.reset()

    def receive(self, data: bytes) -> int:
        """Bytes for the guest; gives how many were taken."""
        with self._lock:
            taken = data[: MAX_INPUT - len(self._input)]
            self._input += taken
            self._update()
        return len(taken)

    @abstractmethod
    def _update(self) -> None:
        """Drives the line; under the lock."""
