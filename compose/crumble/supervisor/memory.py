"""Guest memory, as the fds that a VM's services are given."""

from __future__ import annotations

from crumble_common.guest_memory import GuestMemory


def allocate(size: int) -> dict[str, int]:
    """New guest memory of `size` bytes: fds "memory" and "page_state", the caller's to close."""
    return GuestMemory.create(size).detach()
