"""The agent: one loop that waits on everything and never blocks elsewhere. In the dialect of crumble_ir.

    port ── frames ──→ spawn, streams, files, system        SIGCHLD ──→ reap
    processes' pipes and terminals ←── streams ──→ port     time ──→ settle

A round: wait; reap; move bytes; handle frames while answers have room; report exits; write to the port.

EXITED comes after all output. A process's pipes normally end with it; when a descendant keeps one open, EXITED
comes GRACE after the last byte seen (waiting for the end could take forever: daemons keep their stderr). What
such a descendant still writes is read and thrown away, so that it neither blocks nor dies of SIGPIPE.
"""

# mypy: ignore-errors

from __future__ import annotations

from crumble_ir import linux
from crumble_ir.dialect import (
    addr,
    array,
    format_into,
    i16,
    i32,
    i64,
    ptr,
    static,
    struct,
    u8,
    u16,
    u32,
    u64,
)
from crumble_vmm.guest import files, handover, port, protocol, spawn, state, streams, system
from crumble_vmm.guest.protocol import ToGuest, ToHost
from crumble_vmm.guest.state import Process, Timespec

GRACE = 200 * system.MILLISECOND
# How often to look for a host that is not there.
ABSENT_PAUSE = 100 * system.MILLISECOND
FOREVER = 1 << 62
# How many pages to read before anything else gets its turn: two large frames.
READS = 32


@struct
class PollFd:
    fd: i32
    events: i16
    revents: i16


# What a descriptor that is waited for belongs to.
PORT, CHILDREN, EXEC, STDIN, OUTPUT = 0, 1, 2, 3, 4
LIMIT = 2 + protocol.MAX_PROCESSES * 4

_polls = static(array[PollFd, LIMIT])
_roles = static(array[u8, LIMIT])
_owners = static(array[u16, LIMIT])
_count = static(i64)
_first = static(i64)
_signal_fd = static(i32)
# No child is left; nobody will ever read what is still to be said.
_alone = static(bool)
_abandoned = static(bool)


def start(fd: i32, phases: ptr[u8], phases_size: i64) -> None:
    """Takes over `fd` as the port and says READY with init's phases."""
    global _signal_fd
    mask: array[u64, 1]
    port.fd = fd
    flags = linux.fcntl(fd, linux.F_GETFL, 0)
    linux.fcntl(fd, linux.F_SETFL, flags | linux.O_NONBLOCK)
    linux.fcntl(fd, linux.F_SETFD, linux.FD_CLOEXEC)
    linux.umask(0)
    # All signals blocked, SIGCHLD read as a file, writing to a closed pipe gives EPIPE.
    mask[0] = 0xFFFFFFFFFFFFFFFF
    linux.rt_sigprocmask(linux.SIG_SETMASK, mask, None, linux.SIGSET_SIZE)
    mask[0] = 1 << (linux.SIGCHLD - 1)
    flags = linux.SFD_NONBLOCK | linux.SFD_CLOEXEC
    _signal_fd = i32(linux.signalfd4(-1, mask, linux.SIGSET_SIZE, flags))
    assert _signal_fd >= 0, "no signalfd"
    target = port.payload(phases_size)
    for index in range(phases_size):
        target[index] = phases[index]
    port.commit(ToHost.READY, 0, 0, protocol.VERSION, phases_size)
    port.flush()


def run() -> None:
    """Until SHUTDOWN is done; in a test also until the other end closes."""
    while not state.finished:
        _collect()
        _wait(_next_deadline())
        now = state.now()
        _serve(now)
        _frames()
        _settle(now)
        port.flush()
        if system.phase != 0:
            _reap_all(now)
            over = _alone and not state.beside and (_abandoned or not state.any_open())
            system.continue_shutdown(now, over)
    _drain()


# -- waiting ----------------------------------------------------------------------------------


def _add(fd: i32, events: i16, role: u8, owner: i64) -> None:
    global _count
    entry = _polls[_count]
    entry.fd = fd
    entry.events = events
    entry.revents = 0
    _roles[_count] = role
    _owners[_count] = u16(owner)
    _count += 1


def _collect() -> None:
    """Lists what to wait for. Processes take turns in being first: room in the port is scarce."""
    global _count, _first
    _count = 0
    if not port.absent:
        events: i16 = 0
        if port.room() >= port.ANSWER_ROOM:
            events = linux.POLLIN
        if port.pending():
            events = events | linux.POLLOUT
        _add(port.fd, events, PORT, 0)
    _add(_signal_fd, linux.POLLIN, CHILDREN, 0)
    if state.used == 0:
        return
    _first = (_first + 1) % state.used
    for step in range(state.used):
        _collect_process((_first + step) % state.used)


