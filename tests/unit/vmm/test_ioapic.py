"""The IOAPIC: which messages go out, and when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_vmm.chipset.ioapic import MASKED, NONE, PINS, Ioapic, Message

LEVEL, LOGICAL = 1 << 15, 1 << 11


class Wired:
    """An IOAPIC, what it sent, and the routes it told of."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.routes: dict[int, Message] = {}
        self.chip = Ioapic(self.sent.append, self.routes.__setitem__)

    def write(self, register: int, value: int) -> None:
        self.chip.mmio_write(0, 4, register)
        self.chip.mmio_write(0x10, 4, value)

    def read(self, register: int) -> int:
        self.chip.mmio_write(0, 4, register)
        return self.chip.mmio_read(0x10, 4)

    def program(self, pin: int, low: int, high: int = 0) -> None:
        self.write(0x11 + 2 * pin, high)
        self.write(0x10 + 2 * pin, low)


@pytest.fixture
def wired() -> Wired:
    return Wired()


def test_registers(wired: Wired) -> None:
    assert wired.read(1) == 23 << 16 | 0x11
    wired.write(0, 0xFFFF_FFFF)
    assert wired.read(0) == wired.read(2) == 0x0F00_0000
    assert wired.read(0x10) == MASKED and wired.read(0x3F) == 0
    wired.program(3, 0xFFFF_FFFF & ~MASKED, 0x1200_0000)
    assert wired.read(0x16) == 0xAFFF & 0xFFFF  # delivery status and remote IRR are not written
    assert wired.read(0x17) == 0x1200_0000
    assert wired.read(0xFF) == 0
    assert wired.chip.mmio_read(0x10, 1) == wired.chip.mmio_read(0x20, 4) == 0


def test_an_edge_is_sent_once(wired: Wired) -> None:
    wired.program(4, 0x31, 2 << 24)
    for level in (True, True, False, False, True):
        wired.chip.set_line(4, level)
    assert wired.sent == [(0xFEE0_2000, 0x31)] * 2


def test_a_masked_edge_is_sent_when_it_is_unmasked(wired: Wired) -> None:
    wired.program(4, 0x31 | MASKED)
    wired.chip.pulse(4)
    assert wired.sent == []
    wired.program(4, 0x31)
    wired.program(4, 0x32)
    assert wired.sent == [(0xFEE0_0000, 0x31)]


def test_a_level_is_sent_again_after_each_end(wired: Wired) -> None:
    wired.program(5, 0x41 | LEVEL)
    wired.chip.set_line(5, True)
    wired.chip.set_line(5, True)
    assert len(wired.sent) == 1 and wired.read(0x1A) & 1 << 14
    wired.chip.end_of_interrupt(0x40)
    assert len(wired.sent) == 1
    wired.chip.end_of_interrupt(0x41)
    assert wired.sent == [(0xFEE0_0000, 0x41 | LEVEL)] * 2
    wired.chip.set_line(5, False)
    wired.chip.end_of_interrupt(0x41)
    assert len(wired.sent) == 2 and not wired.read(0x1A) & 1 << 14


def test_routes_follow_the_table(wired: Wired) -> None:
    wired.program(16, 0x51 | LOGICAL, 3 << 24)
    assert wired.routes == {16: (0xFEE0_3004, 0x51)}
    wired.program(16, 0x51 | LOGICAL | MASKED, 3 << 24)
    assert wired.routes == {16: NONE}


ACTION = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 0x20), st.sampled_from([1, 4]), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("select"), st.integers(0x0F, 0x42), st.just(4), st.just(0)),
    st.tuples(st.just("line"), st.integers(0, PINS - 1), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("eoi"), st.integers(0, 255), st.just(0), st.just(0)),
)  # fmt: skip


@given(st.lists(ACTION, max_size=60))
def test_whatever_a_guest_does_messages_are_those_of_unmasked_pins(
    actions: list[tuple[str, int, int, int]],
) -> None:
    wired = Wired()
    for kind, a, b, c in actions:
        before = len(wired.sent)
        if kind == "write":
            wired.chip.mmio_write(a & ~3, b, c)
        elif kind == "select":
            wired.chip.mmio_write(0, 4, a)
        elif kind == "line":
            wired.chip.set_line(a, bool(b))
        else:
            wired.chip.end_of_interrupt(a)
        live = {wired.chip.message(pin) for pin in range(PINS)} - {NONE}
        assert set(wired.sent[before:]) <= live
        assert {message for message in wired.routes.values() if message != NONE} == live


def test_a_state_is_taken_over_with_its_routes(wired: Wired) -> None:
    wired.program(4, 0x31, 2 << 24)
    wired.program(5, 0x41 | LEVEL)
    wired.program(6, 0x51 | MASKED)
    wired.chip.set_line(5, True)
    wired.chip.pulse(6)
    other = Wired()
    other.chip.set_state(wired.chip.get_state())
    assert other.sent == []
    assert (other.routes[4], other.routes[6]) == ((0xFEE0_2000, 0x31), NONE)
    other.chip.end_of_interrupt(0x41)
    other.program(6, 0x51)
    assert other.sent == [(0xFEE0_0000, 0x41 | LEVEL), (0xFEE0_0000, 0x51)]


@given(st.binary(max_size=300))
def test_states_that_cannot_be(data: bytes) -> None:
    """Whatever the bytes, they are refused, or are what get_state gives."""
    chip = Wired().chip
    for state in (data, (data * 300)[: len(chip.get_state())]):
        try:
            chip.set_state(state)
        except ValueError:
            continue
        assert chip.get_state() == state
