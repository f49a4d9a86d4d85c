"""When this process could as well not be there: nothing is open, nobody listens, and its guest is quiet.

Python's copies of pages are most of what a VM that does nothing takes of the host's memory (docs/decisions/0014).
What a network knows is in the arena, so the supervisor may end it until somebody wants it.
"""

from __future__ import annotations

from collections.abc import Callable

from crumble_common.eventloop import EventLoop, Timer
from crumble_netd.guest import Guest
from crumble_netd.stack import Stack

# Without a frame for so long, s: a guest that begins has more than a second between its neighbour solicitations.
_QUIET = 4.0


class Rest:
    """Of a network with one guest. idle: called each time that it has been quiet for a while."""

    def __init__(
        self, loop: EventLoop, stack: Stack, guest: Guest, idle: Callable[[], None]
    ) -> None:
        self._loop, self._stack, self._guest, self._idle = loop, stack, guest, idle
        self._seen = -1
        self._timer: Timer = loop.call_later(_QUIET, self._look)

    def _look(self) -> None:
        self._timer = self._loop.call_later(_QUIET, self._look)
        guest, stack = self._guest, self._stack
        guest.device.count()
        before, self._seen = self._seen, guest.frames
        used = guest.forwards or guest.device.capture or stack.flows.all() or stack.tcp.ending
        quiet = self._seen == before and guest.port.rates_full(stack.now())
        if quiet and guest.serving.running and not used:
            self._idle()

    def close(self) -> None:
        """Looks no more."""
        self._timer.cancel()