def _collect_process(index: i64) -> None:
    process = state.table[index]
    if process.state == state.FREE:
        return
    if process.exec_fd >= 0:
        _add(process.exec_fd, linux.POLLIN, EXEC, index)
    if process.ring_count > 0 and process.stdin_fd >= 0:
        _add(process.stdin_fd, linux.POLLOUT, STDIN, index)
    process.heard = True
    for stream in range(state.OUTPUTS):
        if process.output_fd[stream] < 0:
            continue
        if not streams.readable(process, stream):
            process.heard = False
        else:
            _add(process.output_fd[stream], linux.POLLIN, OUTPUT + u8(stream), index)


def _next_deadline() -> i64:
    """When something is due without any event, in CLOCK_MONOTONIC ns."""
    due: i64 = FOREVER
    if port.buffered() and port.room() >= port.ANSWER_ROOM:
        return 0
    if port.absent:
        due = state.now() + ABSENT_PAUSE
    if system.phase != 0:
        due = min(due, system.deadline)
    for index in range(state.used):
        process = state.table[index]
        if process.state == state.RUNNING and process.reaped and process.heard:
            due = min(due, process.quiet_since + GRACE)
    return due


def _wait(due: i64) -> None:
    time: Timespec
    timeout: ptr[Timespec] = None
    if due != FOREVER:
        left = max(due - state.now(), 0)
        time.seconds = left // system.SECOND
        time.nanoseconds = left % system.SECOND
        timeout = time
    if linux.ppoll(_polls, _count, timeout, None, 0) < 0:
        # EINTR: nothing in revents means anything.
        _count_none()
    port.absent = False


def _count_none() -> None:
    global _count
    _count = 0


# -- serving ----------------------------------------------------------------------------------


def _serve(now: i64) -> None:
    """Everything that poll found. Exec reports go before bytes: STARTED is a channel's first frame."""
    for index in range(_count):
        if _polls[index].revents != 0 and _roles[index] == EXEC:
            _started(state.table[_owners[index]], now)
    for index in range(_count):
        events = _polls[index].revents
        if events != 0:
            _serve_one(_roles[index], state.table[_owners[index]], events, now)


def _serve_one(role: u8, process: ptr[Process], events: i16, now: i64) -> None:
    if role == PORT:
        _receive(events)
    elif role == CHILDREN:
        _reap(now)
    elif role == STDIN and process.stdin_fd >= 0:
        streams.write_input(process)
    elif role >= OUTPUT and streams.readable(process, i64(role - OUTPUT)):
        streams.read_output(process, i64(role - OUTPUT), now)


def _receive(events: i16) -> None:
    """Reads from the port."""
    if events & (linux.POLLIN | linux.POLLHUP | linux.POLLERR) == 0:
        return
    for _ in range(READS):
        count = port.fill()
        if count in (-linux.EAGAIN, -linux.EINTR):
            return
        if count <= 0:
            _host_left()
            return


def _host_left() -> None:
    """Nobody has the other end open: a guest waits for a new host, a test's agent ends."""
    global _abandoned
    port.absent = True
    if not state.is_init:
        _abandoned = True
        system.begin_shutdown(0)


def _started(process: ptr[Process], now: i64) -> None:
    """The failure pipe speaks: 8 bytes are an error, its end is success."""
    report: array[u32, 2]
    count = linux.read(process.exec_fd, report, 8)
    if count in (-linux.EAGAIN, -linux.EINTR):
        return
    if count == 8:
        port.send(ToHost.FAILED, u16(report[0]), process.channel, report[1])
        state.release(process)
        return
    process.exec_fd = state.close(process.exec_fd)
    process.state = state.RUNNING
    process.quiet_since = now
    port.send(ToHost.STARTED, 0, process.channel, u32(process.pid))


def _reap(now: i64) -> None:
    """All children that ended: ours, and the orphans PID 1 inherits."""
    info: array[u8, 128]
    while linux.read(_signal_fd, info, len(info)) > 0:
        pass
    _reap_all(now)


def _reap_all(now: i64) -> None:
    global _alone
    status: i32 = 0
    while True:
        pid = linux.wait4(-1, addr(status), linux.WNOHANG, None)
        if pid <= 0:
            _alone = pid == -linux.ECHILD
            return
        for index in range(state.used):
            process = state.table[index]
            if process.pid == pid and process.state in (state.STARTING, state.RUNNING):
                process.reaped = True
                process.quiet_since = now
                process.status = u32(status >> 8) & 0xFF | (u32(status) & 0x7F) << 8


