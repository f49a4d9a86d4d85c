"""The 16550A, driven as Linux's 8250 driver does."""

from crumble_vmm.chipset.lines import Line, Trigger
from crumble_vmm.devices import uart8250 as u
from crumble_vmm.devices.serial import MAX_INPUT
from crumble_vmm.devices.uart8250 import Uart8250


class Bench:
    def __init__(self) -> None:
        self.level = False
        self.sent = b""
        line = Line("uart", 10, Trigger.LEVEL, self.set_line)
        self.uart = Uart8250("uart", line, self.take)

    def set_line(self, number: int, level: bool) -> None:
        assert number == 10
        self.level = level

    def take(self, data: bytes) -> None:
        self.sent += data

    def read(self, offset: int) -> int:
        return self.uart.mmio_read(offset, 1)

    def write(self, offset: int, value: int) -> None:
        self.uart.mmio_write(offset, 1, value)


def test_polled_output() -> None:
    bench = Bench()
    for byte in b"hello":
        assert bench.read(u.LSR) & u.LSR_THRE
        bench.write(u.THR, byte)
    assert bench.sent == b"hello"
    assert not bench.level


def test_the_divisor_hides_data_and_interrupt_registers() -> None:
    bench = Bench()
    bench.write(u.IER, u.IER_RDI)
    bench.write(u.LCR, u.LCR_DLAB | 3)
    bench.write(u.DLL, 0x34)
    bench.write(u.DLM, 0x12)
    assert (bench.read(u.DLL), bench.read(u.DLM)) == (0x34, 0x12)
    bench.write(u.LCR, 3)
    assert bench.read(u.IER) == u.IER_RDI
    assert bench.sent == b""


def test_transmit_interrupt_comes_once_and_is_cleared_by_iir() -> None:
    bench = Bench()
    bench.write(u.IER, u.IER_THRI)
    assert bench.level
    assert bench.read(u.IIR) == u.IIR_THRI
    assert not bench.level
    assert bench.read(u.IIR) == u.IIR_NONE
    bench.write(u.THR, ord("x"))
    assert bench.level
    bench.write(u.IER, 0)
    assert not bench.level


def test_received_bytes_raise_the_line_until_taken() -> None:
    bench = Bench()
    bench.uart.receive(b"ab")
    assert not bench.level
    assert bench.read(u.LSR) & u.LSR_DR
    bench.write(u.IER, u.IER_RDI)
    assert bench.level
    assert bench.read(u.IIR) == u.IIR_RDI
    assert bytes((bench.read(u.RBR), bench.read(u.RBR))) == b"ab"
    assert not bench.level
    assert not bench.read(u.LSR) & u.LSR_DR
    assert bench.read(u.RBR) == 0


def test_receive_goes_before_transmit() -> None:
    bench = Bench()
    bench.write(u.IER, u.IER_RDI | u.IER_THRI)
    bench.uart.receive(b"a")
    assert bench.read(u.IIR) == u.IIR_RDI
    bench.read(u.RBR)
    assert bench.read(u.IIR) == u.IIR_THRI


def test_fifo_is_seen_and_cleared() -> None:
    bench = Bench()
    bench.uart.receive(b"junk")
    bench.write(u.FCR, u.FCR_ENABLE | u.FCR_CLEAR_RX)
    assert bench.read(u.IIR) == u.IIR_FIFO | u.IIR_NONE
    assert not bench.read(u.LSR) & u.LSR_DR


def test_loopback_brings_modem_lines_and_bytes_back() -> None:
    bench = Bench()
    assert bench.read(u.MSR) == u.MSR_CTS | u.MSR_DSR | u.MSR_DCD
    bench.write(u.MCR, u.MCR_LOOP | 0x0A)  # RTS, OUT2: as Linux's size test does
    assert bench.read(u.MSR) & 0xF0 == u.MSR_CTS | u.MSR_DCD
    bench.write(u.THR, 0x5A)
    assert bench.read(u.RBR) == 0x5A
    assert bench.sent == b""


def test_scratch_reset_and_registers_that_are_not_there() -> None:
    bench = Bench()
    bench.write(u.SCR, 0xA5)
    assert bench.read(u.SCR) == 0xA5
    bench.uart.receive(b"x")
    bench.write(u.IER, u.IER_RDI)
    bench.uart.reset()
    assert not bench.level
    assert bench.read(u.SCR) == 0
    bench.uart.mmio_write(0x80, 4, 0xFFFF_FFFF)
    assert bench.uart.mmio_read(0x80, 4) == 0


def test_input_is_bounded() -> None:
    bench = Bench()
    assert bench.uart.receive(b"x" * (MAX_INPUT + 5)) == MAX_INPUT
    assert bench.uart.receive(b"x") == 0
