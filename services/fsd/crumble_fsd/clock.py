"""What time it is for the files that the guest writes: the host's, or in lockstep the guest's."""

from __future__ import annotations

import time


class Clock:
    """One for the process, as the host's is. told: the guest's time, ns since 1970; 0 takes the host's."""

    def __init__(self) -> None:
        self.told = 0

    def now(self) -> int:
        """ns since 1970."""
        return self.told or time.time_ns()


CLOCK = Clock()
