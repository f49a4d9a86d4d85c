"""Where a boot's time went (H9): phases of this process and of the guest on one clock.

Phases are spans of the binary trace (crumble_common.trace), in ns of CLOCK_MONOTONIC. The guest tells
the start of each phase of its init on its own monotonic clock when the agent is ready; the last of
them is the moment it said so, which ties the two clocks together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from crumble_common.messages.vm import Slice
from crumble_common.trace import BEGIN, END, Trace, spans

# A boot has about twenty phases.
_CAPACITY = 512
# proc(5), /proc/PID/stat: field 22, of those behind the command's name.
_START_TIME = 19


def process_start() -> int:
    """When this process was asked for, else forked or started (to a clock tick, 10 ms); ns of CLOCK_MONOTONIC."""
    if asked := os.environ.get("CRUMBLE_BEGUN"):
        return int(asked)
    now = time.monotonic_ns()
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return now  # no Linux, or no /proc
    ticks = int(fields[_START_TIME])
    since_boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    age = since_boot - ticks * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
    return now - max(age, 0)


class Timeline:
    """The recorder of one VM. Any thread."""

    def __init__(self) -> None:
        self._trace = Trace(_CAPACITY)
        self._last_step = process_start()
        self.entry = 0
        """When the guest's kernel was entered, ns; 0 before."""
        self.resumed = False
        """The guest goes on from a snapshot."""

    def step(self, name: str) -> None:
        """A phase that began when this process, or the last step, did, and ends now."""
        now = time.monotonic_ns()
        self.record(name, self._last_step, now)
        self.skip()

    def skip(self) -> None:
        """What happened until now belongs to no step."""
        self._last_step = time.monotonic_ns()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Records what is done inside."""
        return self._trace.span(name)

    def record(self, name: str, start: int, end: int) -> None:
        """A phase that was measured elsewhere."""
        self._trace.write(name, BEGIN, start)
        self._trace.write(name, END, max(start, end))

    def enter_guest(self) -> None:
        """The first vCPU starts now."""
        self.entry = time.monotonic_ns()

    def guest_ready(self, phases: Sequence[tuple[str, int]]) -> None:
        """The agent is ready. phases: (name, start in ns of the guest's clock), in order."""
        now = time.monotonic_ns()
        if not phases:
            self.record(
                "guest: resume" if self.resumed else "guest: kernel and init", self.entry, now
            )
            return
        offset = now - phases[-1][1]
        # A guest's clock may say anything: no phase starts before the kernel or after now.
        starts = [min(max(start + offset, self.entry), now) for _, start in phases]
        self.record("guest: kernel", self.entry, starts[0])
        for (name, _), start, end in zip(phases, starts, [*starts[1:], now], strict=True):
            if start < end:
                self.record(f"guest: {name}"[:60], start, end)

    def slices(self) -> list[Slice]:
        """Everything recorded, in order of start."""
        found = spans(self._trace.records())
        return [Slice(span.name, span.start, span.end) for span in found]
