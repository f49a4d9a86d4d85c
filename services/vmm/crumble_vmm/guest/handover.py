"""PID 1 becomes a program of the image, and the agent goes on beside it. In the dialect of crumble_ir.

    PID 1, the agent ──fork──→ child: waits ──exec worked──→ the agent, with everything it knew and held
         └── exec ──→ the image's init, with no trace of us
              └ failed ──→ still the agent; the child ends

A fork copies all there is: one thread, static memory, descriptors. Only processes would stay with PID 1, so none may
be there. The child's name begins with "@", which has systemd spare it when it kills whatever is left at shutdown
(its documentation's "root storage daemons"): it serves until the machine is off.
"""

# mypy: ignore-errors

from __future__ import annotations

from crumble_ir import linux
from crumble_ir.dialect import array, i32, u8, u32, u64
from crumble_vmm.guest import child, state

INIT = 1
# kill(1) of what systemd calls SIGRTMIN+4, start poweroff.target: SIGRTMIN+3, which ends containers, halts a
# machine without switching it off. 34 is libc's SIGRTMIN.
POWER_OFF = 34 + 4
MARK = b"@"[0]


def possible() -> bool:
    """Whether this is PID 1, and without processes that the host knows."""
    return linux.getpid() == INIT and not state.any_open()


def hand_over(tty: bool) -> u32:
    """child.request becomes PID 1. Gives 0 in the process that is the agent from then on, or an errno in PID 1, which
    is the agent as before.
    """
    ends: array[i32, 2]
    word: array[u8, 1]
    error = state.error_of(linux.pipe2(ends, linux.O_CLOEXEC))
    if error != 0:
        return error
    pid = linux.clone(linux.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        linux.close(ends[1])
        if linux.read(ends[0], word, 1) != 0:
            linux.exit_group(0)
        linux.close(ends[0])
        _live_beside()
        return 0
    linux.close(ends[0])
    error = state.error_of(pid)
    if error == 0:
        error = _become(tty)
        word[0] = 0
        linux.write(ends[1], word, 1)
    linux.close(ends[1])
    return error


def _live_beside() -> None:
    linux.setsid()
    linux.prctl(linux.PR_SET_NAME, b"crumble-agent", 0, 0, 0)
    state.name[0] = MARK
    state.beside = True


def _become(tty: bool) -> u32:
    """Executes the program; gives the errno when that failed, and all is as it was."""
    mask: array[u64, 1]
    child.connect(tty)
    if tty:
        # What the machine says to its operator.
        linux.mount(b"/proc/self/fd/0", b"/dev/console", None, linux.MS_BIND, None)
    linux.umask(child.UMASK)
    mask[0] = 0
    linux.rt_sigprocmask(linux.SIG_SETMASK, mask, None, linux.SIGSET_SIZE)
    error = child.execute()
    mask[0] = 0xFFFFFFFFFFFFFFFF
    linux.rt_sigprocmask(linux.SIG_SETMASK, mask, None, linux.SIGSET_SIZE)
    linux.umask(0)
    if tty:
        linux.umount2(b"/dev/console", linux.MNT_DETACH)
    for number in range(3):
        linux.dup3(state.null_fd, number, 0)
    return error


def signal(number: i32) -> None:
    """A signal that the host sends to PID 1. What would end another process ends the machine: to systemd most of
    these say something else, and from SIGKILL the kernel protects PID 1.
    """
    if number == linux.SIGKILL:
        state.finished = True
    elif number in (linux.SIGHUP, linux.SIGINT, linux.SIGQUIT, linux.SIGPIPE, linux.SIGTERM):
        linux.kill(INIT, POWER_OFF)
    else:
        linux.kill(INIT, number)
