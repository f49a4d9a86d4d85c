"""A 16550A UART: the guest kernel's console (NS16550A data sheet, National Semiconductor 1995).

The holding register is always empty, and the queue of received bytes longer than the chip's 16 (serial.py).
"""

from __future__ import annotations

from crumble_vmm.devices.serial import MAX_INPUT, SerialPort
from crumble_vmm.snapshot.state import UartState, in_range

SIZE = 0x100
# Register offsets; those of one number differ by direction or by LCR_DLAB.
RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7

IER_RDI, IER_THRI = 0x01, 0x02
IIR_NONE, IIR_THRI, IIR_RDI, IIR_FIFO = 0x01, 0x02, 0x04, 0xC0
FCR_ENABLE, FCR_CLEAR_RX = 0x01, 0x02
LCR_DLAB = 0x80
MCR_LOOP = 0x10
LSR_DR, LSR_THRE, LSR_TEMT = 0x01, 0x20, 0x40
MSR_CTS, MSR_DSR, MSR_DCD = 0x10, 0x20, 0x80


class Uart8250(SerialPort):
    """The UART."""

    state_type = UartState

    def reset(self) -> None:
        """Registers as after a master reset (data sheet, table 1)."""
        self._ier = self._lcr = self._mcr = self._scr = 0
        self._divisor = 1
        self._fifo = False
        self._thr_interrupt = False
        self._input.clear()
        self._line.set(False)

    def get_state(self) -> UartState:
        """Registers and waiting input."""
        with self._lock:
            return UartState(
                self._ier, self._lcr, self._mcr, self._scr, self._divisor, self._fifo,
                self._thr_interrupt, bytes(self._input),
            )  # fmt: skip

    def set_state(self, state: UartState) -> None:
        """Also drives the line accordingly."""
        with self._lock:
            self._ier = in_range("ier", state.ier, 4)
            self._lcr = in_range("lcr", state.lcr, 8)
            self._mcr = in_range("mcr", state.mcr, 5)
            self._scr = in_range("scr", state.scr, 8)
            self._divisor = in_range("divisor", state.divisor, 16)
            self._fifo, self._thr_interrupt = state.fifo, state.thr_interrupt
            self._input[:] = state.input[:MAX_INPUT]
            self._update()

    def mmio_read(self, offset: int, _size: int, /) -> int:
        """A byte register, whatever the width of the access."""
        with self._lock:
            return self._read(offset)

    def mmio_write(self, offset: int, _size: int, value: int, /) -> None:
        """A byte register, whatever the width of the access."""
        value &= 0xFF
        if offset == THR and not self._lcr & LCR_DLAB and not self._mcr & MCR_LOOP:
            self._output(bytes((value,)))
        with self._lock:
            self._write(offset, value)

    def _read(self, offset: int) -> int:
        if self._lcr & LCR_DLAB and offset in (DLL, DLM):
            return self._divisor >> 8 * offset & 0xFF
        if offset == LSR:
            return LSR_THRE | LSR_TEMT | (LSR_DR if self._input else 0)
        if offset == RBR:
            return self._take()
        if offset == IIR:
            return self._identify()
        if offset == MSR:
            return self._modem_status()
        return {IER: self._ier, LCR: self._lcr, MCR: self._mcr, SCR: self._scr}.get(offset, 0)

    def _take(self) -> int:
        byte = self._input.pop(0) if self._input else 0
        self._update()
        return byte

    def _identify(self) -> int:
        pending = self._pending()
        if pending == IIR_THRI:
            self._thr_interrupt = False
            self._update()
        return pending | (IIR_FIFO if self._fifo else 0)

    def _pending(self) -> int:
        if self._input and self._ier & IER_RDI:
            return IIR_RDI
        if self._thr_interrupt and self._ier & IER_THRI:
            return IIR_THRI
        return IIR_NONE

    def _modem_status(self) -> int:
        if not self._mcr & MCR_LOOP:
            return MSR_CTS | MSR_DSR | MSR_DCD
        # Looped back: DTR, RTS, OUT1, OUT2 come in as DSR, CTS, RI, DCD.
        mcr = self._mcr
        return (mcr & 1) << 5 | (mcr & 2) << 3 | (mcr & 4) << 4 | (mcr & 8) << 4

    def _write(self, offset: int, value: int) -> None:
        if self._lcr & LCR_DLAB and offset in (DLL, DLM):
            shift = 8 * offset
            self._divisor = self._divisor & ~(0xFF << shift) | value << shift
        elif offset == THR:
            self._transmit(value)
        elif offset == IER:
            self._thr_interrupt = self._thr_interrupt or bool(value & ~self._ier & IER_THRI)
            self._ier = value & 0x0F
        elif offset == FCR:
            self._fifo = bool(value & FCR_ENABLE)
            if value & FCR_CLEAR_RX:
                self._input.clear()
        elif offset == LCR:
            self._lcr = value
        elif offset == MCR:
            self._mcr = value & 0x1F
        elif offset == SCR:
            self._scr = value
        self._update()

    def _transmit(self, value: int) -> None:
        if self._mcr & MCR_LOOP and len(self._input) < MAX_INPUT:
            self._input.append(value)
        self._thr_interrupt = True

    def _update(self) -> None:
        self._line.set(self._pending() != IIR_NONE)
