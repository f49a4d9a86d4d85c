"""What KVM forwards of a riscv64 guest's calls to its firmware (RISC-V SBI 2.0): the console. Timers, IPIs,
fences, hart states and resets are KVM's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from crumble_native.memory import Memory

SUCCESS, FAILED, NOT_SUPPORTED, INVALID_PARAM = 0, -1, -2, -3
LEGACY_PUT, LEGACY_GET, DBCN = 0x01, 0x02, 0x4442_434E
# The most a guest prints by one call that is taken at once; it goes on with the rest.
MAX_PRINT = 4096
_WRITE, _READ, _WRITE_BYTE = 0, 1, 2


class Firmware:
    """console: takes what the guest prints."""

    def __init__(self, memory: Memory, console: Callable[[bytes], None]) -> None:
        self._memory, self._console = memory, console

    def call(self, registers: Sequence[int]) -> tuple[int, int]:
        """a0 and a1 after a call with a0 to a7."""
        a0, a1, a2, *_, function, extension = registers
        if extension == LEGACY_PUT:
            self._console(bytes([a0 & 0xFF]))
            return SUCCESS, a1
        if extension == LEGACY_GET:
            return FAILED, a1
        if extension == DBCN:
            return self._debug_console(function, a0, a1, a2)
        return NOT_SUPPORTED, 0

    def _debug_console(self, function: int, a0: int, a1: int, a2: int) -> tuple[int, int]:
        """Chapter 12. There is never anything to read."""
        if function == _WRITE:
            size = min(a0, MAX_PRINT)
            if a2 != 0 or (size and not self._memory.has(a1, size)):
                return INVALID_PARAM, 0
            if size:
                self._console(self._memory.read(a1, size))
            return SUCCESS, size
        if function == _READ:
            return SUCCESS, 0
        if function == _WRITE_BYTE:
            self._console(bytes([a0 & 0xFF]))
            return SUCCESS, 0
        return NOT_SUPPORTED, 0
