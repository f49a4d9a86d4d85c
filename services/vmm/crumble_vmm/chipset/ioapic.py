"""An IOAPIC (82093AA data sheet, Intel 1996) whose interrupts become messages to LAPICs that are elsewhere.

A pin's redirection entry says which message it sends. An edge is sent once; a level again after each
end of interrupt while it stays high. What a masked edge pin gets is sent when it is unmasked.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable

PINS = 24
SIZE = 0x1000
_SELECT, _WINDOW = 0x00, 0x10
_ID, _VERSION, _ARBITRATION, _TABLE = 0, 1, 2, 0x10
_VERSION_VALUE = (PINS - 1) << 16 | 0x11
# Redirection entry (§3.2.4).
_VECTOR, _DELIVERY, _LOGICAL = 0xFF, 0x700, 1 << 11
_PENDING, _REMOTE_IRR, _LEVEL, MASKED = 1 << 12, 1 << 14, 1 << 15, 1 << 16
_READ_ONLY = _PENDING | _REMOTE_IRR
# Message address and data (Intel SDM volume 3, 11.11).
_MESSAGE_BASE = 0xFEE0_0000
Message = tuple[int, int]
NONE: Message = (0, 0)
# Of a snapshot: select, ID; entries; wires and waiting edges, a bit a pin.
_STATE = struct.Struct(f"<BI{PINS}QII")


class Ioapic:
    """24 pins. Any thread.

    send: delivers a message. route: told of a pin's message whenever it changes, NONE while it is masked,
    for those who send it without this object.
    """

    def __init__(
        self, send: Callable[[Message], None], route: Callable[[int, Message], None]
    ) -> None:
        self._send, self._route = send, route
        self._lock = threading.Lock()
        self._select = self._id = 0
        self._entries = [MASKED] * PINS
        self._high = [False] * PINS  # the wires
        self._waiting = [False] * PINS  # an edge came while it was masked

    def mmio_read(self, offset: int, size: int) -> int:
        """Registers are 32 bits wide; others read as zero."""
        if size != 4:
            return 0
        with self._lock:
            if offset == _SELECT:
                return self._select
            return self._get(self._select) if offset == _WINDOW else 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """As mmio_read."""
        if size != 4:
            return
        with self._lock:
            if offset == _SELECT:
                self._select = value & 0xFF
            elif offset == _WINDOW and self._select == _ID:
                self._id = value & 0x0F00_0000
            elif offset == _WINDOW:
                self._set(self._select - _TABLE, value & 0xFFFF_FFFF)

    def set_line(self, pin: int, level: bool) -> None:
        """Drives a pin."""
        with self._lock:
            rises = level and not self._high[pin]
            self._high[pin] = level
            if self._entries[pin] & _LEVEL:
                self._deliver_level(pin)
            elif rises:
                self._deliver_edge(pin)

    def pulse(self, pin: int) -> None:
        """A whole edge."""
        with self._lock:
            self._deliver_edge(pin)

    def end_of_interrupt(self, vector: int) -> None:
        """A LAPIC's EOI of a level interrupt."""
        with self._lock:
            for pin, entry in enumerate(self._entries):
                if entry & _VECTOR == vector and entry & _REMOTE_IRR:
                    self._entries[pin] = entry & ~_REMOTE_IRR
                    self._deliver_level(pin)

    def message(self, pin: int) -> Message:
        """What a pin sends now; NONE when it is masked."""
        entry = self._entries[pin]
        if entry & MASKED:
            return NONE
        address = _MESSAGE_BASE | entry >> 56 << 12 | (4 if entry & _LOGICAL else 0)
        return address, entry & (_VECTOR | _DELIVERY | _LEVEL)

    def get_state(self) -> bytes:
        """Registers, wires, edges that wait."""
        with self._lock:
            bits = [
                sum(on << pin for pin, on in enumerate(of)) for of in (self._high, self._waiting)
            ]
            return _STATE.pack(self._select, self._id, *self._entries, *bits)

    def set_state(self, state: bytes) -> None:
        """What get_state gave; ValueError. Sends nothing."""
        try:
            select, number, *entries, high, waiting = _STATE.unpack(state)
        except struct.error:
            raise ValueError("an IOAPIC's state has another size") from None
        known = 0xFF << 56 | MASKED | 0xFFFF
        if (
            number & ~0x0F00_0000
            or high >> PINS
            or waiting >> PINS
            or any(e & ~known for e in entries)
        ):
            raise ValueError("an IOAPIC that cannot be")
        with self._lock:
            self._select, self._id, self._entries = select, number, entries
            self._high = [bool(high >> pin & 1) for pin in range(PINS)]
            self._waiting = [bool(waiting >> pin & 1) for pin in range(PINS)]
            for pin in range(PINS):
                self._route(pin, self.message(pin))

    def _get(self, register: int) -> int:
        if register in (_ID, _ARBITRATION):
            return self._id
        if register == _VERSION:
            return _VERSION_VALUE
        pin, high = divmod(register - _TABLE, 2)
        if not 0 <= pin < PINS:
            return 0
        return self._entries[pin] >> 32 * high & 0xFFFF_FFFF

    def _set(self, register: int, value: int) -> None:
        pin, high = divmod(register, 2)
        if not 0 <= pin < PINS:
            return
        old = self._entries[pin]
        if high:
            new = old & 0xFFFF_FFFF | value << 32
        else:
            new = old & ~0xFFFF_FFFF | value & ~_READ_ONLY & 0x1_FFFF | old & _READ_ONLY
        if not new & _LEVEL:
            new &= ~_REMOTE_IRR
        before = self.message(pin)
        self._entries[pin] = new
        if self.message(pin) != before:
            self._route(pin, self.message(pin))
        if new & _LEVEL:
            self._deliver_level(pin)
        elif self._waiting[pin]:
            self._deliver_edge(pin)

    def _deliver_edge(self, pin: int) -> None:
        message = self.message(pin)
        self._waiting[pin] = message == NONE
        if message != NONE:
            self._send(message)

    def _deliver_level(self, pin: int) -> None:
        message = self.message(pin)
        self._waiting[pin] = False
        if self._high[pin] and message != NONE and not self._entries[pin] & _REMOTE_IRR:
            self._entries[pin] |= _REMOTE_IRR
            self._send(message)
