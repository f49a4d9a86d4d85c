"""gdb's packets, and a hart's registers by gdb's numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_vmm.debug import registers
from crumble_vmm.debug.packets import INTERRUPT, PACKET_SIZE, PacketReader, encode, escape, unescape


@given(st.binary())
def test_what_is_escaped_comes_back_and_has_no_special_bytes(data: bytes) -> None:
    body = escape(data)
    assert not set(body) & set(b"#$*")
    assert unescape(body) == data


@given(st.lists(st.binary(max_size=40)), st.data())
def test_packets_come_out_whole_however_they_are_cut(
    bodies: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(encode(escape(body)) for body in bodies)
    reader = PacketReader()
    found: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += reader.feed(stream[:size])
        stream = stream[size:]
    assert [unescape(body) for body in found] == bodies
    assert reader.answers() == b"+" * len(bodies)


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    PacketReader().feed(data)


def test_a_damaged_packet_is_asked_for_again() -> None:
    reader = PacketReader()
    assert reader.feed(b"$g#00") == []
    assert reader.answers() == b"-"
    assert reader.feed(b"\x03+$g#67") == [INTERRUPT, b"g"]
    assert reader.answers() == b"+"


def test_a_packet_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="without an end"):
        PacketReader().feed(b"$" + bytes(3 * PACKET_SIZE))


def state() -> dict[str, Any]:
    names = (
        "sstatus sie sip stvec sscratch sepc scause stval satp scounteren senvcfg stimecmp instret vstart vcsr vl vtype vlenb"
    ).split()
    return {
        "v": bytes(32 * registers.VLENB),
        "x": [0] * 32,
        "f": [0] * 32,
        "pc": 0,
        "fcsr": 0,
        "privilege": 1,
        **dict.fromkeys(names, 0),
    }


def test_every_register_reads_back_what_was_written() -> None:
    for number in range(1, registers.COUNT):
        held = state()
        value = (1).to_bytes(registers.size(number), "little")
        registers.write(held, number, value)
        names = [reg.get("name") for reg in ET.fromstring(registers.description()).iter("reg")]
        if names[number] not in ("instret", "vlenb"):
            assert registers.read(held, number) == value, names[number]
    for number, data in ((registers.COUNT, b"\0" * 8), (-1, b"\0" * 8), (1, b"\0" * 4)):
        with pytest.raises(ValueError, match="register"):
            registers.write(state(), number, data)


def test_the_description_numbers_registers_in_order() -> None:
    rows = list(ET.fromstring(registers.description()).iter("reg"))
    assert [int(row.get("regnum", "")) for row in rows] == list(range(registers.COUNT))
    assert all(int(row.get("bitsize", "")) == 8 * registers.size(at) for at, row in enumerate(rows))
