"""The agent protocol: what the host and the guest's agent say to each other on port "crumble.agent".

Declared once. The host uses the codec below; the guest's own source (agent.py, compiled by
crumble_ir) takes its numbers from this module at compile time. No I/O here.

A frame is a 16-byte little-endian header and a payload of at most MAX_PAYLOAD bytes:

    u32 payload length | u16 type | u16 flags | u32 channel | u32 argument

The host allocates channels (≥ 1): one a process from SPAWN to EXITED or FAILED, one a file request
until its answer. Channel 0 is the agent itself. Frames of one channel are handled in order.

Flow control: each side sends a stream's bytes only within credit. Output: SPAWN grants the first
credit for each of stdout and stderr, the host's CREDIT adds to it. Stdin: the host starts with
STDIN_WINDOW bytes, the guest's CREDIT adds to it. Bytes beyond credit are a protocol error: the
guest drops that frame and says so with LOG.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from crumble_common.errors import GuestError, UsageError

PORT_NAME = "crumble.agent"
VERSION = 1
HEADER_SIZE = 16
MAX_PAYLOAD = 65536

# The kernel parameter naming the virtio-fs tag of the root, and what init prints on the console
# (followed by a sentence) before it powers off when it cannot go on.
ROOT_PARAMETER = "crumble.root="
NETWORK_PARAMETER = "crumble.network="
INIT_FAILED = "crumble: init failed: "

STDIN_WINDOW = 65536
DEFAULT_CREDIT = 1 << 20
# CREDIT packs the stream number above the byte count.
CREDIT_SHIFT = 28
CREDIT_MASK = (1 << CREDIT_SHIFT) - 1

# What the agent can hold; beyond it SPAWN fails with EAGAIN (table) or E2BIG (parameters).
MAX_PROCESSES = 256
MAX_SPAWN = 1 << 19
MAX_STRINGS = 8192
MAX_GROUPS = 1024
MAX_PATH = 4095
MAX_HOSTNAME = 64
MAX_SEED = 512
MAX_NETWORK = 63


class ToGuest(IntEnum):
    """Frame types the host sends."""

    SPAWN = 1  # payload: see encode_spawn; flags SPAWN_MORE: the payload goes on in the next frame
    STDIN = 2  # payload: data; argument 1: end of input follows the data
    SIGNAL = 3  # argument: signal number, to the process's group
    RESIZE = 4  # argument: rows << 16 | cols
    CREDIT = 5  # argument: stream << 28 | bytes the host took
    FILE_READ = 6  # argument: size ≤ MAX_PAYLOAD; payload: u64 offset, path
    FILE_WRITE = 7  # argument: mode of a new file; payload: u64 offset, u32 path length, path, data
    SETUP = 8  # payload: u64 unix time ns (0: leave); u32 length + hostname, seed, network
    SHUTDOWN = 9  # argument: ms between SIGTERM and SIGKILL
    PING = 10  # argument and payload come back in PONG
    SYNC = 11  # what processes have written reaches the file systems; answered by FILE_DONE


class ToHost(IntEnum):
    """Frame types the guest sends."""

    READY = 65  # argument: VERSION; payload: phases of init, see decode_ready
    STARTED = 66  # argument: pid; the program has been executed
    OUTPUT = 67  # flags: stream 1 or 2; payload: data
    EXITED = 68  # argument: exit code | signal << 8; nothing follows on the channel
    FAILED = 69  # argument: errno; flags: a Stage; nothing follows on the channel
    CREDIT = 70  # argument: stream (0) << 28 | bytes of stdin the process took
    FILE_DATA = 71  # argument 1: end of file reached; payload: data
    FILE_DONE = 72  # argument: errno, 0 for success
    PONG = 73
    LOG = 74  # payload: one line of text, for a person


SPAWN_MORE = 1
SPAWN_TTY = 1
SPAWN_STDIN = 2
SPAWN_INIT = 4  # it becomes PID 1, as root; the agent goes on in another process
FILE_EOF = 1
STDIN_EOF = 1
STDIN, STDOUT, STDERR = 0, 1, 2


class Stage(IntEnum):
    """Where starting a process failed."""

    CHDIR = 1
    EXEC = 2
    SETUP = 3


_HEADER = struct.Struct("<IHHII")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. `type` is a plain int, so that unknown types can be carried and refused."""

    type: int
    channel: int = 0
    argument: int = 0
    flags: int = 0
    payload: bytes = b""

    def encode(self) -> bytes:
        """Header and payload."""
        if len(self.payload) > MAX_PAYLOAD:
            raise ValueError(f"frame payload of {len(self.payload)} bytes")
        header = _HEADER.pack(len(self.payload), self.type, self.flags, self.channel, self.argument)
        return header + self.payload


