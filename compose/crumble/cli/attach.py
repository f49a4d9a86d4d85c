"""A process in a guest, attached to this command's own streams, terminal and signals."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from typing import Any

from crumble.cli import terminal
from crumble.cli.link import Link
from crumble.cli.main import say
from crumble.cli.signals import Interrupted, Signals
from crumble.cli.streams import Reader, Writer
from crumble.sdk.options import failure_of
from crumble_common.errors import CrumbleError, GuestError
from crumble_common.messages import vm as messages

# Bytes of stdin that may be on their way.
_STDIN_CREDIT = 1 << 20
# Whoever sends two of these wants the end, whatever the command does with them.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LATE = 124  # timeout(1)'s


class CommandLateError(GuestError):
    """The time given with --timeout is over."""

    def __init__(self, seconds: float) -> None:
        text = f"The command did not end within {seconds:g} s."
        super().__init__(text, code="exec.timeout", hint="Give it longer with --timeout.")


def status_of(run: Callable[[], int]) -> int:
    """The exit status of `run`, also when a signal or --timeout ended it."""
    try:
        return run()
    except Interrupted as interrupted:
        return interrupted.status
    except CommandLateError as error:
        say(str(error))
        return _LATE


class Attached:
    """Runs one process from start to exit. Feed `event` with what comes from its VM."""

    def __init__(self, link: Link, target: str, start: messages.ProcessStart) -> None:
        self._link = link
        self._target = target
        self._start = start
        self._process = 0
        self._status: int | None = None
        self._interrupts = 0
        # A terminal has one stream; what the pty says goes to stdout.
        self._outputs = {stream: self._output(stream) for stream in (1, 2)}
        self._input = Reader(link.loop, 0, self._typed) if start.stdin else None

    @property
    def ended(self) -> bool:
        """The process has; its output may still be on its way."""
        return self._status is not None

    def kill(self) -> None:
        """Ends the process by force."""
        self._forward(signal.SIGKILL)

    def run(self) -> int:
        """Starts it and serves until it has ended and its output is written; its exit status."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            if self._start.tty:
                # Raw from the start: a key typed early is the guest's.
                stack.enter_context(terminal.raw(0))
            stack.enter_context(Signals(self._link.loop, self._signal))
            started = self._link.call(self._start, to=self._target)
            self._process = started.process
            if self._input is not None:
                self._input.allow(_STDIN_CREDIT)
            while self._status is None or not self._written():
                self._link.loop.step()
        return self._status

    def event(self, event: Any) -> None:
        """An event of the VM; raises when it means that the process will never end."""
        if isinstance(event, messages.ProcessOutput):
            self._outputs[event.stream].write(event.data)
        elif isinstance(event, messages.ProcessCredit) and self._input is not None:
            self._input.allow(event.size)
        elif isinstance(event, messages.ProcessExit):
            self._status = event.status
        elif (error := failure_of(event)) is not None and self._status is None:
            raise error

    def limit(self, seconds: float) -> None:
        """Raises CommandLateError in the loop when it has not ended by then."""
        self._link.loop.call_later(seconds, lambda: self._late(seconds))

    def _output(self, stream: int) -> Writer:
        return Writer(self._link.loop, stream, lambda size: self._wrote(stream, size), self._broken)

    def _late(self, seconds: float) -> None:
        if self._status is None:
            raise CommandLateError(seconds)

    def _written(self) -> bool:
        return all(output.empty for output in self._outputs.values())

    def _close(self) -> None:
        for output in self._outputs.values():
            output.close()
        if self._input is not None:
            self._input.close()

    def _send(self, event: Any) -> None:
        self._link.client.send(event, self._target)

    def _wrote(self, stream: int, size: int) -> None:
        if self._status is None and size:
            self._send(messages.ProcessCredit(self._process, stream, size))

    def _broken(self) -> None:
        """Nobody reads our output: the process gets what a writer to a closed pipe gets."""
        self._forward(signal.SIGPIPE)

    def _typed(self, data: bytes) -> None:
        self._send(messages.ProcessInput(self._process, data, eof=not data))

    def _signal(self, number: int) -> None:
        if number == signal.SIGWINCH:
            if self._process and self._start.tty:
                rows, cols = terminal.size(sys.stdout.fileno())
                self._send(messages.ProcessResize(self._process, rows, cols))
            return
        self._interrupts += number in _ENDING
        if not self._process or self._interrupts > 1:
            raise Interrupted(number)
        self._forward(number)

    def _forward(self, number: int) -> None:
        if self._process and self._status is None:
            signal_it = messages.ProcessSignal(self._process, number)
            self._link.client.request(signal_it, _ignore, to=self._target)


def _ignore(_body: Any, _error: CrumbleError | None) -> None:
    """It may have ended meanwhile."""
