"""File systems: the first ones, the root, and what a root needs around it. In the dialect of crumble_ir."""

# mypy: ignore-errors

from __future__ import annotations

from crumble_ir import linux
from crumble_ir.dialect import array, format_into, i64, ptr, static, u8, u32
from crumble_ir.runtime import memory
from crumble_vmm.guest import devices, protocol, state
from crumble_vmm.guest.system import give_up, sentence

SPACE, NEWLINE = b" "[0], b"\n"[0]
MAX_TAG = 36  # virtio-fs's own limit (virtio 1.2 §5.11.4)
SAFE = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC

_command_line = static(array[u8, 4096])
parameter = static(ptr[u8])
_tag = static(array[u8, MAX_TAG + 1])
_path = static(array[u8, 64])


def base() -> None:
    """/dev, /proc and /sys of the initramfs."""
    _mount(b"devtmpfs", b"/dev", b"devtmpfs", linux.MS_NOSUID, b"mode=755")
    _mount(b"proc", b"/proc", b"proc", SAFE, None)
    _mount(b"sysfs", b"/sys", b"sysfs", SAFE, None)


def _mount(source: ptr[u8], target: ptr[u8], kind: ptr[u8], flags: i64, options: ptr[u8]) -> None:
    """Mounts, making the mount point; what init cannot do without."""
    linux.mkdirat(linux.AT_FDCWD, target, 0o755)
    error = state.error_of(linux.mount(source, target, kind, flags, options))
    if error != 0 and error != linux.EBUSY:
        give_up(format_into(sentence, f"cannot mount {kind:s} on {target:s} (error {error})."))


# -- the root ---------------------------------------------------------------------------------


def find_root() -> bool:
    """Reads the root's tag from the kernel's command line; False when none is named."""
    return find_parameter(protocol.ROOT_PARAMETER) and _take_tag(parameter)


def find_parameter(name: ptr[u8]) -> bool:
    """Finds `name` ("…=") on the kernel's command line: `parameter` is what follows it, up to a space."""
    global parameter
    fd = linux.openat(linux.AT_FDCWD, b"/proc/cmdline", linux.O_RDONLY | linux.O_CLOEXEC, 0)
    count = linux.read(fd, _command_line, len(_command_line) - 1)
    linux.close(fd)
    if count < 0:
        count = 0
    _command_line[count] = 0
    at: i64 = 0
    while at < count:
        if memory.starts_with(_command_line + at, name):
            parameter = _command_line + (at + memory.length(name))
            return True
        while at < count and _command_line[at] != SPACE:
            at += 1
        at += 1
    return False


def _take_tag(text: ptr[u8]) -> bool:
    size: i64 = 0
    while text[size] not in (0, SPACE, NEWLINE):
        if size == MAX_TAG:
            give_up(format_into(sentence, "the root's tag is too long."))
        _tag[size] = text[size]
        size += 1
    _tag[size] = 0
    return size > 0


def mount_root() -> None:
    """The virtio-fs file system of the tag, as soon as its device is there, on /root."""
    linux.mkdirat(linux.AT_FDCWD, b"/root", 0o755)
    due = state.now() + devices.PATIENCE
    while True:
        error = state.error_of(linux.mount(_tag, b"/root", b"virtiofs", 0, None))
        if error == 0:
            return
        # EINVAL: no device has this tag, yet.
        if error != linux.EINVAL or not devices.wait(due):
            give_up(
                format_into(
                    sentence, f"cannot mount the root, virtio-fs tag {_tag:s} (error {error})."
                )
            )


def switch_root() -> None:
    """Moves the mounts over, empties the initramfs, and makes /root the root."""
    _move(b"/dev", b"/root/dev")
    _move(b"/proc", b"/root/proc")
    _move(b"/sys", b"/root/sys")
    devices.remove_modules()
    linux.unlinkat(linux.AT_FDCWD, b"/init", 0)
    linux.chdir(b"/root")
    error = state.error_of(linux.mount(b".", b"/", None, linux.MS_MOVE, None))
    if error == 0:
        error = state.error_of(linux.chroot(b"."))
    if error != 0:
        give_up(format_into(sentence, f"cannot switch to the root (error {error})."))
    linux.chdir(b"/")


def _move(source: ptr[u8], target: ptr[u8]) -> None:
    error = state.error_of(linux.mount(source, target, None, linux.MS_MOVE, None))
    if error != 0:
        give_up(format_into(sentence, f"the root has no usable {target:s} (error {error})."))


# -- around the root --------------------------------------------------------------------------


def populate(root: ptr[u8]) -> None:
    """What programs expect of a machine. Of these, what cannot be had is done without."""
    _directory(root, b"/dev", 0o755)
    _directory(root, b"/proc", 0o755)
    _directory(root, b"/sys", 0o755)
    _directory(root, b"/tmp", 0o1777)
    _extra(
        b"",
        b"/dev/pts",
        b"devpts",
        linux.MS_NOSUID | linux.MS_NOEXEC,
        b"mode=620,gid=5,ptmxmode=666",
    )
    _extra(b"", b"/dev/shm", b"tmpfs", linux.MS_NOSUID | linux.MS_NODEV, b"mode=1777")
    _extra(b"", b"/dev/mqueue", b"mqueue", SAFE, None)
    _extra(b"", b"/sys/fs/cgroup", b"cgroup2", SAFE, None)
    _extra(root, b"/run", b"tmpfs", linux.MS_NOSUID | linux.MS_NODEV, b"mode=755")
    _directory(root, b"/run/lock", 0o1777)
    linux.symlinkat(b"/proc/self/fd", linux.AT_FDCWD, b"/dev/fd")
    linux.symlinkat(b"/proc/self/fd/0", linux.AT_FDCWD, b"/dev/stdin")
    linux.symlinkat(b"/proc/self/fd/1", linux.AT_FDCWD, b"/dev/stdout")
    linux.symlinkat(b"/proc/self/fd/2", linux.AT_FDCWD, b"/dev/stderr")


def _directory(root: ptr[u8], path: ptr[u8], mode: u32) -> None:
    """Makes it if it isn't there."""
    format_into(_path, f"{root:s}{path:s}")
    linux.mkdirat(linux.AT_FDCWD, _path, mode)


def _extra(root: ptr[u8], path: ptr[u8], kind: ptr[u8], flags: i64, options: ptr[u8]) -> None:
    _directory(root, path, 0o755)
    linux.mount(kind, _path, kind, flags, options)
