"""A recording gives back what was written, and no file makes its reader fail in another way than by saying so."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_common import wire
from crumble_common.errors import HostError, UsageError
from crumble_common.messages.vm import ProcessSignal
from crumble_vmm.recording import MAGIC, Head, Input, Item, Player, Recorder, Said, said

ABOUT = {"kernel": "k", "memory": "1"}
SIGNAL = Input(70, "slice", wire.encode(wire.Envelope(ProcessSignal(1, 15))))
ITEMS: list[Item] = [Said(3, 2, 9), SIGNAL, said(90, b"text")]


@pytest.fixture
def fd() -> Iterator[int]:
    made = os.memfd_create("recording")
    yield made
    os.close(made)


def record(fd: int) -> None:
    recorder = Recorder(fd, ABOUT)
    for item in ITEMS:
        recorder.write(item)


def rest(player: Player) -> list[Item]:
    found = []
    while (item := player.peek()) is not None:
        found.append(item)
        player.take()
    return found


def test_what_was_written_comes_back(fd: int) -> None:
    record(fd)
    player = Player(fd, ABOUT)
    assert player.peek() is player.peek()
    assert rest(player) == ITEMS
    assert player.peek() is None
    assert SIGNAL.message() == ProcessSignal(1, 15)
    assert ITEMS[2] == Said(90, 4, zlib.crc32(b"text"))


def test_it_ends_where_it_was_cut_off(fd: int) -> None:
    record(fd)
    os.truncate(fd, os.fstat(fd).st_size - 1)
    assert rest(Player(fd, ABOUT)) == ITEMS[:2]


def test_another_guest_is_refused(fd: int) -> None:
    record(fd)
    with pytest.raises(UsageError, match="another memory and another image"):
        Player(fd, {**ABOUT, "memory": "2", "image": "i"})


def write(fd: int, data: bytes) -> None:
    os.truncate(fd, 0)
    os.pwrite(fd, data, 0)


def framed(payload: bytes) -> bytes:
    return struct.pack("<II", len(payload), zlib.crc32(payload)) + payload


def of(body: Head | Item) -> bytes:
    return framed(wire.encode(wire.Envelope(body)))


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([b"text"], "replays version"),
        ([of(Head(2, ABOUT))], "replays version"),
        ([of(Head(1, ABOUT)), of(Head(1, ABOUT))], "begins twice"),
        ([of(Head(1, ABOUT)), of(Said(-1, 0, 0))], "below 0"),
        ([of(Head(1, ABOUT)), framed(wire.encode(wire.Envelope(ProcessSignal(1, 1))))], "kind"),
        ([of(Head(1, ABOUT)), struct.pack("<II", 1 << 30, 0)], "a record of"),
    ],
)
def test_what_is_no_recording_is_refused(fd: int, records: list[bytes], says: str) -> None:
    write(fd, MAGIC + b"".join(records))
    with pytest.raises(UsageError, match=says):
        rest(Player(fd, ABOUT))
    write(fd, b"something else")
    with pytest.raises(UsageError, match="begin as one"):
        Player(fd, ABOUT)


def test_a_changed_byte_is_noticed(fd: int) -> None:
    record(fd)
    at = os.fstat(fd).st_size - 1
    os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 1]), at)
    with pytest.raises(UsageError, match="has changed"):
        rest(Player(fd, ABOUT))


@given(st.lists(st.binary(max_size=40) | st.sampled_from([of(item) for item in ITEMS]), max_size=6))
def test_any_file_is_read_or_refused(pieces: list[bytes]) -> None:
    fd = os.memfd_create("recording")
    try:
        for begin in (b"", MAGIC + of(Head(1, ABOUT))):
            write(fd, begin + b"".join(pieces))
            try:
                found = rest(Player(fd, ABOUT))
                for item in found:
                    if isinstance(item, Input):
                        item.message()
            except UsageError as error:
                assert error.code in ("recording.corrupt", "recording.other")
    finally:
        os.close(fd)


@given(st.binary(max_size=60))
def test_any_payload_is_an_item_or_refused(payload: bytes) -> None:
    fd = os.memfd_create("recording")
    try:
        write(fd, MAGIC + of(Head(1, ABOUT)) + framed(payload))
        try:
            assert all(isinstance(item, Input | Said) for item in rest(Player(fd, ABOUT)))
        except UsageError as error:
            assert error.code == "recording.corrupt"
    finally:
        os.close(fd)


def test_a_full_disk_is_said() -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(HostError, match="written"):
        Recorder(full.fileno(), ABOUT)
