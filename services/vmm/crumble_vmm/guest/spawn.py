"""SPAWN: reads the request, makes the process's ends, forks. In the dialect of crumble_ir."""

# mypy: ignore-errors

from __future__ import annotations

from crumble_ir import linux
from crumble_ir.dialect import (
    addr,
    array,
    format_into,
    i32,
    i64,
    ptr,
    sizeof,
    static,
    struct,
    u8,
    u16,
    u32,
    u64,
)  # fmt: skip
from crumble_ir.runtime import memory
from crumble_vmm.guest import child, handover, port, protocol, state
from crumble_vmm.guest.state import Process

TTY_GROUP = 5
UNCHANGED = 0xFFFFFFFF


@struct
class Cursor:
    data: ptr[u8]
    left: i64
    bad: bool


_cursor = static(Cursor)
# A request in several frames is put together here.
_assembled = static(array[u8, protocol.MAX_SPAWN])
_assembled_size = static(i64)
_assembling = static(bool)
_channel = static(u32)
_overflow = static(bool)


def receive(channel: u32, data: ptr[u8], count: i64, more: bool) -> None:
    """A SPAWN frame: a whole request, or the next part of one."""
    global _assembled_size, _assembling, _channel, _overflow
    if not more and not _assembling:
        _start(channel, data, count)
        return
    if not _assembling or channel != _channel:
        _assembling = True
        _channel = channel
        _assembled_size = 0
        _overflow = False
    if count > protocol.MAX_SPAWN - _assembled_size:
        _overflow = True
    else:
        memory.copy(_assembled + _assembled_size, data, count)
        _assembled_size += count
    if more:
        return
    _assembling = False
    if _overflow:
        _fail(channel, protocol.Stage.SETUP, linux.E2BIG)
    else:
        _start(channel, _assembled, _assembled_size)


def _fail(channel: u32, stage: u16, error: u32) -> None:
    port.send(protocol.ToHost.FAILED, stage, channel, error)


def _start(channel: u32, data: ptr[u8], count: i64) -> None:
    if channel == 0 or state.find(channel) is not None:
        port.log(format_into(port.line, f"SPAWN on channel {channel}, which is taken"))
        return
    if not _parse(data, count):
        port.log(format_into(port.line, f"malformed SPAWN on channel {channel}"))
        _fail(channel, protocol.Stage.SETUP, linux.EINVAL)
        return
    init = child.request.flags & protocol.SPAWN_INIT != 0
    if init and not handover.possible():
        _fail(channel, protocol.Stage.SETUP, linux.EBUSY)
        return
    process = state.allocate()
    if process is None:
        _fail(channel, protocol.Stage.SETUP, linux.EAGAIN)
        return
    _reset(process, channel)
    stage: u16 = protocol.Stage.SETUP
    error = _open_streams(process)
    if error == 0 and init:
        stage = protocol.Stage.EXEC
        error = _hand_over(process)
    elif error == 0:
        error = _fork(process)
    child.close_ends()
    if error != 0:
        state.release(process)
        _fail(channel, stage, error)


def _reset(process: ptr[Process], channel: u32) -> None:
    memory.clear(ptr[u8](process), sizeof(Process))
    process.channel = channel
    process.state = state.STARTING
    process.tty = child.request.flags & protocol.SPAWN_TTY != 0
    process.exec_fd = state.NONE
    process.stdin_fd = state.NONE
    for stream in range(state.OUTPUTS):
        process.output_fd[stream] = state.NONE
        process.credit[stream] = child.request.credit


# -- the request ------------------------------------------------------------------------------


def _take(count: i64) -> ptr[u8]:
    """The next `count` bytes; when they are not there the request is bad and zeros are given."""
    data = _cursor.data
    if count > _cursor.left:
        _cursor.bad = True
        return b"\0\0\0\0\0\0\0\0"
    _cursor.data += count
    _cursor.left -= count
    return data


def _take32() -> u32:
    return state.get32(_take(4))


def _take_string() -> ptr[u8]:
    """A counted string that also ends with NUL and has none inside."""
    count = i64(_take32())
    string = _take(count + 1)
    if not _cursor.bad and (string[count] != 0 or memory.length(string) != count):
        _cursor.bad = True
    return string