class FrameReader:
    """Cuts the byte stream of the port into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def waiting(self) -> bytes:
        """The start of a frame whose end has not come."""
        return bytes(self._buffer)

    def restore(self, data: bytes) -> None:
        """Goes on behind what another reader had; ValueError when that is no start of a frame."""
        if len(data) >= HEADER_SIZE + MAX_PAYLOAD:
            raise ValueError("the start of a frame is longer than one")
        self._buffer[:] = data

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Frame]:
        """Frames completed by `data`. Raises GuestError when the stream cannot be frames."""
        self._buffer += data
        position = 0
        try:
            while len(self._buffer) - position >= HEADER_SIZE:
                length, kind, flags, channel, argument = _HEADER.unpack_from(self._buffer, position)
                if length > MAX_PAYLOAD:
                    raise GuestError(
                        f"The guest's agent sent a frame of {length} bytes.",
                        code="guest.agent",
                        hint="Its memory is corrupted, or something else writes to its port.",
                    )
                end = position + HEADER_SIZE + length
                if len(self._buffer) < end:
                    break
                payload = bytes(self._buffer[position + HEADER_SIZE : end])
                position = end
                yield Frame(kind, channel, argument, flags, payload)
        finally:
            del self._buffer[:position]


@dataclass(frozen=True, slots=True)
class Spawn:
    """A process to start. Strings are bytes, as the guest's kernel sees them.

    env holds NAME=value. argv[0] without a slash is looked up in env's PATH. credit: bytes of each
    output stream the guest may send before a CREDIT. cwd must exist. init: it becomes PID 1, as root and in /, or FAILED
    says EBUSY.
    """

    argv: Sequence[bytes]
    env: Sequence[bytes] = ()
    cwd: bytes = b"/"
    tty: bool = False
    stdin: bool = False
    rows: int = 24
    cols: int = 80
    uid: int = 0
    gid: int = 0
    groups: Sequence[int] = ()
    credit: int = DEFAULT_CREDIT
    init: bool = False


def _string(data: bytes) -> bytes:
    if b"\0" in data:
        raise UsageError(
            "An argument, variable or directory of a command contains a NUL byte.",
            code="usage.nul",
            hint="Remove it.",
        )
    return struct.pack("<I", len(data)) + data + b"\0"


def _strings(items: Sequence[bytes]) -> bytes:
    return struct.pack("<I", len(items)) + b"".join(map(_string, items))


def encode_spawn(channel: int, spawn: Spawn) -> bytes:
    """SPAWN as one or more frames, to be sent with nothing in between.

    Raises UsageError when the command is too large for the agent.
    """
    flags = SPAWN_TTY * spawn.tty | SPAWN_STDIN * spawn.stdin | SPAWN_INIT * spawn.init
    groups = list(spawn.groups)[:MAX_GROUPS]
    payload = struct.pack(
        f"<IHHIII{len(groups)}II",
        flags,
        spawn.rows & 0xFFFF,
        spawn.cols & 0xFFFF,
        spawn.uid,
        spawn.gid,
        len(groups),
        *groups,
        min(spawn.credit, CREDIT_MASK),
    )
    payload += _string(spawn.cwd) + _strings(spawn.argv) + _strings(spawn.env)
    if len(payload) > MAX_SPAWN or len(spawn.argv) + len(spawn.env) > MAX_STRINGS:
        raise UsageError(
            f"The command's arguments and environment take {len(payload)} bytes.",
            code="usage.arguments",
            hint=f"Keep them under {MAX_SPAWN} bytes and {MAX_STRINGS} strings.",
        )
    if not spawn.argv:
        raise UsageError("No command was given.", code="usage.command", hint="Name a program.")
    pieces = [payload[i : i + MAX_PAYLOAD] for i in range(0, len(payload), MAX_PAYLOAD)]
    return b"".join(
        Frame(
            ToGuest.SPAWN,
            channel,
            flags=SPAWN_MORE if index < len(pieces) - 1 else 0,
            payload=piece,
        ).encode()
        for index, piece in enumerate(pieces)
    )


def encode_stdin(channel: int, data: bytes, *, eof: bool = False) -> bytes:
    """STDIN frames for `data`, which must be within credit; `eof` ends the stream after it."""
    pieces = [data[i : i + MAX_PAYLOAD] for i in range(0, len(data), MAX_PAYLOAD)] or [b""]
    last = len(pieces) - 1
    return b"".join(
        Frame(
            ToGuest.STDIN,
            channel,
            STDIN_EOF if eof and index == last else 0,
            payload=piece,
        ).encode()
        for index, piece in enumerate(pieces)
    )


def encode_signal(channel: int, signal: int) -> bytes:
    """SIGNAL: `signal` to the process's group."""
    return Frame(ToGuest.SIGNAL, channel, signal).encode()


