"""`vmm` by itself: makes what a supervisor would have made, and connects this terminal."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import stat
import sys
import termios
import tty
from collections.abc import Iterator

from crumble_common import log
from crumble_common.errors import CrumbleError
from crumble_common.guest_memory import GuestMemory
from crumble_common.messages.vm import (
    ConsoleOutput,
    ProcessCredit,
    ProcessExit,
    ProcessOutput,
    ProcessStart,
    ProcessStarted,
    Slice,
    VirtioFs,
    VmConfig,
    VmEvent,
)
from crumble_common.service import Context, service_main
from crumble_common.vhost_user import connect
from crumble_common.vm_faults import fault_of
from crumble_common.wire import Message
from crumble_vmm.config import MEMORY_UNIT, MachineConfig
from crumble_vmm.service import VmmService

_CHUNK = 16 << 10
# What is read ahead of the command.
_AHEAD = 64 << 10
_FAILED = 125
# What a guest may take before it can run the command, s; one without a command may take for ever.
_BOOT_LIMIT = 240.0


class EscapeKeys:
    """What is typed, less what is for us: Ctrl-A x ends the VM, as in QEMU; Ctrl-A twice sends one."""

    ESCAPE, QUIT = 0x01, ord("x")

    def __init__(self) -> None:
        self._escaped = False

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """The bytes for the guest, and whether the end was asked for after them."""
        kept = bytearray()
        for key in data:
            if not self._escaped:
                self._escaped = key == self.ESCAPE
                kept += b"" if self._escaped else bytes((key,))
                continue
            self._escaped = False
            if key == self.QUIT:
                return bytes(kept), True
            kept += bytes((key,)) if key == self.ESCAPE else bytes((self.ESCAPE, key))
        return bytes(kept), False


class _Answer:
    """A Reply to ourselves."""

    def __init__(self, service: TerminalService) -> None:
        self._service = service

    def ok(self, body: Message | None = None) -> None:
        if isinstance(body, ProcessStarted):
            self._service.started(body.process)

    def error(self, error: CrumbleError) -> None:
        self._service.quit(error)


class TerminalService(VmmService):
    """A VM whose console, or whose one command, has this terminal."""

    command: tuple[str, ...] = ()
    timeline_wanted = False
    status = 0

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._stdin = os.fstat(0).st_mode
        self._process = 0
        self._keys = EscapeKeys()
        self._ahead = 0  # bytes of input the command has not taken
        self._listening = self._at_end = False

    def start(self) -> None:
        """Also listens to the terminal."""
        super().start()
        if not self.command:
            self._listen()

    def _listen(self) -> None:
        """Reads stdin while there is room for what comes."""
        wanted = not self._at_end and self._ahead < _AHEAD
        if stat.S_ISFIFO(self._stdin) or stat.S_ISSOCK(self._stdin) or os.isatty(0):
            if wanted and not self._listening:
                self.context.loop.add_fd(0, "terminal", self._typed)
            elif self._listening and not wanted:
                self.context.loop.remove_fd(0)
            self._listening = wanted
        elif wanted and self.command:  # a file cannot be polled, and need not be
            self.context.loop.call_soon(self._typed)

    def emit(self, event: Message) -> None:
        """Shows what a supervisor would have been told."""
        match event:
            case ConsoleOutput(_, data) | ProcessOutput(_, 1, data):
                _write(1, data)
            case ProcessOutput(_, _, data):
                _write(2, data)
            case ProcessExit(_, status):
                type(self).status = status
                self.quit()
            case VmEvent(_, "agent_ready"):
                self._ready()
            case VmEvent(_, "panic" | "crash" | "failed"):
                type(self).status = _FAILED
                _say(str(fault_of(event)))
            case ProcessCredit(_, 0, size):
                self._ahead -= size
                self._listen()
        if isinstance(event, ProcessOutput):
            self.session.credit(event.process, event.stream, len(event.data))

    def _ready(self) -> None:
        if self.timeline_wanted:
            show_timeline(self.timeline.slices())
        if self.command:
            on_terminal = os.isatty(0) and os.isatty(1)
            rows, cols = _terminal_size()
            start = ProcessStart(
                list(self.command), tty=on_terminal, rows=rows, cols=cols, stdin=True
            )
            self.session.start(start, _Answer(self))

    def started(self, process: int) -> None:
        """The command runs: the terminal is its own."""
        self._process = process
        self._listen()
        loop = self.context.loop
        signal.signal(signal.SIGWINCH, lambda *_: loop.call_soon_threadsafe(self._resized))

    def _resized(self) -> None:
        self.session.resize(self._process, *_terminal_size())
        self._pump()

    def _typed(self) -> None:
        data = os.read(0, _CHUNK)
        self._at_end = not data
        if os.isatty(0):
            data, quit_asked = self._keys.feed(data)
            if quit_asked:
                self.quit()
                return
        if self.command:
            self._ahead += len(data)
            self.session.input(self._process, data, self._at_end)
            self._pump()
        elif data:
            self.machine.serial.receive(data)
        self._listen()

    def quit(self, error: CrumbleError | None = None) -> None:
        """Ends the VM as it is."""
        if error is not None:
            type(self).status = {"exec.not_found": 127, "exec.not_executable": 126}.get(
                error.code, _FAILED
            )
            _say(str(error))
        self._end(VmEvent(self.config.name, "poweroff"))


def run(options: argparse.Namespace) -> int:
    """Boots what the command line says; returns the exit status."""
    filesystems, fds = [], {}
    for number, spec in enumerate(options.fs):
        path, _, tag = spec.partition(":")
        filesystems.append(VirtioFs(tag or (f"fs{number}" if number else "root"), f"fs{number}"))
        fds[f"fs{number}"] = _connected(path)
    memory = -(-options.memory // MEMORY_UNIT) * MEMORY_UNIT
    config = VmConfig(
        vm="vm",
        kernel=str(options.kernel),
        memory=memory,
        cpus=options.cpus,
        modules=[str(path) for path in options.initrd_module],
        cmdline=options.cmdline,
        hypervisor=options.hv,
        cpu_model=options.cpu_model,
        transport=options.transport,
        watchdog=options.watchdog,
        irqchip=options.irqchip,
        hostname=options.hostname,
        dmesg=not options.quiet,
        filesystems=filesystems,
        boot_limit=_BOOT_LIMIT if options.command else 0.0,
    )
    MachineConfig.from_message(config)
    os.environ.setdefault("CRUMBLE_LOG", "warning")
    fds.update(GuestMemory.create(memory).detach())
    TerminalService.command = tuple(options.command)
    TerminalService.timeline_wanted = options.timeline
    with _raw_terminal():
        failed = service_main(TerminalService, config, name="vmm", fds=fds)
    return _FAILED if failed else TerminalService.status


def _connected(path: str) -> int:
    """A connection's descriptor, detached from its socket object."""
    sock: socket.socket = connect(path)
    return sock.detach()


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """The terminal passes every key on, and is put back afterwards."""
    if not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _terminal_size() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(1)
    except OSError:
        return 24, 80
    return size.lines, size.columns


def _say(text: str) -> None:
    end = "\r\n" if os.isatty(0) else "\n"
    sys.stderr.write(f"crumble-vmm: {text}".replace("\n", end) + end)
    sys.stderr.flush()


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BrokenPipeError:
            log.debug("output closed")
            return


def show_timeline(slices: list[Slice]) -> None:
    """A line a phase: start and length in ms."""
    first = min((item.start for item in slices), default=0)
    for item in slices:
        start, length = (item.start - first) / 1e6, (item.end - item.start) / 1e6
        _say(f"{start:9.1f} ms  {length:9.1f} ms  {item.name}")
