"""FILE_READ and FILE_WRITE, done as root, a frame at a time. In the dialect of crumble_ir.

Files are opened without blocking, so that a FIFO or a terminal cannot stop the agent.
"""

# mypy: ignore-errors

from __future__ import annotations

from crumble_ir import linux
from crumble_ir.dialect import array, format_into, i64, ptr, static, u8, u32
from crumble_ir.runtime import memory
from crumble_vmm.guest import port, protocol, state

FLAGS = linux.O_NONBLOCK | linux.O_CLOEXEC | linux.O_NOCTTY
OFFSET_SIZE = 8

_path = static(array[u8, protocol.MAX_PATH + 1])


def _set_path(data: ptr[u8], count: i64) -> bool:
    """Keeps a path, NUL-terminated; False when it cannot be one."""
    if count <= 0 or count > protocol.MAX_PATH:
        return False
    memory.copy(_path, data, count)
    _path[count] = 0
    return memory.length(_path) == count


def _done(channel: u32, error: u32) -> None:
    port.send(protocol.ToHost.FILE_DONE, 0, channel, error)


def _malformed(channel: u32) -> None:
    port.log(format_into(port.line, f"malformed file request on channel {channel}"))
    _done(channel, linux.EINVAL)


def read(channel: u32, size: u32, data: ptr[u8], count: i64) -> None:
    """FILE_READ: one FILE_DATA with all that is there up to `size`, or FILE_DONE with an errno."""
    if not _set_path(data + OFFSET_SIZE, count - OFFSET_SIZE):
        _malformed(channel)
        return
    offset = i64(state.get64(data))
    wanted = min(i64(size), protocol.MAX_PAYLOAD)
    fd = linux.openat(linux.AT_FDCWD, _path, linux.O_RDONLY | FLAGS, 0)
    if fd < 0:
        _done(channel, state.error_of(fd))
        return
    target = port.payload(wanted)
    got: i64 = 0
    result: i64 = 1
    while got < wanted and result > 0:
        result = linux.pread64(fd, target + got, wanted - got, offset + got)
        if result > 0:
            got += result
    linux.close(fd)
    if result < 0 and got == 0:
        _done(channel, state.error_of(result))
        return
    eof = u32(protocol.FILE_EOF) if result == 0 else u32(0)
    port.commit(protocol.ToHost.FILE_DATA, 0, channel, eof, got)


def sync(channel: u32) -> None:
    """SYNC: also pages that were written through mappings. Nothing else is served meanwhile."""
    if state.is_init:
        linux.sync()
    _done(channel, 0)


def write(channel: u32, mode: u32, data: ptr[u8], count: i64) -> None:
    """FILE_WRITE: creates when missing, truncates at offset 0; FILE_DONE says how it went."""
    head = OFFSET_SIZE + 4
    length: i64 = 0
    if count >= head:
        length = i64(state.get32(data + OFFSET_SIZE))
    if length > count - head or not _set_path(data + head, length):
        _malformed(channel)
        return
    offset = i64(state.get64(data))
    flags = linux.O_WRONLY | linux.O_CREAT | FLAGS
    if offset == 0:
        flags = flags | linux.O_TRUNC
    fd = linux.openat(linux.AT_FDCWD, _path, flags, mode & 0o7777)
    if fd < 0:
        _done(channel, state.error_of(fd))
        return
    source = data + (head + length)
    left = count - head - length
    result: i64 = 0
    while left > 0:
        result = linux.pwrite64(fd, source, left, offset)
        if result <= 0:
            break
        source += result
        offset += result
        left -= result
    linux.close(fd)
    _done(channel, state.error_of(min(result, 0)))
