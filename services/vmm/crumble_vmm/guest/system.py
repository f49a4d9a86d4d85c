"""The machine: hostname, clock, entropy, shutting down. In the dialect of crumble_ir.

Only PID 1 of a guest touches the machine. The same program run by a test ends its own processes instead.
"""

# mypy: ignore-errors

from __future__ import annotations

from crumble_ir import linux
from crumble_ir.dialect import array, format_into, i32, i64, ptr, static, struct, u8, u32, u64
from crumble_ir.runtime import memory
from crumble_vmm.guest import handover, network, port, protocol, state
from crumble_vmm.guest.state import Timespec

SECOND = 1000000000
MILLISECOND = 1000000
# What is left after SIGKILL is stuck in the kernel: no use in waiting longer.
KILL_PATIENCE = 2 * SECOND
FLUSH_PATIENCE = SECOND

# 0: running. Otherwise when the next step is due.
TERMINATING, KILLING = 1, 2
phase = static(u8)
deadline = static(i64)
_hostname = static(array[u8, protocol.MAX_HOSTNAME + 1])


@struct
class Entropy:
    bits: i32
    size: i32
    bytes: array[u8, protocol.MAX_SEED]


_entropy = static(Entropy)


def setup(data: ptr[u8], count: i64) -> None:
    """SETUP: what a machine that just started, or was restored from a snapshot, needs to be told."""
    time_size: i64 = 8
    if count < time_size + 4:
        _malformed()
        return
    name_size = i64(state.get32(data + time_size))
    seed_at = time_size + 4 + name_size
    if name_size > protocol.MAX_HOSTNAME or seed_at + 4 > count:
        _malformed()
        return
    seed_size = i64(state.get32(data + seed_at))
    if seed_size > protocol.MAX_SEED or seed_at + 4 + seed_size > count:
        _malformed()
        return
    if not state.is_init:
        return
    if name_size > 0:
        linux.sethostname(data + (time_size + 4), name_size)
    _set_clock(state.get64(data))
    _add_entropy(data + (seed_at + 4), seed_size)
    network_at = seed_at + 4 + seed_size
    if network_at + 4 > count:
        return
    network_size = i64(state.get32(data + network_at))
    if network_at + 4 + network_size > count:
        _malformed()
        return
    network.change(data + (network_at + 4), network_size)


def _malformed() -> None:
    port.log(format_into(port.line, "malformed SETUP"))


def _set_clock(nanoseconds: u64) -> None:
    time: Timespec
    if nanoseconds == 0:
        return
    time.seconds = i64(nanoseconds // SECOND)
    time.nanoseconds = i64(nanoseconds % SECOND)
    linux.clock_settime(linux.CLOCK_REALTIME, time)


def _add_entropy(data: ptr[u8], count: i64) -> None:
    """The host's seed counts as entropy in full: the host could read the pool anyway. What the kernel gives
    from now on depends on it: a clone draws other bytes than its siblings.
    """
    if count == 0:
        return
    _entropy.bits = i32(count) * 8
    _entropy.size = i32(count)
    memory.copy(_entropy.bytes, data, count)
    fd = linux.openat(linux.AT_FDCWD, b"/dev/random", linux.O_WRONLY | linux.O_CLOEXEC, 0)
    if fd >= 0:
        linux.ioctl(fd, linux.RNDADDENTROPY, _entropy)
        linux.ioctl(fd, linux.RNDRESEEDCRNG, None)
        linux.close(fd)


# -- shutting down ----------------------------------------------------------------------------


def signal_all(number: i32) -> None:
    """A signal to every process of the guest, or in a test to those the agent started."""
    if state.is_init:
        linux.kill(-1, number)
        return
    for index in range(state.used):
        process = state.table[index]
        if process.state in (state.STARTING, state.RUNNING) and not process.reaped:
            signal_group(process.pid, number)


def signal_group(pid: i32, number: i32) -> i64:
    """A signal to a process's group; to itself while it has none of its own yet."""
    result = linux.kill(-pid, number)
    if result == -linux.ESRCH:
        result = linux.kill(pid, number)
    return result


def begin_shutdown(grace_ms: u32) -> None:
    """SHUTDOWN. A second one can only make it sooner."""
    global phase, deadline
    due = state.now() + i64(grace_ms) * MILLISECOND
    if phase == 0:
        phase = TERMINATING
        deadline = due
        if state.beside:
            # It ends everything else in its own order, and then powers off.
            linux.kill(handover.INIT, handover.POWER_OFF)
        else:
            signal_all(linux.SIGTERM)
            signal_all(linux.SIGCONT)
    if phase == TERMINATING:
        deadline = min(deadline, due)


def continue_shutdown(now: i64, over: bool) -> None:
    """Called on every round of a shutdown; `over` when no child is left and all is reported."""
    global phase, deadline
    if phase == TERMINATING and now >= deadline and not over and not state.beside:
        phase = KILLING
        deadline = now + KILL_PATIENCE
        signal_all(linux.SIGKILL)
        return
    if over or now >= deadline:
        state.finished = True


def power_off() -> None:
    """The end of the guest."""
    linux.sync()
    linux.reboot(linux.REBOOT_MAGIC1, linux.REBOOT_MAGIC2, linux.REBOOT_POWER_OFF, None)
    # Only a kernel without a way to power off comes back.
    while True:
        linux.ppoll(None, 0, None, None, 0)


# -- last words -------------------------------------------------------------------------------

sentence = static(array[u8, 192])


def give_up(length: i64) -> None:
    """PID 1 cannot go on, for the reason formatted into `sentence`."""
    assert length >= 0
    last_words(sentence)


def last_words(message: ptr[u8]) -> None:
    """Says why everywhere the host may be listening, then powers off."""
    _shout(b"/dev/kmsg", b"<2>", message)
    _shout(b"/dev/ttyS0", b"", message)
    _shout(b"/dev/hvc0", b"", message)
    if port.fd > 0 and port.room() > port.ANSWER_ROOM:
        port.log(format_into(port.line, f"{protocol.INIT_FAILED}{message:s}"))
        port.flush()
    power_off()


def _shout(path: ptr[u8], level: ptr[u8], message: ptr[u8]) -> None:
    flags = linux.O_WRONLY | linux.O_NONBLOCK | linux.O_NOCTTY | linux.O_CLOEXEC
    fd = linux.openat(linux.AT_FDCWD, path, flags, 0)
    if fd >= 0:
        print(f"{level:s}{protocol.INIT_FAILED}{message:s}", file=i32(fd))
        linux.close(fd)
