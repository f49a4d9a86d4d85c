"""The guest's agent as an ordinary process on a socket, and a host's end to talk to it.

The agent is the program guests run (`init --port FD`), compiled for this machine or run under
qemu's user emulation. `AgentHost` also serves agents in real guests: it needs only a connected socket.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crumble_vmm.guest import build, protocol
from crumble_vmm.guest.protocol import Frame, FrameReader, Spawn, ToHost
from framework.compiled import runner
from framework.ready import readable, readable_or_writable

TIMEOUT = 30.0


class AgentHost:
    """The host's end of a port: sends what tests say, keeps what comes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.frames: list[Frame] = []
        self.closed = False
        self._reader = FrameReader()
        self._last = 0
        self.sent: Counter[int] = Counter()

    def channel(self) -> int:
        self._last += 1
        return self._last

    def send(self, data: bytes) -> None:
        """Sends all of `data`, receiving meanwhile so that neither side can block the other."""
        view = memoryview(data)
        deadline = time.monotonic() + TIMEOUT
        while view:
            can_read, can_write = readable_or_writable(self.sock, timeout=TIMEOUT)
            if can_read:
                self._receive()
            if can_write:
                view = view[self.sock.send(view, socket.MSG_DONTWAIT) :]
            assert time.monotonic() < deadline, "the agent does not read"

    def _receive(self) -> None:
        data = self.sock.recv(1 << 18)
        self.closed = self.closed or not data
        self.frames += self._reader.feed(data)

    def pump(self, seconds: float) -> None:
        """Receives for a while: for tests that show that something does NOT come."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.closed:
            if readable(self.sock, timeout=left):
                self._receive()

    def until(self, true: Callable[[], object], timeout: float = TIMEOUT) -> None:
        """Receives until `true()`."""
        end = time.monotonic() + timeout
        while not true():
            left = end - time.monotonic()
            assert left > 0 and not self.closed, f"not in time; closed={self.closed}: {self.tail()}"
            if readable(self.sock, timeout=left):
                self._receive()

    def tail(self) -> str:
        return ", ".join(
            f"{frame.type}/{frame.channel}:{frame.argument} {frame.payload[:60]!r}"
            for frame in self.frames[-12:]
        )

    def of(self, channel: int, kind: int | None = None) -> list[Frame]:
        return [
            frame
            for frame in self.frames
            if frame.channel == channel and kind in (None, frame.type)
        ]

    def wait(self, channel: int, kind: int, timeout: float = TIMEOUT) -> Frame:
        """The first frame of a kind on a channel."""
        self.until(lambda: self.of(channel, kind), timeout)
        return self.of(channel, kind)[0]

    def ready(self, timeout: float = TIMEOUT) -> Frame:
        return self.wait(0, ToHost.READY, timeout)

    def logs(self) -> list[str]:
        return [frame.payload.decode() for frame in self.of(0, ToHost.LOG)]

    def ping(self) -> None:
        """Returns when the agent has handled everything sent before."""
        before = len(self.of(0, ToHost.PONG))
        self.send(protocol.encode_ping(before))
        self.until(lambda: len(self.of(0, ToHost.PONG)) > before)

    # Processes.

    def spawn(self, *argv: str, **fields: Any) -> int:
        """Starts a process; gives its channel."""
        fields.setdefault("env", [b"PATH=/usr/bin:/bin"])
        spawn = Spawn([word.encode() for word in argv], **fields)
        number = self.channel()
        self.send(protocol.encode_spawn(number, spawn))
        return number

    def output(self, channel: int, stream: int = 1) -> bytes:
        frames = self.of(channel, ToHost.OUTPUT)
        return b"".join(frame.payload for frame in frames if frame.flags == stream)

    def exit(self, channel: int, timeout: float = TIMEOUT) -> tuple[int, int]:
        """(code, signal), when the process has ended. Nothing may follow."""
        ends = (ToHost.EXITED, ToHost.FAILED)
        self.until(lambda: any(frame.type in ends for frame in self.of(channel)), timeout)
        assert not self.of(channel, ToHost.FAILED), self.of(channel)
        (frame,) = self.of(channel, ToHost.EXITED)
        assert self.of(channel)[-1] is frame
        return protocol.decode_exit(frame.argument)

    def run(self, *argv: str, **fields: Any) -> tuple[bytes, bytes, tuple[int, int]]:
        """(stdout, stderr, (code, signal)) of a process."""
        number = self.spawn(*argv, **fields)
        status = self.exit(number)
        return self.output(number), self.output(number, 2), status

    def failure(self, *argv: str, **fields: Any) -> tuple[int, int]:
        """(stage, errno) of a process that cannot be started."""
        number = self.spawn(*argv, **fields)
        frame = self.wait(number, ToHost.FAILED)
        assert self.of(number) == [frame]
        return frame.flags, frame.argument

    def taken(self, channel: int) -> int:
        """Bytes of stdin the agent has given credit for."""
        frames = self.of(channel, ToHost.CREDIT)
        return sum(protocol.decode_credit(frame.argument)[1] for frame in frames)

    def feed(self, channel: int, data: bytes, *, eof: bool = True) -> None:
        """Sends stdin as fast as credit allows."""
        view = memoryview(data)
        while view:
            self.until(lambda: self.taken(channel) > self.sent[channel] - protocol.STDIN_WINDOW)
            assert self.taken(channel) <= self.sent[channel]
            room = protocol.STDIN_WINDOW - (self.sent[channel] - self.taken(channel))
            self.sent[channel] += len(view[:room])
            self.send(protocol.encode_stdin(channel, bytes(view[:room])))
            view = view[room:]
        if eof:
            self.send(protocol.encode_stdin(channel, b"", eof=True))

    # Files.

    def read_file(self, path: bytes, offset: int = 0, size: int = 65536) -> Frame:
        number = self.channel()
        self.send(protocol.encode_file_read(number, path, offset, size))
        self.until(lambda: self.of(number))
        return self.of(number)[0]

    def write_file(self, path: bytes, data: bytes, offset: int = 0, mode: int = 0o644) -> int:
        number = self.channel()
        self.send(protocol.encode_file_write(number, path, offset, data, mode))
        return self.wait(number, ToHost.FILE_DONE).argument


def _default_quit() -> None:
    """A shell's background job ignores it, and qemu's user emulation then does not say so."""
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@contextmanager
def agent(arch: str, *under: str) -> Iterator[AgentHost]:
    """An agent of `arch` that has said READY; must end by itself when the host's end closes. under: a command that
    executes it.
    """
    words = [*under, *runner(arch)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "init")
        path.write_bytes(build(arch))
        path.chmod(0o755)
        ours, theirs = socket.socketpair()
        with ours:
            process = subprocess.Popen(
                [*words, str(path), "--port", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                preexec_fn=_default_quit,
            )
            theirs.close()
            try:
                host = AgentHost(ours)
                host.ready()
                yield host
                ours.shutdown(socket.SHUT_RDWR)
                _, errors = process.communicate(timeout=TIMEOUT)
                assert (process.returncode, errors) == (0, b"")
            finally:
                if process.poll() is None:
                    process.kill()
                    process.communicate()
