"""A back end's part in a capture of guest memory: what it writes to while pages are being saved, it saves first.

native/src/capture.c does it, for the rings and for what goes into the guest's pages alike. All there is to
do here is to hold the file's descriptor as long as a page may be frozen.
"""

from __future__ import annotations

import mmap
import os

from crumble_common.vhost_user.backend import Backend
from crumble_native.memory import STATE_HEADER_SIZE

_FROZEN = 0x20  # CRB_PAGE_FROZEN
_OTHERS = bytes(state for state in range(256) if not state & _FROZEN)


class MemoryCapture:
    """The capture under way, if there is one. page_state: None with a foreign front end."""

    def __init__(self, page_state: mmap.mmap | None) -> None:
        self._page_state = page_state
        self._backend: Backend | None = None

    def begin(self, fd: int, backend: Backend | None) -> None:
        """Frozen pages are saved to `fd`, which is taken over. The rings stand still."""
        self._backend = backend
        if backend is None:
            os.close(fd)
        else:
            backend.capture_to(fd)

    def end_if_done(self) -> bool:
        """Closes the file when nothing is frozen any more; True when none is open."""
        if not self._is_frozen():
            self.end()
        return self._backend is None

    def end(self) -> None:
        """Closes the file."""
        if self._backend is not None:
            self._backend.capture_to(-1)
            self._backend = None

    def _is_frozen(self) -> bool:
        if self._page_state is None:
            return False
        return bool(self._page_state[STATE_HEADER_SIZE:].translate(None, _OTHERS))
