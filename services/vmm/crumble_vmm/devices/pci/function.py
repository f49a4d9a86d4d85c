"""One PCI function: configuration space, memory BARs, capabilities (PCI Local Bus 3.0, chapter 6).

A byte of configuration space is written where the mask allows it, and read as it was written. What a change
means is told to the owner: `changed`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from crumble_vmm.chipset.bus import Registers

CONFIG_SIZE = 4096
_COMMAND, _CAPABILITIES, _BAR0, _INTERRUPT_LINE = 0x04, 0x34, 0x10, 0x3C
_STATUS_CAPABILITIES = 1 << 4
_MEMORY, _BUS_MASTER, _NO_INTX = 1 << 1, 1 << 2, 1 << 10
_FIRST_CAPABILITY, _END_CAPABILITIES = 0x40, 0x100
_INTA = 1
_BARS = 6
CLASS_HOST_BRIDGE = 0x06_0000


class Function:
    """device: (vendor, device). subsystem: likewise. kind: class code. interrupts: it has INTA."""

    def __init__(
        self,
        device: tuple[int, int],
        kind: int,
        *,
        revision: int = 0,
        subsystem: tuple[int, int] = (0, 0),
        interrupts: bool = False,
    ) -> None:
        self.config = bytearray(CONFIG_SIZE)
        self._mask = bytearray(CONFIG_SIZE)
        self._next, self._last = _FIRST_CAPABILITY, _CAPABILITIES
        self.bars: dict[int, tuple[int, Registers]] = {}
        """By number: size, and what is there."""
        self.changed: Callable[[int, int], None] = lambda _offset, _size: None
        """Told of a write that may have changed these bytes."""
        self.reading: Callable[[int, int], None] = lambda _offset, _size: None
        """Told before these bytes are read."""
        struct.pack_into("<HH", self.config, 0, *device)
        struct.pack_into("<I", self.config, 8, kind << 8 | revision)
        struct.pack_into("<HH", self.config, 0x2C, *subsystem)
        command = _MEMORY | _BUS_MASTER | _NO_INTX
        struct.pack_into("<H", self._mask, _COMMAND, command)
        self._mask[_INTERRUPT_LINE] = 0xFF
        self.config[_INTERRUPT_LINE + 1] = _INTA if interrupts else 0

    def add_bar(self, number: int, size: int, registers: Registers) -> None:
        """A BAR of 32-bit memory, `size` a power of two from 4096 on."""
        assert size >= 4096 and size & (size - 1) == 0 and number < _BARS
        self.bars[number] = size, registers
        struct.pack_into("<I", self._mask, _BAR0 + 4 * number, -size & 0xFFFF_FFFF)

    def add_capability(self, number: int, body: bytes, writable: bytes = b"") -> int:
        """Appends one; gives its offset. body: after the header of two bytes; writable: its mask."""
        at, size = self._next, 2 + len(body)
        self._next += -(-size // 4) * 4
        assert self._next <= _END_CAPABILITIES
        self.config[at : at + size] = bytes((number, 0)) + body
        self._mask[at + 2 : at + 2 + len(writable)] = writable
        # The first is named at 0x34, the others by the one before.
        self.config[self._last] = at
        self._last = at + 1
        self.config[_COMMAND + 2] = _STATUS_CAPABILITIES
        return at

    def bar(self, number: int) -> int | None:
        """Where a BAR is decoded; None while it isn't."""
        (command,) = struct.unpack_from("<H", self.config, _COMMAND)
        return self.address(number) if command & _MEMORY else None

    def address(self, number: int) -> int:
        """What a BAR holds."""
        (value,) = struct.unpack_from("<I", self.config, _BAR0 + 4 * number)
        return int(value)

    def place(self, number: int, address: int) -> None:
        """As firmware does; not yet decoded."""
        struct.pack_into("<I", self.config, _BAR0 + 4 * number, address)

    def read(self, offset: int, size: int) -> int:
        """1, 2 or 4 bytes of configuration space."""
        self.reading(offset, size)
        return int.from_bytes(self.config[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """As read; bytes that are not to be written keep what they are."""
        for at in range(offset, min(offset + size, CONFIG_SIZE)):
            byte, mask = value >> 8 * (at - offset) & 0xFF, self._mask[at]
            self.config[at] = self.config[at] & ~mask | byte & mask
        self.changed(offset, size)

    def restore(self, config: bytes) -> None:
        """The configuration space of a captured one; ValueError where it could never be so."""
        if len(config) != CONFIG_SIZE:
            raise ValueError(f"a configuration space of {len(config)} bytes")
        for old, new, mask in zip(self.config, config, self._mask, strict=True):
            if (old ^ new) & ~mask & 0xFF:
                raise ValueError("the configuration space is another function's")
        self.config[:] = config


def host_bridge() -> Function:
    """The host bridge's own function, which Linux does not need but lspci shows: QEMU's generic one."""
    return Function((0x1B36, 0x0008), CLASS_HOST_BRIDGE)