def encode_resize(channel: int, rows: int, cols: int) -> bytes:
    """RESIZE of the process's terminal."""
    return Frame(ToGuest.RESIZE, channel, (rows & 0xFFFF) << 16 | (cols & 0xFFFF)).encode()


def encode_credit(channel: int, stream: int, size: int) -> bytes:
    """CREDIT: `size` more bytes of `stream` may come. Needs size ≤ CREDIT_MASK."""
    return Frame(ToGuest.CREDIT, channel, stream << CREDIT_SHIFT | (size & CREDIT_MASK)).encode()


def encode_file_read(channel: int, path: bytes, offset: int, size: int) -> bytes:
    """FILE_READ. One FILE_DATA answers with min(size, MAX_PAYLOAD) bytes or less at the file's end,
    or FILE_DONE with an errno."""
    payload = struct.pack("<Q", offset) + _path(path)
    return Frame(ToGuest.FILE_READ, channel, min(size, MAX_PAYLOAD), payload=payload).encode()


def max_file_write(path: bytes) -> int:
    """Bytes of data that fit in one FILE_WRITE to `path`."""
    return MAX_PAYLOAD - 12 - len(path)


def encode_file_write(channel: int, path: bytes, offset: int, data: bytes, mode: int) -> bytes:
    """FILE_WRITE, answered by FILE_DONE. Creates with `mode` when missing; offset 0 truncates first."""
    payload = struct.pack("<QI", offset, len(path)) + _path(path) + data
    return Frame(ToGuest.FILE_WRITE, channel, mode & 0o7777, payload=payload).encode()


def encode_sync(channel: int) -> bytes:
    """SYNC, answered by FILE_DONE."""
    return Frame(ToGuest.SYNC, channel).encode()


def _path(path: bytes) -> bytes:
    if not path or len(path) > MAX_PATH or b"\0" in path:
        raise UsageError(
            f"A path of {len(path)} bytes cannot be opened in the guest.",
            code="usage.path",
            hint=f"Give a path of 1 to {MAX_PATH} bytes without NUL.",
        )
    return path


def encode_setup(hostname: bytes, time_ns: int, seed: bytes, network: bytes = b"") -> bytes:
    """SETUP: hostname (empty: leave), clock (0: leave), entropy, MAC,ADDRESS/BITS,GATEWAY (empty: leave). Not answered."""
    hostname, seed = hostname[:MAX_HOSTNAME], seed[:MAX_SEED]
    payload = struct.pack("<QI", time_ns, len(hostname)) + hostname
    payload += struct.pack("<I", len(seed)) + seed
    payload += struct.pack("<I", len(network)) + network
    return Frame(ToGuest.SETUP, payload=payload).encode()


def encode_shutdown(grace_ms: int) -> bytes:
    """SHUTDOWN: SIGTERM to all, `grace_ms` later SIGKILL, sync, power off."""
    return Frame(ToGuest.SHUTDOWN, argument=min(grace_ms, 0xFFFF_FFFF)).encode()


def encode_ping(token: int) -> bytes:
    """PING: the agent answers PONG with the same token."""
    return Frame(ToGuest.PING, argument=token & 0xFFFF_FFFF).encode()


def decode_credit(argument: int) -> tuple[int, int]:
    """(stream, bytes) of a CREDIT's argument."""
    return argument >> CREDIT_SHIFT, argument & CREDIT_MASK


def decode_exit(argument: int) -> tuple[int, int]:
    """(exit code, signal) of an EXITED's argument; the signal is 0 for a normal exit."""
    return argument & 0xFF, argument >> 8 & 0xFF


def decode_ready(payload: bytes) -> list[tuple[str, int]]:
    """Init's phases: (name, ns of the guest's CLOCK_MONOTONIC at its start), in order.

    Raises GuestError for anything malformed.
    """
    phases: list[tuple[str, int]] = []
    position = 0
    while position < len(payload):
        if len(payload) - position < 12:
            break
        start, length = struct.unpack_from("<QI", payload, position)
        position += 12
        if length > 64 or len(payload) - position < length:
            break
        phases.append((payload[position : position + length].decode("ascii", "replace"), start))
        position += length
    else:
        return phases
    raise GuestError(
        "The guest's agent sent a malformed READY.",
        code="guest.agent",
        hint="Its version does not match this Crumble: remove the cached init.",
    )
