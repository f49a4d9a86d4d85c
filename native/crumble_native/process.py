"""What a process asks of the kernel for itself. See native/include/crumble/process.h."""

from __future__ import annotations

from crumble_native._core import lib


def merge_pages() -> bool:
    """Pages of this process, and of those it forks, that hold the same may be one page from now on; False where the
    kernel cannot (Linux 6.4, with KSM). It does where the host's administrator has turned KSM on.
    """
    return int(lib.crb_merge_pages()) == 0
