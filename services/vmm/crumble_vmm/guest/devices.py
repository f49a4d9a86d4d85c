"""Modules, and the devices they bring: waited for by uevents, not by time. In the dialect of crumble_ir."""

# mypy: ignore-errors

from __future__ import annotations

from crumble_ir import linux
from crumble_ir.dialect import (
    array,
    format_into,
    i16,
    i32,
    i64,
    ptr,
    sizeof,
    static,
    struct,
    u8,
    u16,
    u32,
)
from crumble_ir.runtime import memory
from crumble_vmm.guest import protocol, state, system
from crumble_vmm.guest.system import give_up, sentence

# A device that is not there after this long is not coming: guests can be slow, hosts can be busy.
PATIENCE = 10 * system.SECOND
# struct linux_dirent64: the record's length, and where its name begins.
RECORD_SIZE_AT, NAME_AT = 16, 19
PORTS = b"/sys/class/virtio-ports"
DOT = b"."[0]


@struct
class NetlinkAddress:
    family: u16
    padding: u16
    port: u32
    groups: u32


@struct
class InterfaceRequest:
    name: array[u8, 16]
    flags: i16
    rest: array[u8, 22]


@struct
class PollFd:
    fd: i32
    events: i16
    revents: i16


_uevents = static(i32)
_entries = static(array[u8, 16384])
_entries_size = static(i64)
_path = static(array[u8, 320])
_name = static(array[u8, 256])


def listen() -> None:
    """Hears of devices from now on."""
    address: NetlinkAddress
    kind = linux.SOCK_DGRAM | linux.SOCK_CLOEXEC | linux.SOCK_NONBLOCK
    _set_uevents(linux.socket(linux.AF_NETLINK, kind, linux.NETLINK_KOBJECT_UEVENT))
    address.family = linux.AF_NETLINK
    address.padding = 0
    address.port = 0
    address.groups = 1
    if linux.bind(_uevents, address, sizeof(NetlinkAddress)) < 0:
        give_up(format_into(sentence, "cannot listen for devices."))


def _set_uevents(fd: i64) -> None:
    global _uevents
    _uevents = i32(fd)


def stop_listening() -> None:
    """Devices that come later are the guest's own business."""
    _set_uevents(i64(state.close(_uevents)))


def wait(due: i64) -> bool:
    """Until something happened to some device; False when it is too late."""
    time: state.Timespec
    entry: PollFd
    left = due - state.now()
    if left <= 0:
        return False
    time.seconds = left // system.SECOND
    time.nanoseconds = left % system.SECOND
    entry.fd = _uevents
    entry.events = linux.POLLIN
    entry.revents = 0
    linux.ppoll(entry, 1, time, None, 0)
    while linux.read(_uevents, _name, len(_name)) > 0:
        pass
    return True


# -- directories ------------------------------------------------------------------------------


def _list(path: ptr[u8]) -> None:
    """Reads a directory's entries (as many as fit: some hundreds) for _after to choose from."""
    global _entries_size
    _entries_size = 0
    flags = linux.O_RDONLY | linux.O_DIRECTORY | linux.O_CLOEXEC
    fd = linux.openat(linux.AT_FDCWD, path, flags, 0)
    if fd < 0:
        return
    while True:
        left = len(_entries) - _entries_size
        count = linux.getdents64(fd, _entries + _entries_size, left)
        if count <= 0:
            break
        _entries_size += count
    linux.close(fd)


def _after(last: ptr[u8]) -> ptr[u8]:
    """The smallest name greater than `last`, or None: walks a directory in order."""
    best: ptr[u8] = None
    at: i64 = 0
    while at < _entries_size:
        record = _entries + at
        name = record + NAME_AT
        at += i64(record[RECORD_SIZE_AT]) | i64(record[RECORD_SIZE_AT + 1]) << 8
        if name[0] != DOT and _less(last, name) and (best is None or _less(name, best)):
            best = name
    return best


def _less(one: ptr[u8], other: ptr[u8]) -> bool:
    index: i64 = 0
    while one[index] == other[index] and one[index] != 0:
        index += 1
    return one[index] < other[index]


# -- modules ----------------------------------------------------------------------------------


def load_modules() -> None:
    """Loads /modules/*.ko by name. One that fails may not matter: what does, says so later."""
    _list(b"/modules")
    name = _after(b"")
    while name is not None:
        format_into(_path, f"/modules/{name:s}")
        fd = linux.openat(linux.AT_FDCWD, _path, linux.O_RDONLY | linux.O_CLOEXEC, 0)
        error = state.error_of(linux.finit_module(fd, b"", 0))
        linux.close(fd)
        if error != 0 and error != linux.EEXIST:
            _complain(name, error)
        name = _after(name)


def _complain(name: ptr[u8], error: u32) -> None:
    fd = linux.openat(linux.AT_FDCWD, b"/dev/kmsg", linux.O_WRONLY | linux.O_CLOEXEC, 0)
    print(f"<4>crumble: module {name:s} cannot be loaded (error {error})", file=i32(fd))
    linux.close(fd)


def remove_modules() -> None:
    """Frees their memory: the initramfs is memory."""
    _list(b"/modules")
    name = _after(b"")
    while name is not None:
        format_into(_path, f"/modules/{name:s}")
        linux.unlinkat(linux.AT_FDCWD, _path, 0)
        name = _after(name)
    linux.unlinkat(linux.AT_FDCWD, b"/modules", linux.AT_REMOVEDIR)


# -- the agent's port -------------------------------------------------------------------------


def wait_for_port() -> i32:
    """Opens the virtio-console port named protocol.PORT_NAME as soon as it is there."""
    due = state.now() + PATIENCE
    while True:
        fd = _find_port()
        if fd >= 0:
            return i32(fd)
        if not wait(due):
            give_up(format_into(sentence, f"there is no virtio-console port {protocol.PORT_NAME}."))


def _find_port() -> i64:
    _list(PORTS)
    name = _after(b"")
    while name is not None:
        format_into(_path, f"{PORTS}/{name:s}/name")
        if _is_ours():
            format_into(_path, f"/dev/{name:s}")
            flags = linux.O_RDWR | linux.O_NONBLOCK | linux.O_CLOEXEC
            return linux.openat(linux.AT_FDCWD, _path, flags, 0)
        name = _after(name)
    return -linux.ENODEV


def _is_ours() -> bool:
    """Whether the file _path holds the port's name and a newline."""
    fd = linux.openat(linux.AT_FDCWD, _path, linux.O_RDONLY | linux.O_CLOEXEC, 0)
    count = linux.read(fd, _name, len(_name) - 1)
    linux.close(fd)
    if count != len(protocol.PORT_NAME) + 1:
        return False
    _name[count - 1] = 0
    return memory.same(_name, protocol.PORT_NAME)


def loopback_up() -> None:
    """ifconfig lo up."""
    fd = linux.socket(linux.AF_INET, linux.SOCK_DGRAM | linux.SOCK_CLOEXEC, 0)
    interface_up(fd, b"lo", 2)
    linux.close(fd)


def interface_up(fd: i64, name: ptr[u8], size: i64) -> None:
    """ifconfig NAME up, over any socket."""
    request: InterfaceRequest
    memory.clear(ptr[u8](request), sizeof(InterfaceRequest))
    memory.copy(request.name, name, size)
    if linux.ioctl(fd, linux.SIOCGIFFLAGS, request) == 0:
        request.flags = request.flags | linux.IFF_UP
        linux.ioctl(fd, linux.SIOCSIFFLAGS, request)