def _take_strings(into: ptr[u64], limit: i64) -> i64:
    """A counted list of strings, as the NULL-ended array execve wants; gives its length."""
    count = i64(_take32())
    if count > limit:
        _cursor.bad = True
    if _cursor.bad:
        return 0
    for index in range(count):
        into[index] = u64(_take_string())
    into[count] = 0
    return count


def _parse(data: ptr[u8], count: i64) -> bool:
    """Fills child.request, whose strings stay where they came in. False when it is malformed."""
    request = child.request
    _cursor.data = data
    _cursor.left = count
    _cursor.bad = False
    request.flags = _take32()
    request.size = _take32()
    request.uid = _take32()
    request.gid = _take32()
    request.group_count = _take32()
    if request.group_count > protocol.MAX_GROUPS:
        return False
    for index in range(request.group_count):
        child.groups[index] = _take32()
    request.credit = i64(_take32() & protocol.CREDIT_MASK)
    request.cwd = _take_string()
    words = _take_strings(child.arguments + child.SPARE, protocol.MAX_STRINGS)
    _take_strings(child.environment, protocol.MAX_STRINGS)
    return not _cursor.bad and words > 0


# -- its ends ---------------------------------------------------------------------------------


def _open_streams(process: ptr[Process]) -> u32:
    """Pipes or a terminal; gives an errno. The child's ends are left in child.ends."""
    for index in range(len(child.ends)):
        child.ends[index] = state.NONE
    if process.tty:
        return _open_terminal(process)
    error: u32 = 0
    if child.request.flags & protocol.SPAWN_STDIN != 0:
        error = _open_pipe(addr(child.ends[0]), addr(process.stdin_fd))
        _unblock(process.stdin_fd)
    for stream in range(state.OUTPUTS):
        if error == 0:
            error = _open_pipe(addr(process.output_fd[stream]), addr(child.ends[1 + stream]))
            _unblock(process.output_fd[stream])
    return error


def _open_pipe(reader: ptr[i32], writer: ptr[i32]) -> u32:
    ends: array[i32, 2]
    error = state.error_of(linux.pipe2(ends, linux.O_CLOEXEC))
    if error == 0:
        reader[0] = ends[0]
        writer[0] = ends[1]
    return error


def _unblock(fd: i32) -> None:
    """Only our end: an end is an open file of its own."""
    linux.fcntl(fd, linux.F_SETFL, linux.O_NONBLOCK)


def _open_terminal(process: ptr[Process]) -> u32:
    unlock: i32 = 0
    size: array[u32, 2]
    flags = linux.O_RDWR | linux.O_NOCTTY | linux.O_CLOEXEC
    master = linux.openat(linux.AT_FDCWD, b"/dev/ptmx", flags | linux.O_NONBLOCK, 0)
    if master < 0:
        return state.error_of(master)
    process.output_fd[0] = i32(master)
    # A number of its own for each direction: each is closed by itself.
    process.stdin_fd = i32(linux.fcntl(master, linux.F_DUPFD_CLOEXEC, 3))
    linux.ioctl(master, linux.TIOCSPTLCK, addr(unlock))
    slave = linux.ioctl(master, linux.TIOCGPTPEER, flags)
    if slave < 0:
        return state.error_of(slave)
    child.ends[0] = i32(slave)
    size[0] = child.request.size
    size[1] = 0
    linux.ioctl(master, linux.TIOCSWINSZ, size)
    linux.fchown(slave, child.request.uid, TTY_GROUP if state.is_init else UNCHANGED)
    return 0


def _fork(process: ptr[Process]) -> u32:
    """Starts the child; what it reports, or the end of its pipe, says how its exec went."""
    failure_fd: i32 = state.NONE
    error = _open_pipe(addr(process.exec_fd), addr(failure_fd))
    if error != 0:
        return error
    _unblock(process.exec_fd)
    pid = linux.clone(linux.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        child.run(process.tty, failure_fd)
    linux.close(failure_fd)
    process.pid = i32(pid)
    return state.error_of(pid)


def _hand_over(process: ptr[Process]) -> u32:
    """It becomes PID 1: whoever comes back without an error is the agent beside it."""
    error = handover.hand_over(process.tty)
    if error == 0:
        process.pid = handover.INIT
        process.state = state.RUNNING
        if process.tty:
            # Kept open: init closes it, and opens it as /dev/console when it has something to say.
            child.ends[0] = state.NONE
        port.send(protocol.ToHost.STARTED, 0, process.channel, handover.INIT)
    return error
