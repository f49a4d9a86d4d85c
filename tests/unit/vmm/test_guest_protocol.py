"""The agent protocol's host side: frames survive any cutting, and bad ones are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_common.errors import GuestError, UsageError
from crumble_vmm.guest import protocol
from crumble_vmm.guest.protocol import Frame, FrameReader, Spawn, ToGuest, ToHost

frames = st.builds(
    Frame,
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF_FFFF),
    st.integers(0, 0xFFFF_FFFF),
    st.integers(0, 0xFFFF),
    st.binary(max_size=300),
)


@given(st.lists(frames, max_size=8), st.integers(1, 64))
def test_frames_survive_any_cutting(sent: list[Frame], step: int) -> None:
    stream = b"".join(frame.encode() for frame in sent)
    reader = FrameReader()
    got = [
        frame
        for start in range(0, len(stream), step)
        for frame in reader.feed(stream[start : start + step])
    ]
    assert got == sent


@given(st.binary(max_size=200))
def test_garbage_is_frames_or_a_guest_error(data: bytes) -> None:
    try:
        for frame in FrameReader().feed(data):
            assert len(frame.payload) <= protocol.MAX_PAYLOAD
    except GuestError as error:
        assert error.code == "guest.agent"


def test_spawn_layout() -> None:
    data = protocol.encode_spawn(
        7, Spawn([b"ls", b"-l"], [b"A=1"], b"/tmp", tty=True, uid=1, gid=2, groups=[3, 4])
    )
    (frame,) = FrameReader().feed(data)
    assert (frame.type, frame.channel, frame.flags) == (ToGuest.SPAWN, 7, 0)
    assert frame.payload[:4] == bytes([protocol.SPAWN_TTY, 0, 0, 0])
    assert frame.payload[4:8] == bytes([24, 0, 80, 0])
    assert frame.payload[20:28] == bytes([3, 0, 0, 0, 4, 0, 0, 0])
    assert frame.payload.endswith(b"\x01\0\0\0\x03\0\0\0A=1\0")


def test_a_large_spawn_is_cut_into_marked_frames() -> None:
    data = protocol.encode_spawn(1, Spawn([b"x" * 100_000]))
    first, last = FrameReader().feed(data)
    assert (first.flags, last.flags) == (protocol.SPAWN_MORE, 0)
    assert len(first.payload) == protocol.MAX_PAYLOAD


@pytest.mark.parametrize(
    "spawn", [Spawn([b"x" * (1 << 20)]), Spawn([b"x"] * 9000), Spawn([b"a\0b"]), Spawn([])]
)
def test_spawns_the_agent_cannot_take_are_refused(spawn: Spawn) -> None:
    with pytest.raises(UsageError):
        protocol.encode_spawn(1, spawn)


def test_stdin_is_cut_and_ends_once() -> None:
    got = list(FrameReader().feed(protocol.encode_stdin(3, b"y" * 70_000, eof=True)))
    assert [frame.argument for frame in got] == [0, protocol.STDIN_EOF]
    assert b"".join(frame.payload for frame in got) == b"y" * 70_000
    (empty,) = FrameReader().feed(protocol.encode_stdin(3, b"", eof=True))
    assert (empty.payload, empty.argument) == (b"", protocol.STDIN_EOF)


def test_files_and_numbers() -> None:
    (frame,) = FrameReader().feed(protocol.encode_file_write(1, b"/a", 5, b"data", 0o644))
    assert frame.payload == b"\5\0\0\0\0\0\0\0\2\0\0\0/adata"
    biggest = b"z" * protocol.max_file_write(b"/a")
    (frame,) = FrameReader().feed(protocol.encode_file_write(1, b"/a", 0, biggest, 0o644))
    assert len(frame.payload) == protocol.MAX_PAYLOAD
    with pytest.raises(UsageError):
        protocol.encode_file_read(1, b"/" * 5000, 0, 10)
    assert protocol.decode_credit(2 << 28 | 77) == (2, 77)
    assert protocol.decode_exit(9 << 8) == (0, 9)


def test_ready() -> None:
    payload = b"\1\0\0\0\0\0\0\0\4\0\0\0init\2\0\0\0\0\0\0\0\5\0\0\0mount"
    assert protocol.decode_ready(payload) == [("init", 1), ("mount", 2)]
    assert protocol.decode_ready(b"") == []
    for cut in range(1, len(payload)):
        if cut != 16:
            with pytest.raises(GuestError):
                protocol.decode_ready(payload[:cut])
    assert ToHost.READY == 65
