"""A PL011 UART: the guest kernel's console on arm64 (ARM DDI 0183, chapter 3).

The FIFO is always empty, and the queue of received bytes longer than the chip's 16 (serial.py).
"""

from __future__ import annotations

from crumble_vmm.devices.primecell import ID_BASE, identification
from crumble_vmm.devices.serial import MAX_INPUT, SerialPort
from crumble_vmm.snapshot.state import Pl011State, in_range

SIZE = 0x1000
DR, FR, CR, IMSC, RIS, MIS, ICR = 0x00, 0x18, 0x30, 0x38, 0x3C, 0x40, 0x44
# Registers that hold what was written and do nothing: ILPR, IBRD, FBRD, LCR_H, CR, IFLS, DMACR.
_PLAIN = {0x20: 8, 0x24: 16, 0x28: 6, 0x2C: 8, CR: 16, 0x34: 6, 0x48: 3}
FR_CTS, FR_DSR, FR_DCD, FR_RXFE, FR_TXFE = 0x01, 0x02, 0x04, 0x10, 0x80
INT_RX, INT_TX, INT_RT = 0x10, 0x20, 0x40
_INT_BITS = 11
_PART = 0x0034_1011


class Pl011(SerialPort):
    """The UART."""

    state_type = Pl011State

    def reset(self) -> None:
        """Table 3-1."""
        self._plain = dict.fromkeys(_PLAIN, 0)
        self._plain[CR] = 0x300
        self._mask = 0
        self._sent = False
        self._input.clear()
        self._line.set(False)

    def get_state(self) -> Pl011State:
        """Registers and waiting input."""
        with self._lock:
            return Pl011State(
                list(self._plain.values()), self._mask, self._sent, bytes(self._input)
            )

    def set_state(self, state: Pl011State) -> None:
        """Also drives the line accordingly."""
        with self._lock:
            values = zip(_PLAIN.items(), state.plain, strict=True)
            self._plain = {at: in_range(f"{at:#x}", value, bits) for (at, bits), value in values}
            self._mask = in_range("mask", state.mask, _INT_BITS)
            self._sent = state.sent
            self._input[:] = state.input[:MAX_INPUT]
            self._update()

    def mmio_read(self, offset: int, _size: int, /) -> int:
        """A register, whatever the width of the access."""
        with self._lock:
            if offset == DR:
                byte = self._input.pop(0) if self._input else 0
                self._update()
                return byte
            if offset >= ID_BASE:
                return identification(_PART, offset)
            return {FR: self._flags(), IMSC: self._mask, RIS: self._raised(),
                    MIS: self._raised() & self._mask, **self._plain}.get(offset, 0)  # fmt: skip

    def mmio_write(self, offset: int, _size: int, value: int, /) -> None:
        """A register, whatever the width of the access."""
        if offset == DR:
            self._output(bytes((value & 0xFF,)))
        with self._lock:
            if offset == DR:
                self._sent = True
            elif offset == IMSC:
                self._mask = value & (1 << _INT_BITS) - 1
            elif offset == ICR:
                self._sent = self._sent and not value & INT_TX
            elif offset in _PLAIN:
                self._plain[offset] = value & (1 << _PLAIN[offset]) - 1
            self._update()

    def _flags(self) -> int:
        return FR_CTS | FR_DSR | FR_DCD | FR_TXFE | (0 if self._input else FR_RXFE)

    def _raised(self) -> int:
        """Sending raises TX, since the FIFO is empty again; input that waits, RX and RT."""
        return (INT_TX if self._sent else 0) | (INT_RX | INT_RT if self._input else 0)

    def _update(self) -> None:
        self._line.set(bool(self._raised() & self._mask))
