"""virtio-rng, the entropy device (virtio 1.2 §5.4): fills buffers with the host's random bytes."""

from __future__ import annotations

import os
from collections.abc import Callable

from crumble_common.virtqueue import Chain
from crumble_vmm.devices.virtio.local import LocalDevice, Loop

# A driver asks for tens of bytes; a hostile one may offer all its memory as one buffer.
MAX_FILL = 64 << 10


class Rng(LocalDevice):
    """One queue of buffers to fill (§5.4.6)."""

    device_id = 4

    def __init__(self, name: str, loop: Loop, entropy: Callable[[int], bytes] = os.urandom) -> None:
        super().__init__(name, (8,), loop)
        self._entropy = entropy

    def handle(self, _index: int, chain: Chain, /) -> int:
        """Fills the start of the buffer."""
        return chain.write(self._entropy(min(chain.writable_len, MAX_FILL)))
