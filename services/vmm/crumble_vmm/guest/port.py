"""Frames over the port: one buffer each way, neither ever blocking. In the dialect of crumble_ir.

Nothing is dropped: whoever adds a frame has asked room() first, and what finds no room is not read from
its source until there is some. What comes in is handled only while there is room for any answer.
"""

# mypy: ignore-errors

from __future__ import annotations

from crumble_ir import linux
from crumble_ir.dialect import array, format_into, i32, i64, ptr, static, u8, u16, u32
from crumble_ir.runtime import memory
from crumble_vmm.guest import protocol, state

# A virtio-console port gives at most a page at a time.
READ_ROOM = 4096
OUT_SIZE = 4 * protocol.MAX_PAYLOAD
IN_SIZE = 2 * protocol.MAX_PAYLOAD
# What the processes there are can still want to say without being asked: STARTED, EXITED, and credit for
# a whole window of stdin each, in quarters.
SMALL_ROOM = protocol.MAX_PROCESSES * 8 * protocol.HEADER_SIZE
# A frame that comes in is answered by at most one frame, and perhaps a LOG.
ANSWER_ROOM = SMALL_ROOM + protocol.MAX_PAYLOAD + 4 * protocol.HEADER_SIZE + 512

fd = static(i32)
# The host end is not there now: do not ask poll about it.
absent = static(bool)
_out = static(array[u8, OUT_SIZE])
_out_start = static(i64)
_out_end = static(i64)
_in = static(array[u8, IN_SIZE])
_in_start = static(i64)
_in_end = static(i64)
line = static(array[u8, 256])


def room() -> i64:
    """Bytes that can be added to what goes out."""
    return OUT_SIZE - (_out_end - _out_start)


def pending() -> bool:
    """Whether something waits to go out."""
    return _out_end > _out_start


def payload(count: i64) -> ptr[u8]:
    """Where the payload, of up to `count` bytes, of the next frame is to be written."""
    global _out_start, _out_end
    if OUT_SIZE - _out_end < count + protocol.HEADER_SIZE:
        memory.copy(_out, _out + _out_start, _out_end - _out_start)
        _out_end -= _out_start
        _out_start = 0
    assert OUT_SIZE - _out_end >= count + protocol.HEADER_SIZE, "the port's buffer is full"
    return _out + _out_end + protocol.HEADER_SIZE


def commit(kind: u16, flags: u16, channel: u32, argument: u32, count: i64) -> None:
    """Adds the frame whose payload of `count` bytes was just written."""
    global _out_end
    header = _out + _out_end
    state.put32(header, u32(count))
    state.put32(header + 4, u32(kind) | u32(flags) << 16)
    state.put32(header + 8, channel)
    state.put32(header + 12, argument)
    _out_end += protocol.HEADER_SIZE + count


def send(kind: u16, flags: u16, channel: u32, argument: u32) -> None:
    """Adds a frame without payload."""
    payload(0)
    commit(kind, flags, channel, argument, 0)


def log(count: i64) -> None:
    """Sends the text that was formatted into `line`."""
    memory.copy(payload(count), line, count)
    commit(protocol.ToHost.LOG, 0, 0, 0, count)


def flush() -> None:
    """Writes as much as the port takes."""
    global _out_start, _out_end
    while _out_end > _out_start:
        written = linux.write(fd, _out + _out_start, _out_end - _out_start)
        if written <= 0:
            return
        _out_start += written
    _out_start = 0
    _out_end = 0


def fill() -> i64:
    """Reads what the port has; gives what read() did: bytes, 0 for nobody there, or an errno."""
    global _in_start, _in_end
    if _in_start == _in_end:
        _in_start = 0
        _in_end = 0
    elif _in_start > 0 and IN_SIZE - _in_end < READ_ROOM:
        memory.copy(_in, _in + _in_start, _in_end - _in_start)
        _in_end -= _in_start
        _in_start = 0
    if _in_end == IN_SIZE:
        return -linux.EAGAIN
    count = linux.read(fd, _in + _in_end, IN_SIZE - _in_end)
    if count > 0:
        _in_end += count
    return count


def next_frame() -> ptr[u8]:
    """The header of a complete frame, or None. The frame stays valid until fill()."""
    global _in_start
    while _in_end - _in_start >= protocol.HEADER_SIZE:
        header = _in + _in_start
        count = i64(state.get32(header))
        if count > protocol.MAX_PAYLOAD:
            # Nothing says where the next frame begins: start anew with what comes later.
            _resynchronize(count)
            continue
        if _in_end - _in_start < protocol.HEADER_SIZE + count:
            return None
        _in_start += protocol.HEADER_SIZE + count
        return header
    return None


def buffered() -> bool:
    """Whether a complete frame waits, which poll() does not know of."""
    size = _in_end - _in_start
    if size < protocol.HEADER_SIZE:
        return False
    return size >= protocol.HEADER_SIZE + i64(state.get32(_in + _in_start))


def _resynchronize(count: i64) -> None:
    """Drops what cannot be a frame."""
    global _in_start, _in_end
    log(format_into(line, f"dropped {_in_end - _in_start} bytes: a frame claims {count}"))
    _in_start = 0
    _in_end = 0
