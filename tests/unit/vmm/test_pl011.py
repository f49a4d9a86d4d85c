"""The PL011, as its driver uses it."""

import pytest

from crumble_vmm.chipset.lines import Line, Trigger
from crumble_vmm.devices import pl011
from crumble_vmm.devices.pl011 import Pl011
from crumble_vmm.devices.serial import MAX_INPUT
from crumble_vmm.snapshot.state import Pl011State


class Bench:
    def __init__(self) -> None:
        self.level = False
        self.sent = bytearray()
        self.uart = Pl011("serial", Line("serial", 1, Trigger.LEVEL, self.drive), self.sent.extend)

    def drive(self, _number: int, level: bool) -> None:
        self.level = level


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_driver_knows_it_by_its_number(bench: Bench) -> None:
    found = [bench.uart.mmio_read(at, 4) for at in range(0xFE0, 0x1000, 4)]
    assert found == [0x11, 0x10, 0x34, 0x00, 0x0D, 0xF0, 0x05, 0xB1]


def test_what_is_sent_is_out_at_once(bench: Bench) -> None:
    bench.uart.mmio_write(pl011.IMSC, 4, pl011.INT_TX)
    assert not bench.level
    for byte in b"hi":
        bench.uart.mmio_write(pl011.DR, 4, byte)
        assert bench.uart.mmio_read(pl011.FR, 4) & pl011.FR_TXFE
    assert bench.sent == b"hi"
    assert bench.level and bench.uart.mmio_read(pl011.MIS, 4) == pl011.INT_TX
    bench.uart.mmio_write(pl011.ICR, 4, pl011.INT_TX)
    assert not bench.level


def test_input_interrupts_until_it_is_read(bench: Bench) -> None:
    assert bench.uart.receive(b"ab") == 2
    assert not bench.level
    assert bench.uart.mmio_read(pl011.RIS, 4) == pl011.INT_RX | pl011.INT_RT
    bench.uart.mmio_write(pl011.IMSC, 4, pl011.INT_RX)
    assert bench.level
    bench.uart.mmio_write(pl011.ICR, 4, 0x7FF)
    assert bench.level, "there is still something to read"
    assert bytes(bench.uart.mmio_read(pl011.DR, 4) for _ in range(2)) == b"ab"
    assert not bench.level
    assert bench.uart.mmio_read(pl011.FR, 4) & pl011.FR_RXFE
    assert bench.uart.mmio_read(pl011.DR, 4) == 0
    assert bench.uart.receive(bytes(MAX_INPUT + 1)) == MAX_INPUT


def test_its_state_goes_into_another(bench: Bench) -> None:
    bench.uart.mmio_write(pl011.IMSC, 4, pl011.INT_RX)
    bench.uart.mmio_write(0x24, 4, 0x1_0013)
    bench.uart.receive(b"x")
    other = Bench()
    other.uart.set_state(bench.uart.get_state())
    assert other.level and other.uart.mmio_read(pl011.DR, 4) == ord("x")
    assert other.uart.mmio_read(0x24, 4) == 0x13
    with pytest.raises(ValueError):
        other.uart.set_state(Pl011State([0], 0, False, b""))
    with pytest.raises(ValueError):
        other.uart.set_state(Pl011State([0] * 7, 1 << 11, False, b""))
