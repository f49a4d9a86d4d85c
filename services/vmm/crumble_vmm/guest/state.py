"""What the agent knows: its processes and their rings. In the dialect of crumble_ir."""

# mypy: ignore-errors

from __future__ import annotations

from crumble_ir import linux
from crumble_ir.dialect import array, i32, i64, ptr, static, struct, u8, u32, u64
from crumble_vmm.guest import protocol

# A process's slot: unused; forked but not yet executed; running or not yet reported; reported, while
# a descendant of it still holds its output pipes (what it writes there is thrown away).
FREE, STARTING, RUNNING, LINGERING = 0, 1, 2, 3

# The host may send STDIN_WINDOW bytes ahead; two more are for the VEOFs that end a terminal's input.
RING = protocol.STDIN_WINDOW + 2
OUTPUTS = 2
NONE = -1


@struct
class Process:
    state: u8
    tty: bool
    reaped: bool
    stdin_ends: bool
    channel: u32
    pid: i32
    status: u32
    exec_fd: i32
    stdin_fd: i32
    output_fd: array[i32, OUTPUTS]
    credit: array[i64, OUTPUTS]
    heard: bool
    quiet_since: i64
    ring_start: i64
    ring_count: i64
    taken: i64
    own: i64
    last_byte: u8


@struct
class Timespec:
    seconds: i64
    nanoseconds: i64


table = static(array[Process, protocol.MAX_PROCESSES])
rings = static(array[u8, protocol.MAX_PROCESSES * RING])
# Slots from here on have never been used.
used = static(i64)

# Whether this is a guest's agent, with power over the machine, or a test's child.
is_init = static(bool)
# A program of the image is PID 1, and the agent lives beside it.
beside = static(bool)
# argv[0], where the kernel shows it to others.
name = static(ptr[u8])
null_fd = static(i32)
finished = static(bool)


def ring_of(process: ptr[Process]) -> ptr[u8]:
    """The stdin ring of a slot."""
    return rings + (process - table) * RING


def find(channel: u32) -> ptr[Process]:
    """The process of a channel that the host still knows, or None."""
    for index in range(used):
        process = table[index]
        if process.channel == channel and process.state in (STARTING, RUNNING):
            return process
    return None


def any_open() -> bool:
    """Whether the host still waits for the end of some process."""
    for index in range(used):
        if table[index].state in (STARTING, RUNNING):
            return True
    return False


def allocate() -> ptr[Process]:
    """A slot, or None when all are taken. Only ever gives up output that nobody reads."""
    global used
    for index in range(used):
        if table[index].state == FREE:
            return table[index]
    if used < len(table):
        used += 1
        return table[used - 1]
    for index in range(used):
        if table[index].state == LINGERING:
            release(table[index])
            return table[index]
    return None


def release(process: ptr[Process]) -> None:
    """Closes what a slot holds and frees it."""
    process.exec_fd = close(process.exec_fd)
    process.stdin_fd = close(process.stdin_fd)
    for stream in range(OUTPUTS):
        process.output_fd[stream] = close(process.output_fd[stream])
    process.state = FREE


def close(fd: i32) -> i32:
    """Closes `fd` if there is one; gives NONE."""
    if fd >= 0:
        linux.close(fd)
    return NONE


def now() -> i64:
    """CLOCK_MONOTONIC in nanoseconds."""
    time: Timespec
    linux.clock_gettime(linux.CLOCK_MONOTONIC, time)
    return time.seconds * 1000000000 + time.nanoseconds


def error_of(result: i64) -> u32:
    """The errno of a system call's result, 0 for success."""
    return u32(-result) if result < 0 else u32(0)


def get32(data: ptr[u8]) -> u32:
    """A little-endian u32, at any address."""
    return u32(data[0]) | u32(data[1]) << 8 | u32(data[2]) << 16 | u32(data[3]) << 24


def get64(data: ptr[u8]) -> u64:
    """A little-endian u64, at any address."""
    return u64(get32(data)) | u64(get32(data + 4)) << 32


def put32(data: ptr[u8], value: u32) -> None:
    """Writes a little-endian u32, at any address."""
    for index in range(4):
        data[index] = u8(value >> u32(index * 8))
