"""The end of an upper directory whose process is killed."""

from __future__ import annotations

import os

from crumble_fsd.upper import Upper
from crumble_fsd.upper_directory import DirectoryUpper


def abandon(upper: Upper) -> None:
    """Closes descriptors as the kernel does for a killed process: nothing is written any more."""
    assert isinstance(upper, DirectoryUpper)
    upper._journal.close()
    for fd in (upper._data, upper._root, upper._lock, *(i.fd for i in upper._open.values())):
        os.close(fd)
