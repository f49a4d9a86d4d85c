"""Waiting for a service's descriptors, lent flows being served in C meanwhile. See native/include/crumble/flow_wait.h."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from crumble_native._core import ffi, lib
from crumble_native.doorbell import Spinner
from crumble_native.flow import Flows
from crumble_native.udp_flow import UdpFlows
from crumble_native.vring import Virtqueue

READ: int = lib.CRB_WAIT_READ
WRITE: int = lib.CRB_WAIT_WRITE


class Waiter:
    """Waits on an epoll(7) descriptor. clock: seconds; None: CLOCK_MONOTONIC, which goes on meanwhile.

    Raises MemoryError.
    """

    def __init__(self, epoll: int, clock: Callable[[], float] | None = None) -> None:
        found = lib.crb_waiter_new(epoll)
        if found == ffi.NULL:
            raise MemoryError("there is no memory to wait with")
        self._waiter: Any = ffi.gc(found, lib.crb_waiter_free)
        self._clock = clock
        self._kept: dict[int, tuple[object, ...]] = {}
        events = self._waiter.events
        self._events = memoryview(ffi.buffer(events, ffi.sizeof(events))).cast("B").cast("I")

    def add(
        self, flows: Flows, rx: Virtqueue, tx: Virtqueue, spinner: Spinner,
        kicks: tuple[int, int], calls: tuple[int, int], udp: UdpFlows | None = None,
    ) -> int:  # fmt: skip
        """Serves a guest's flows from now on. kicks, calls: of rx, by which the driver receives, and of tx. Returns a
        number for `remove`, which comes before a descriptor is closed; -1 when it cannot be.
        """
        side = ffi.new(
            "crb_wait_side *",
            (
                flows.handle,
                ffi.NULL if udp is None else udp.handle,
                rx.handle,
                tx.handle,
                spinner.handle,
                *kicks,
                *calls,
                False,
                False,
            ),
        )
        number = int(lib.crb_waiter_add(self._waiter, side))
        if number >= 0:
            self._kept[number] = (flows, udp, rx, tx, spinner)  # C has their addresses
        return number

    def remove(self, number: int) -> None:
        """Serves it no more."""
        lib.crb_waiter_remove(self._waiter, number)
        self._kept.pop(number, None)

    def wait(self, seconds: float | None) -> list[tuple[int, int]]:
        """At most so long for something that is the caller's: descriptors, and READ, WRITE or both. A guest's kick of
        tx is among them when its ring or a flow is to be looked at. Raises OSError.
        """
        now = 0.0 if self._clock is None else self._clock()
        count = lib.crb_waiter_wait(self._waiter, -1.0 if seconds is None else seconds, now)
        if count < 0:
            raise OSError(-count, os.strerror(-count))
        if not count:
            return []
        words = self._events[: 2 * count].tolist()
        return list(zip(words[::2], words[1::2], strict=True))

    @property
    def chains(self) -> int:
        """Taken here so far."""
        return int(self._waiter.chains)
