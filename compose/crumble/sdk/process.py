"""A process in a guest, in the manner of subprocess.Popen.

Output that nobody has read yet is bounded by credit: the guest's process waits, as on a full pipe.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any, Self

from crumble_common.errors import CrumbleError, GuestError
from crumble_common.messages import vm as messages

if TYPE_CHECKING:
    from crumble.sdk.session import Session

PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL

# Bytes that may be on their way in each stream.
_CREDIT = 1 << 20
_CHUNK = 64 << 10
# What a killed process may take to be gone, s.
_KILL_LIMIT = 5.0


class CommandError(GuestError):
    """A command ended with another status than 0. Also a subprocess.CalledProcessError by content."""

    def __init__(self, args: Sequence[str], returncode: int, stdout: Any, stderr: Any) -> None:
        super().__init__(
            f"{args[0]} ended with status {returncode}.", code="exec.status", status=returncode
        )
        self.cmd, self.returncode = list(args), returncode
        self.stdout, self.stderr = stdout, stderr


class CommandTimeoutError(GuestError, TimeoutError):
    """A command did not end in time, and was killed."""

    def __init__(self, args: Sequence[str], timeout: float, stdout: Any, stderr: Any) -> None:
        super().__init__(f"{args[0]} did not end within {timeout:g} s.", code="exec.timeout")
        self.cmd, self.timeout = list(args), timeout
        self.stdout, self.stderr = stdout, stderr


class _Output(io.RawIOBase):
    """The reading end of a stream; filled by the loop's thread."""

    def __init__(self, process: Process, stream: int) -> None:
        self._process = process
        self._stream = stream
        self._data = bytearray()
        self._ended = False
        self._changed = threading.Condition()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._data or self._ended)
            size = min(len(buffer), len(self._data))
            buffer[:size] = self._data[:size]
            del self._data[:size]
        self._process.took(self._stream, size)
        return size

    def feed(self, data: bytes) -> None:
        with self._changed:
            if not self.closed:
                self._data += data
                self._changed.notify_all()
                return
        self._process.took(self._stream, len(data))  # closed: thrown away

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class _Input(io.RawIOBase):
    """The writing end of stdin."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._credit = _CREDIT
        self._ended = False
        self._changed = threading.Condition()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._credit > 0 or self._ended)
            if self._ended:
                raise BrokenPipeError("the process has ended")
            chunk = bytes(memoryview(data).cast("B")[: min(_CHUNK, self._credit)])
            self._credit -= len(chunk)
        self._process.input(chunk)
        return len(chunk)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._process.input(b"", eof=True)

    def taken(self, size: int) -> None:
        with self._changed:
            self._credit += size
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class _Sink:
    """A stream that goes to an fd of ours, or nowhere."""

    def __init__(self, process: Process, stream: int, fd: int) -> None:
        self._process, self._stream, self._fd = process, stream, fd

    def feed(self, data: bytes) -> None:
        view = memoryview(data)
        while view and self._fd >= 0:
            try:
                view = view[os.write(self._fd, view) :]
            except OSError:
                self._fd = -1
        self._process.took(self._stream, len(data))

    def end(self) -> None:
        pass


class Process:
    """A started process. stdin, stdout, stderr: file objects where PIPE was asked for.

    args: as given. pid: the guest's. returncode: None while it runs, then its status, or -N when
    signal N killed it, as subprocess has it.
    """

    def __init__(self, session: Session, target: str, args: Sequence[str]) -> None:
        self.args = list(args)
        self.pid = 0
        self.number = 0
        self.returncode: int | None = None
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        self._session = session
        self._target = target
        self._failure: CrumbleError | None = None
        self._over = threading.Event()
        self._input = _Input(self)
        self._outputs: dict[int, _Output | _Sink] = {}

    def open(self, stdin: int | None, stdout: int | None, stderr: int | None, text: bool) -> None:
        """Makes the streams, before the process starts."""
        if stdin == PIPE:
            raw = io.BufferedWriter(self._input)
            self.stdin = io.TextIOWrapper(raw) if text else raw
        self.stdout = self._output(1, stdout, text)
        self.stderr = self._output(2, stderr, text)

    def _output(self, stream: int, wanted: int | None, text: bool) -> IO[Any] | None:
        if wanted != PIPE:
            fd = {None: stream, DEVNULL: -1}.get(wanted, wanted)
            assert fd is not None
            self._outputs[stream] = _Sink(self, stream, fd)
            return None
        raw = self._outputs[stream] = _Output(self, stream)
        buffered = io.BufferedReader(raw, _CHUNK)
        return io.TextIOWrapper(buffered) if text else buffered

    # Called in the loop's thread.

    def started(self, reply: messages.ProcessStarted) -> None:
        """It runs."""
        self.number, self.pid = reply.process, reply.pid

    def event(self, event: Any) -> None:
        """What the guest says of it."""
        if isinstance(event, messages.ProcessOutput) and event.stream in self._outputs:
            self._outputs[event.stream].feed(event.data)
        elif isinstance(event, messages.ProcessCredit):
            self._input.taken(event.size)
        elif isinstance(event, messages.ProcessExit):
            self.returncode = -event.signal if event.signal else event.status
            self._end()

    def fail(self, error: CrumbleError) -> None:
        """Its VM is gone."""
        if not self._over.is_set():
            self._failure = error
            self._end()

    def _end(self) -> None:
        self._over.set()
        self._input.end()
        for output in self._outputs.values():
            output.end()

    def took(self, stream: int, size: int) -> None:
        """Bytes of a stream were taken: as many more may come."""
        if size and not self._over.is_set():
            self._session.send(messages.ProcessCredit(self.number, stream, size), self._target)

    def input(self, data: bytes, eof: bool = False) -> None:
        """Bytes for stdin."""
        if not self._over.is_set():
            self._session.send(messages.ProcessInput(self.number, data, eof), self._target)

    # The user's.

    def poll(self) -> int | None:
        """The return code, None while it runs. Raises when its VM failed."""
        if self._failure is not None:
            raise self._failure
        return self.returncode if self._over.is_set() else None

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end. Raises CommandTimeoutError; the process goes on then."""
        if not self._over.wait(timeout):
            assert timeout is not None
            raise CommandTimeoutError(self.args, timeout, None, None)
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, number: int) -> None:
        """Sends a signal to it; nothing happens when it has ended."""
        if self._over.is_set():
            return
        try:
            self._session.call(messages.ProcessSignal(self.number, number), to=self._target)
        except GuestError:
            if not self._over.wait(1):
                raise

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def resize(self, rows: int, cols: int) -> None:
        """Its terminal has a new size."""
        self._session.send(messages.ProcessResize(self.number, rows, cols), self._target)

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:  # noqa: A002  subprocess has it
        """Sends `input`, reads everything, waits. Raises CommandTimeoutError with what came so far."""
        readers = [_Reader(pipe) for pipe in (self.stdout, self.stderr)]
        threading.Thread(target=self._write_all, args=(input,), daemon=True).start()
        late = not self._over.wait(timeout)
        if late:
            self.kill()
            self._over.wait(_KILL_LIMIT)
        stdout, stderr = (reader.result() for reader in readers)
        if late:
            raise CommandTimeoutError(self.args, timeout or 0, stdout, stderr)
        self.poll()
        return stdout, stderr

    def _write_all(self, data: Any) -> None:
        if self.stdin is None:
            return
        try:
            if data:
                self.stdin.write(data)
            self.stdin.close()
        except (BrokenPipeError, ValueError):
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()
        self._over.wait()


class _Reader:
    """Reads a pipe to its end in a thread."""

    def __init__(self, pipe: IO[Any] | None) -> None:
        self._data: Any = None
        self._pipe = pipe
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        if self._pipe is not None:
            self._data = self._pipe.read()

    def result(self) -> Any:
        self._thread.join(_KILL_LIMIT)
        return self._data
