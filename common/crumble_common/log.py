"""Structured log lines: `2026-01-31T12:00:00.000Z info fsd.vm1 mounted layers=3`.

A line is an event (a few fixed words) and fields. It goes to stderr, which is a service's log file
under the supervisor, with one write. $CRUMBLE_LOG is the least level shown: debug, info (the
default), warning, error. Values may come from a guest: control characters are escaped, lengths
bounded, and a flood is cut to a rate and counted.
"""

from __future__ import annotations

import os
import time
import traceback

LEVELS = ("debug", "info", "warning", "error")
_MAX_VALUE = 4000
# Lines a second a process may write for long, and at once; what is over is counted, not written.
_RATE, _BURST = 50.0, 1000.0


def _level(name: str) -> int:
    return LEVELS.index(name) if name in LEVELS else 1


class _Output:
    """Where this process's lines go, and how many it may still write."""

    def __init__(self) -> None:
        self.name = ""
        self.fd = 2
        self.level = _level(os.environ.get("CRUMBLE_LOG", "info"))
        self.allowance = _BURST
        self.refilled = time.monotonic()
        self.suppressed = 0

    def admit(self) -> bool:
        now = time.monotonic()
        self.allowance = min(_BURST, self.allowance + (now - self.refilled) * _RATE)
        self.refilled = now
        if self.allowance < 1:
            self.suppressed += 1
            return False
        self.allowance -= 1
        return True


_output = _Output()


def setup(name: str = "", *, fd: int = 2, level: str = "") -> None:
    """Says whose lines these are, where they go, and the least level shown ("": $CRUMBLE_LOG)."""
    global _output
    _output = _Output()
    _output.name, _output.fd = name, fd
    if level:
        _output.level = _level(level)


def debug(event: str, **fields: object) -> None:
    """A step, of interest to who works on the code."""
    _write(0, event, fields)


def info(event: str, **fields: object) -> None:
    """Something that happens a few times in a service's life."""
    _write(1, event, fields)


def warning(event: str, **fields: object) -> None:
    """Something is wrong but the work goes on."""
    _write(2, event, fields)


def error(event: str, **fields: object) -> None:
    """Something asked for could not be done."""
    _write(3, event, fields)


def exception(event: str, problem: BaseException, **fields: object) -> None:
    """An error that is a bug in Crumble, with its stack."""
    stack = "".join(traceback.format_exception(problem)).strip()
    _write(3, event, {**fields, "stack": stack})


def line(level: str, name: str, event: str, fields: dict[str, object], when: float) -> str:
    """One line, without its newline; `when` in seconds since the epoch."""
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when))
    head = f"{clock}.{int(when % 1 * 1000):03}Z {level} {name or '-'} {_escape(event)}"
    return " ".join([head, *(f"{key}={_value(value)}" for key, value in fields.items())])


def _value(value: object) -> str:
    text = _escape(str(value)[:_MAX_VALUE])
    plain = text and not any(mark in text for mark in ' "=')
    return text if plain else '"' + text.replace('"', '\\"') + '"'


def _escape(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _write(level: int, event: str, fields: dict[str, object]) -> None:
    out = _output
    if level < out.level or not out.admit():
        return
    if out.suppressed:
        fields["suppressed"], out.suppressed = out.suppressed, 0
    text = line(LEVELS[level], out.name, event, fields, time.time())
    try:
        os.write(out.fd, text.encode("utf-8", "replace") + b"\n")
    except OSError:
        pass  # a full disk or a closed terminal must not stop the work
