"""The agent's files, and what it makes of a host that does not keep to the protocol."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crumble_vmm.guest import protocol
from crumble_vmm.guest.protocol import Frame, Spawn, ToGuest, ToHost
from framework.agent_process import AgentHost, agent


@pytest.fixture(scope="module", params=["amd64", "arm64", "riscv64"])
def host(request: pytest.FixtureRequest) -> Iterator[AgentHost]:
    with agent(request.param) as found:
        yield found


def test_read(host: AgentHost, tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = bytes(range(256)) * 1000
    path.write_bytes(data)
    name = str(path).encode()
    frame = host.read_file(name)
    assert (frame.type, frame.argument, frame.payload) == (ToHost.FILE_DATA, 0, data[:65536])
    frame = host.read_file(name, 200_000, 60_000)
    assert (frame.argument, frame.payload) == (protocol.FILE_EOF, data[200_000:])
    frame = host.read_file(name, 10, 5)
    assert (frame.argument, frame.payload) == (0, data[10:15])
    assert host.read_file(name, 1 << 40).payload == b""
    assert host.read_file(name, 0, 0).payload == b""
    assert host.read_file(b"/proc/self/status").payload.startswith(b"Name:")
    path.write_bytes(b"")
    assert host.read_file(name).argument == protocol.FILE_EOF


def test_read_errors(host: AgentHost, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "loop").symlink_to("loop")
    cases = {
        b"/no/such": errno.ENOENT,
        b"/etc/passwd/x": errno.ENOTDIR,
        str(tmp_path).encode(): errno.EISDIR,
        str(tmp_path / "loop").encode(): errno.ELOOP,
        str(fifo).encode(): errno.ESPIPE,  # and, above all, no waiting for a writer
        b"x" * 300: errno.ENAMETOOLONG,
    }
    for path, number in cases.items():
        frame = host.read_file(path)
        assert (frame.type, frame.argument) == (ToHost.FILE_DONE, number), path
    assert host.read_file(b"/etc/passwd", 1 << 63).argument == errno.EINVAL


def test_write(host: AgentHost, tmp_path: Path) -> None:
    path = tmp_path / "file"
    name = str(path).encode()
    assert host.write_file(name, b"hello", mode=0o640) == 0
    assert path.read_bytes() == b"hello"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert host.write_file(name, b"J", 2) == 0
    assert path.read_bytes() == b"heJlo"
    assert host.write_file(name, b"x", 7) == 0
    assert path.read_bytes() == b"heJlo\0\0x"
    assert host.write_file(name, b"", 0) == 0
    assert path.read_bytes() == b""
    data = os.urandom(protocol.max_file_write(name))
    assert host.write_file(name, data, 0, 0o777) == 0
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_write_errors(host: AgentHost, tmp_path: Path) -> None:
    assert host.write_file(b"/no/such/file", b"x") == errno.ENOENT
    assert host.write_file(str(tmp_path).encode(), b"x") == errno.EISDIR
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert host.write_file(str(fifo).encode(), b"x") == errno.ENXIO
    assert host.write_file(b"/dev/full", b"x") == errno.ENOSPC


# -- hosts that break the protocol ------------------------------------------------------------


def alive(host: AgentHost) -> None:
    """The agent answers, and still starts processes."""
    host.ping()
    assert host.run("echo", "alive")[0] == b"alive\n"


def test_malformed_requests_are_named(host: AgentHost) -> None:
    before = len(host.logs())
    for frame in (
        Frame(200),
        Frame(0, 5, 5, 5, b"x"),
        Frame(ToGuest.SETUP, payload=b"short"),
        Frame(ToGuest.SETUP, payload=struct.pack("<QI", 0, 65) + bytes(80)),
        Frame(ToGuest.SETUP, payload=struct.pack("<QII", 0, 0, 513) + bytes(600)),
        Frame(ToGuest.SETUP, payload=struct.pack("<QII", 0, 0, 10) + bytes(9)),
        Frame(ToGuest.SPAWN, 900, payload=b""),
        Frame(ToGuest.SPAWN, 0, payload=b""),
        Frame(ToGuest.FILE_READ, 901, 10, payload=b"12345678"),
        Frame(ToGuest.FILE_READ, 902, 10, payload=b"12345678/a\0b"),
        Frame(ToGuest.FILE_READ, 903, 10, payload=b"1"),
        Frame(ToGuest.FILE_READ, 904, 10, payload=b"12345678" + b"x" * 5000),
        Frame(ToGuest.FILE_WRITE, 905, 10, payload=struct.pack("<QI", 0, 50) + b"short"),
        Frame(ToGuest.FILE_WRITE, 906, 10, payload=struct.pack("<QI", 0, 0xFFFFFFFF) + b"x"),
        Frame(ToGuest.FILE_WRITE, 907, 10, payload=b"xx"),
    ):
        host.send(frame.encode())
    alive(host)
    assert len(host.logs()) - before == 15
    for channel in range(901, 908):
        assert [frame.argument for frame in host.of(channel)] == [errno.EINVAL]
    assert [frame.type for frame in host.of(900)] == [ToHost.FAILED]


def test_every_cut_of_a_spawn_is_refused(host: AgentHost) -> None:
    spawn = Spawn([b"/bin/true", b"a"], [b"PATH=/bin"], b"/", groups=[1, 2])
    whole = protocol.encode_spawn(1, spawn)[protocol.HEADER_SIZE :]
    first = host.channel() + 10_000
    for size in range(len(whole)):
        host.send(Frame(ToGuest.SPAWN, first + size, payload=whole[:size]).encode())
    alive(host)
    for size in range(len(whole)):
        (frame,) = host.of(first + size)
        assert (frame.type, frame.argument) == (ToHost.FAILED, errno.EINVAL)


def test_spawn_pieces_mixed_up(host: AgentHost) -> None:
    more = protocol.SPAWN_MORE
    whole = protocol.encode_spawn(1, Spawn([b"/bin/echo", b"pieces"]))[protocol.HEADER_SIZE :]
    one, two, three = (host.channel() for _ in range(3))
    # Another channel's request takes the place of one that was begun.
    host.send(Frame(ToGuest.SPAWN, one, flags=more, payload=whole[:10]).encode())
    host.send(Frame(ToGuest.SPAWN, two, flags=more, payload=whole[:20]).encode())
    host.send(Frame(ToGuest.PING).encode())
    host.send(Frame(ToGuest.SPAWN, two, payload=whole[20:]).encode())
    assert host.exit(two) == (0, 0)
    assert host.output(two) == b"pieces\n"
    for _ in range(9):
        host.send(Frame(ToGuest.SPAWN, three, flags=more, payload=bytes(65536)).encode())
    host.send(Frame(ToGuest.SPAWN, three).encode())
    assert host.wait(three, ToHost.FAILED).argument == errno.E2BIG
    assert not host.of(one)
    alive(host)


def test_a_channel_that_is_taken(host: AgentHost) -> None:
    channel = host.spawn("cat", stdin=True)
    host.wait(channel, ToHost.STARTED)
    host.send(protocol.encode_spawn(channel, Spawn([b"/bin/echo", b"second"])))
    host.send(protocol.encode_credit(channel, 7, 5))
    host.feed(channel, b"first")
    assert host.exit(channel) == (0, 0)
    assert host.output(channel) == b"first"


def test_an_impossible_length_ends_nothing(host: AgentHost) -> None:
    host.send(struct.pack("<IHHII", 0xFFFFFFFF, 1, 0, 1, 0))
    host.until(lambda: any("a frame claims" in line for line in host.logs()))
    alive(host)


kinds = st.sampled_from([*(int(kind) for kind in ToGuest if kind != ToGuest.SHUTDOWN), 0, 11, 65])
hostile = st.builds(
    Frame,
    kinds,
    st.integers(0, 3),
    st.one_of(st.integers(0, 0xFFFF_FFFF), st.sampled_from([0, 1, 9, 1 << 28, 2 << 28])),
    st.integers(0, 3),
    st.one_of(
        st.binary(max_size=64),
        st.builds(
            lambda seed, size: Random(seed).randbytes(size),
            st.integers(0, 99),
            st.integers(0, 65536),
        ),
        st.builds(
            lambda data, at, value: data[:at] + bytes([value]) + data[at + 1 :],
            st.just(protocol.encode_spawn(1, Spawn([b"/bin/cat"], [b"A=B"], stdin=True))[16:]),
            st.integers(0, 60),
            st.integers(0, 255),
        ),
    ),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(hostile, min_size=1, max_size=10))
def test_hostile_frames(host: AgentHost, frames: list[Frame]) -> None:
    """Invariant: whatever frames come, the agent goes on answering and breaks no frame of its own."""
    for frame in frames:
        # Paths a fuzzer makes up must not be written to on this machine.
        if frame.type != ToGuest.FILE_WRITE:
            host.send(frame.encode())
    host.ping()
    for channel in range(1, 4):
        host.send(protocol.encode_signal(channel, 9))
    host.ping()


def test_garbage_instead_of_frames() -> None:
    """Invariant: bytes that are no frames never make the agent fail; it ends when the host leaves."""
    random = Random(5)
    for _ in range(10):
        with agent("amd64") as host:
            data = bytearray(random.randbytes(random.randrange(1, 5000)))
            # Types that act on the machine are left out: this is not a guest.
            for at in range(0, len(data) - 8, 4):
                if data[at + 1] == 0 and data[at] in (ToGuest.FILE_WRITE, ToGuest.SPAWN):
                    data[at] = 200
            host.sock.sendall(data)
            host.sock.shutdown(socket.SHUT_WR)
