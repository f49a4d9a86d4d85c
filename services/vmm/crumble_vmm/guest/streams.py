"""Bytes between processes and the port, within credit. In the dialect of crumble_ir."""

# mypy: ignore-errors

from __future__ import annotations

from crumble_ir import linux
from crumble_ir.dialect import array, format_into, i64, ptr, static, struct, u8, u16, u32
from crumble_ir.runtime import memory
from crumble_vmm.guest import port, protocol, state
from crumble_vmm.guest.state import Process

CHUNK = 32768
NEWLINE = b"\n"[0]
# Give credit back in steps of this, or when all has been taken.
CREDIT_STEP = protocol.STDIN_WINDOW // 4


@struct
class Termios:
    iflag: u32
    oflag: u32
    cflag: u32
    lflag: u32
    line: u8
    cc: array[u8, 19]


_trash = static(array[u8, CHUNK])


def readable(process: ptr[Process], stream: i64) -> bool:
    """Whether an output stream is to be read now."""
    if process.output_fd[stream] < 0:
        return False
    if process.state == state.LINGERING:
        return True
    if process.state != state.RUNNING or process.credit[stream] <= 0:
        return False
    return port.room() >= port.ANSWER_ROOM + protocol.HEADER_SIZE + CHUNK


def read_output(process: ptr[Process], stream: i64, now: i64) -> None:
    """Moves one chunk of output to the port; at its end closes the stream."""
    fd = process.output_fd[stream]
    if process.state == state.LINGERING:
        count = linux.read(fd, _trash, CHUNK)
    else:
        wanted = min(process.credit[stream], CHUNK)
        count = linux.read(fd, port.payload(wanted), wanted)
        if count > 0:
            number = u16(protocol.STDOUT + stream)
            port.commit(protocol.ToHost.OUTPUT, number, process.channel, 0, count)
            process.credit[stream] -= count
            process.quiet_since = now
    # EIO is how a terminal says that no process has it open any more.
    if count == 0 or (count < 0 and count not in (-linux.EAGAIN, -linux.EINTR)):
        process.output_fd[stream] = state.close(fd)


def add_credit(process: ptr[Process], argument: u32) -> None:
    """The host took bytes of an output stream."""
    stream = i64(argument >> protocol.CREDIT_SHIFT) - protocol.STDOUT
    if stream < 0 or stream >= state.OUTPUTS:
        port.log(format_into(port.line, f"CREDIT for stream {stream + 1}"))
        return
    process.credit[stream] += argument & protocol.CREDIT_MASK


def add_input(process: ptr[Process], data: ptr[u8], count: i64, ends: bool) -> None:
    """STDIN: keeps the bytes until the process takes them."""
    if process.stdin_ends:
        return
    if count > protocol.STDIN_WINDOW - process.ring_count - process.taken:
        port.log(format_into(port.line, f"STDIN of {count} bytes is beyond its credit"))
        return
    _append(process, data, count)
    if ends:
        process.stdin_ends = True
        if process.tty and process.stdin_fd >= 0:
            _append_end(process)
    if process.stdin_fd < 0:
        # Nobody will read it; the host must not wait for that.
        take(process, process.ring_count)
    end_input(process)


def _append(process: ptr[Process], data: ptr[u8], count: i64) -> None:
    ring = state.ring_of(process)
    end = (process.ring_start + process.ring_count) % state.RING
    first = min(count, state.RING - end)
    memory.copy(ring + end, data, first)
    memory.copy(ring, data + first, count - first)
    process.ring_count += count
    if count > 0:
        process.last_byte = data[count - 1]


def _append_end(process: ptr[Process]) -> None:
    """A terminal's input ends by VEOF; after an unfinished line the first only ends the line."""
    terminal: Termios
    byte: array[u8, 1]
    byte[0] = 4
    if linux.ioctl(process.stdin_fd, linux.TCGETS, terminal) == 0:
        byte[0] = terminal.cc[linux.VEOF]
    process.own = 1
    if process.last_byte != NEWLINE and process.last_byte != 0:
        _append(process, byte, 1)
        process.own = 2
    _append(process, byte, 1)


def write_input(process: ptr[Process]) -> None:
    """Gives the process what it takes of its ring."""
    while process.ring_count > 0:
        first = min(process.ring_count, state.RING - process.ring_start)
        data = state.ring_of(process) + process.ring_start
        count = linux.write(process.stdin_fd, data, first)
        if count in (-linux.EAGAIN, -linux.EINTR):
            break
        if count <= 0:
            # It closed its end (EPIPE; EIO on a terminal).
            count = process.ring_count
            process.stdin_fd = state.close(process.stdin_fd)
        take(process, count)
    end_input(process)


def end_input(process: ptr[Process]) -> None:
    """Closes a pipe whose last byte has been taken."""
    if process.stdin_ends and process.ring_count == 0 and not process.tty:
        process.stdin_fd = state.close(process.stdin_fd)


def take(process: ptr[Process], count: i64) -> None:
    """`count` bytes leave the ring. A terminal's VEOFs, at its end, were not the host's."""
    process.taken += min(count, process.ring_count - process.own)
    process.ring_start = (process.ring_start + count) % state.RING
    process.ring_count -= count
    process.own = min(process.own, process.ring_count)
    if process.ring_count == 0:
        process.ring_start = 0


def give_credit(process: ptr[Process]) -> None:
    """Tells the host what has left the ring, in steps."""
    if process.state != state.RUNNING or process.taken == 0:
        return
    if process.taken >= CREDIT_STEP or process.ring_count == 0:
        argument = u32(protocol.STDIN) << protocol.CREDIT_SHIFT | u32(process.taken)
        port.send(protocol.ToHost.CREDIT, 0, process.channel, argument)
        process.taken = 0


def resize(process: ptr[Process], rows: u32, cols: u32) -> None:
    """RESIZE: the terminal's foreground group gets SIGWINCH from the kernel."""
    size: array[u32, 2]
    size[0] = rows | cols << 16
    size[1] = 0
    if process.tty and process.output_fd[0] >= 0:
        linux.ioctl(process.output_fd[0], linux.TIOCSWINSZ, size)
