"""Virtqueues as services use them: `crumble_native.vring` with errors that say whose fault it is."""

from __future__ import annotations

from crumble_common.errors import GuestError
from crumble_native import vring
from crumble_native.vring import MAX_SIZE, Chain, inflight_size

__all__ = ["MAX_SIZE", "Chain", "RingError", "Virtqueue", "inflight_size"]


class RingError(GuestError):
    """The guest broke a rule of its ring: mark the device broken (DEVICE_NEEDS_RESET) and go on."""


class Virtqueue(vring.Virtqueue):
    """The device side of a split virtqueue; see `crumble_native.vring.Virtqueue`. Raises RingError."""

    error = RingError
