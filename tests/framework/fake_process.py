"""A guest's process, played by a process of this host: credits, streams, pty, signals, exit."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from pathlib import Path
from typing import Any

from crumble_common.errors import GuestError, UsageError
from crumble_common.messages import vm
from crumble_common.service import Context

CHUNK = 64 << 10


def _default_signals() -> None:
    """A service ignores some; a guest's process begins with the defaults."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


class FakeProcess:
    """Output is read only within credit, so what a slow caller does not take stays in the pipe."""

    def __init__(self, context: Context, number: int, start: vm.ProcessStart, root: Path) -> None:
        self.context = context
        self.number = number
        self.credit = {1: start.credit, 2: start.credit}
        self.outputs: dict[int, int] = {}
        self.stdin = -1
        self.pending = bytearray()
        self.eof = False
        self.reported = False
        self.exit_fd = -1
        if start.user not in ("", "root", "0"):
            raise UsageError(f"There is no user {start.user}.", code="exec.user")
        self.popen = self.spawn(start, root)

    def spawn(self, start: vm.ProcessStart, root: Path) -> subprocess.Popen[bytes]:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL}
        terminal = -1
        if start.tty:
            master, terminal = pty.openpty()
            self.stdin, self.outputs = os.dup(master), {1: master}
            self.resize(start.rows, start.cols)
            streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
        else:
            for stream, name in ((1, "stdout"), (2, "stderr")):
                self.outputs[stream], streams[name] = os.pipe()
            if start.stdin:
                streams["stdin"], self.stdin = os.pipe()
        try:
            return subprocess.Popen(
                start.argv, env=start.env, cwd=start.cwd if start.cwd != "/" else root,
                start_new_session=True, preexec_fn=_default_signals, **streams,
            )  # fmt: skip
        except FileNotFoundError:
            raise GuestError(f"{start.argv[0]}: not found.", code="exec.not_found") from None
        except PermissionError:
            text = f"{start.argv[0]}: not executable."
            raise GuestError(text, code="exec.not_executable") from None
        finally:
            for fd in {value for value in streams.values() if value >= 0}:
                os.close(fd)

    def watch(self) -> None:
        self.exit_fd = os.pidfd_open(self.popen.pid)
        self.context.loop.add_fd(self.exit_fd, "exit", self.exited)
        for stream in self.outputs:
            self.listen(stream)
        if self.stdin >= 0:
            os.set_blocking(self.stdin, False)

    def listen(self, stream: int) -> None:
        self.context.loop.add_fd(self.outputs[stream], "output", lambda: self.read(stream))

    def read(self, stream: int) -> None:
        fd = self.outputs[stream]
        if self.credit[stream] <= 0:
            self.context.loop.remove_fd(fd)
            return
        try:
            data = os.read(fd, min(CHUNK, self.credit[stream]))
        except OSError:
            data = b""  # a pty whose last user has gone
        if data:
            self.credit[stream] -= len(data)
            self.context.send(vm.ProcessOutput(self.number, stream, data))
            return
        self.context.loop.remove_fd(fd)
        os.close(fd)
        del self.outputs[stream]
        self.finish()

    def exited(self) -> None:
        self.context.loop.remove_fd(self.exit_fd)
        os.close(self.exit_fd)
        self.popen.wait()
        if self.stdin >= 0:
            self.context.loop.set_writable(self.stdin, "input", None)
            os.close(self.stdin)
            self.stdin = -1
        self.finish()

    def finish(self) -> None:
        if self.outputs or self.popen.returncode is None or self.reported:
            return
        self.reported = True
        status, number = self.popen.returncode, 0
        if status < 0:
            number, status = -status, 128 - status
        self.context.send(vm.ProcessExit(self.number, status, number))

    def handle(self, message: Any) -> None:
        if isinstance(message, vm.ProcessInput):
            self.input(message)
        elif isinstance(message, vm.ProcessCredit):
            self.credit[message.stream] += message.size
            if message.stream in self.outputs:
                self.listen(message.stream)
        elif isinstance(message, vm.ProcessSignal):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, message.signal)
        elif isinstance(message, vm.ProcessResize):
            self.resize(message.rows, message.cols)

    def input(self, message: vm.ProcessInput) -> None:
        self.pending += message.data
        self.eof |= message.eof
        if self.stdin >= 0:
            self.context.loop.set_writable(self.stdin, "input", self.write)

    def write(self) -> None:
        try:
            done = os.write(self.stdin, self.pending) if self.pending else 0
        except OSError:
            done = len(self.pending)  # nobody reads any more
        del self.pending[:done]
        if done:
            self.context.send(vm.ProcessCredit(self.number, 0, done))
        if self.pending:
            return
        self.context.loop.set_writable(self.stdin, "input", None)
        if self.eof and os.isatty(self.stdin):
            os.write(self.stdin, b"\x04")
        elif self.eof:
            os.close(self.stdin)
            self.stdin = -1

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.stdin, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
        if hasattr(self, "popen"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGWINCH)
