"""Between fork and exec: what becomes of a new process. In the dialect of crumble_ir.

Order: session, streams, terminal, limits, directory, groups and user, program. What fails is written
to the failure pipe as (stage, errno); exec closes that pipe, which says that all went well.
"""

# mypy: ignore-errors

from __future__ import annotations

from crumble_ir import linux
from crumble_ir.dialect import array, i32, i64, ptr, static, struct, u8, u32, u64
from crumble_ir.runtime import memory
from crumble_vmm.guest import protocol, state

# Room before the arguments, for "/bin/sh SCRIPT" in place of the first.
SPARE = 1
UMASK = 0o022
OPEN_FILES, OPEN_FILES_MAX = 1024, 1048576
DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ELF_MAGIC = int.from_bytes(b"\x7fELF", "little")
COLON, SLASH = b":"[0], b"/"[0]


@struct
class Request:
    flags: u32
    size: u32
    uid: u32
    gid: u32
    group_count: u32
    credit: i64
    cwd: ptr[u8]


request = static(Request)
groups = static(array[u32, protocol.MAX_GROUPS])
arguments = static(array[u64, SPARE + protocol.MAX_STRINGS + 1])
environment = static(array[u64, protocol.MAX_STRINGS + 1])
# The child's ends of stdin, stdout and stderr, or NONE.
ends = static(array[i32, 3])
_path = static(array[u8, protocol.MAX_PATH + 1])


def close_ends() -> None:
    """The agent's copies, after the fork."""
    for index in range(len(ends)):
        ends[index] = state.close(ends[index])


def run(tty: bool, failure_fd: i32) -> None:
    """The child's whole life here. Does not return."""
    linux.setsid()
    connect(tty)
    if tty:
        linux.ioctl(0, linux.TIOCSCTTY, 0)
    _limit()
    linux.umask(UMASK)
    # As root first: the directory may be one that only root can enter.
    entered = linux.chdir(request.cwd)
    error = _identify()
    if error != 0:
        _give_up(failure_fd, protocol.Stage.SETUP, error)
    if entered < 0:
        error = state.error_of(linux.chdir(request.cwd))
        if error != 0:
            _give_up(failure_fd, protocol.Stage.CHDIR, error)
    # Handlers there are none; blocked signals there are, for the agent's signalfd.
    mask: array[u64, 1]
    mask[0] = 0
    linux.rt_sigprocmask(linux.SIG_SETMASK, mask, None, linux.SIGSET_SIZE)
    _give_up(failure_fd, protocol.Stage.EXEC, execute())


def _give_up(failure_fd: i32, stage: u32, error: u32) -> None:
    report: array[u32, 2]
    report[0] = stage
    report[1] = error
    linux.write(failure_fd, report, 8)
    linux.exit_group(127)


def connect(tty: bool) -> None:
    """stdin, stdout, stderr; all other descriptors close on exec."""
    for number in range(3):
        end = ends[0] if tty else ends[number]
        linux.dup3(end if end >= 0 else state.null_fd, number, 0)


def _limit() -> None:
    """Generous, but with the soft limit that programs using select() need."""
    files: array[u64, 2]
    files[0] = OPEN_FILES
    files[1] = OPEN_FILES_MAX
    if linux.prlimit64(0, linux.RLIMIT_NOFILE, files, None) < 0:
        # Not allowed to raise the hard one (in tests): it stays.
        linux.prlimit64(0, linux.RLIMIT_NOFILE, None, files)
        files[0] = min(files[1], OPEN_FILES)
        linux.prlimit64(0, linux.RLIMIT_NOFILE, files, None)


def _identify() -> u32:
    """Groups, then group, then user; gives an errno. An ordinary user (in tests) stays itself."""
    if linux.getuid() != 0:
        return 0
    error = state.error_of(linux.setgroups(request.group_count, groups))
    if error == 0:
        error = state.error_of(linux.setgid(request.gid))
    if error == 0:
        error = state.error_of(linux.setuid(request.uid))
    return error


# -- the program ------------------------------------------------------------------------------


def execute() -> u32:
    """execvpe(3) with the child's own PATH; gives the errno when nothing could be executed."""
    program = ptr[u8](arguments[SPARE])
    if program[0] == 0:
        return linux.ENOENT
    if _has_slash(program):
        return _execute_file(program)
    search = _variable(b"PATH=")
    if search is None:
        search = DEFAULT_PATH
    denied = False
    while True:
        count: i64 = 0
        while search[count] != 0 and search[count] != COLON:
            count += 1
        error = _execute_in(search, count, program)
        if error == linux.EACCES:
            denied = True
        elif error not in (linux.ENOENT, linux.ENOTDIR, linux.ENAMETOOLONG, linux.ENODEV):
            return error
        if search[count] == 0:
            break
        search = search + (count + 1)
    return linux.EACCES if denied else linux.ENOENT


def _execute_in(folder: ptr[u8], count: i64, program: ptr[u8]) -> u32:
    """Tries FOLDER/program; an empty folder is the current one."""
    length = memory.length(program)
    if count + length + 2 > len(_path):
        return linux.ENAMETOOLONG
    memory.copy(_path, folder, count)
    if count > 0:
        _path[count] = SLASH
        count += 1
    memory.copy(_path + count, program, length + 1)
    return _execute_file(_path)


def _execute_file(path: ptr[u8]) -> u32:
    """execve; a file that is neither a program nor begins with #! is given to the shell."""
    error = state.error_of(linux.execve(path, arguments + SPARE, environment))
    if error != linux.ENOEXEC or _is_program(path):
        return error
    arguments[0] = u64(b"/bin/sh")
    arguments[SPARE] = u64(path)
    failed = state.error_of(linux.execve(b"/bin/sh", arguments, environment))
    return error if failed == linux.ENOENT else failed


def _is_program(path: ptr[u8]) -> bool:
    """Whether it is an ELF file: one of another architecture, then, and no script."""
    magic: array[u8, 4]
    fd = linux.openat(linux.AT_FDCWD, path, linux.O_RDONLY | linux.O_CLOEXEC, 0)
    count = linux.read(fd, magic, len(magic))
    return count == len(magic) and state.get32(magic) == ELF_MAGIC


def _has_slash(string: ptr[u8]) -> bool:
    for index in range(memory.length(string)):
        if string[index] == SLASH:
            return True
    return False


def _variable(prefix: ptr[u8]) -> ptr[u8]:
    """The value of NAME=, or None."""
    index: i64 = 0
    while environment[index] != 0:
        item = ptr[u8](environment[index])
        if memory.starts_with(item, prefix):
            return item + memory.length(prefix)
        index += 1
    return None
