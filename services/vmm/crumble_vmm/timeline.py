"""Where a boot's time went (H9): phases of this process and of the guest on one clock.

Phases are spans of the binary trace (crumble_common.trace), in ns of CLOCK_MONOTONIC. The guest tells
the start of each phase of its init on its own monotonic clock when the agent is ready; the last of
them is the moment it said so, which ties the two clocks together.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

from crumble_common.messages.vm import Slice
from crumble_common.trace import BEGIN, END, Trace, spans

# A boot has about twenty phases.
_CAPACITY = 512


class Timeline:
    """The recorder of one VM. Any thread."""

    def __init__(self) -> None:
        self._trace = Trace(_CAPACITY)
        self.entry = 0
        """When the guest's kernel was entered, ns; 0 before."""

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
            self.record("guest: kernel and init", self.entry, now)
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
