"""Guest memory, as the fds that a VM's services are given."""

from __future__ import annotations

import os


def allocate(size: int) -> dict[str, int]:
    """New guest memory of `size` bytes: fds "memory" and "page_state", the caller's to close."""
    made = {"memory": os.memfd_create("memory"), "page_state": os.memfd_create("page_state")}
    os.truncate(made["memory"], size)
    os.truncate(made["page_state"], size >> 12)
    return made