# -- frames -----------------------------------------------------------------------------------


def _frames() -> None:
    """Handles what has come in, while any answer has room."""
    while port.room() >= port.ANSWER_ROOM:
        header = port.next_frame()
        if header is None:
            return
        kind = state.get32(header + 4)
        _dispatch(kind & 0xFFFF, kind >> 16, state.get32(header + 8), header)


def _dispatch(kind: u32, flags: u32, channel: u32, header: ptr[u8]) -> None:
    count = i64(state.get32(header))
    argument = state.get32(header + 12)
    data = header + protocol.HEADER_SIZE
    if kind == ToGuest.SPAWN:
        if system.phase != 0:
            port.send(ToHost.FAILED, protocol.Stage.SETUP, channel, linux.ESHUTDOWN)
        else:
            spawn.receive(channel, data, count, flags & protocol.SPAWN_MORE != 0)
    elif kind == ToGuest.FILE_READ:
        files.read(channel, argument, data, count)
    elif kind == ToGuest.FILE_WRITE:
        files.write(channel, argument, data, count)
    elif kind == ToGuest.SYNC:
        files.sync(channel)
    elif kind == ToGuest.SETUP:
        system.setup(data, count)
    elif kind == ToGuest.SHUTDOWN:
        system.begin_shutdown(argument)
    elif kind == ToGuest.PING:
        _pong(argument, data, count)
    elif kind in (ToGuest.STDIN, ToGuest.SIGNAL, ToGuest.RESIZE, ToGuest.CREDIT):
        process = state.find(channel)
        # One that is gone is no mistake: the frame may have crossed its EXITED.
        if process is not None:
            _dispatch_process(kind, process, argument, data, count)
    else:
        port.log(format_into(port.line, f"frame of unknown type {kind}"))


def _dispatch_process(
    kind: u32, process: ptr[Process], argument: u32, data: ptr[u8], count: i64
) -> None:
    if kind == ToGuest.STDIN:
        streams.add_input(process, data, count, argument == protocol.STDIN_EOF)
    elif kind == ToGuest.CREDIT:
        streams.add_credit(process, argument)
    elif kind == ToGuest.RESIZE:
        streams.resize(process, argument >> 16, argument & 0xFFFF)
    elif argument == 0 or argument > 64:
        port.log(format_into(port.line, f"there is no signal {argument}"))
    elif process.pid == handover.INIT:
        handover.signal(i32(argument))
    elif not process.reaped:
        system.signal_group(process.pid, i32(argument))


def _pong(argument: u32, data: ptr[u8], count: i64) -> None:
    target = port.payload(count)
    for index in range(count):
        target[index] = data[index]
    port.commit(ToHost.PONG, 0, 0, argument, count)


# -- exits ------------------------------------------------------------------------------------


def _settle(now: i64) -> None:
    """Credit for input taken; EXITED for what has ended; slots whose last holder has gone."""
    for index in range(state.used):
        process = state.table[index]
        if process.state == state.FREE:
            continue
        streams.give_credit(process)
        open_streams = process.output_fd[0] >= 0 or process.output_fd[1] >= 0
        if process.state == state.LINGERING:
            if not open_streams:
                state.release(process)
        elif process.state == state.RUNNING and process.reaped:
            if not process.heard:
                # Not silence: there was no credit or no room to listen.
                process.quiet_since = now
            if not open_streams or now >= process.quiet_since + GRACE:
                _exited(process, open_streams)


def _exited(process: ptr[Process], open_streams: bool) -> None:
    port.send(ToHost.EXITED, 0, process.channel, process.status)
    process.stdin_fd = state.close(process.stdin_fd)
    process.ring_count = 0
    # A terminal is hung up, as when its line drops; pipes are kept for those who still write.
    if open_streams and not process.tty:
        process.state = state.LINGERING
    else:
        state.release(process)


def _drain() -> None:
    """The last frames, for a moment: the host may be slow, or gone."""
    due = state.now() + system.FLUSH_PATIENCE
    while port.pending() and not port.absent and state.now() < due:
        _count_none()
        _add(port.fd, linux.POLLOUT, PORT, 0)
        _wait(due)
        before = port.room()
        port.flush()
        if port.room() == before and _polls[0].revents & (linux.POLLHUP | linux.POLLERR) != 0:
            return
