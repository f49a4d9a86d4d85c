"""virtio-rng, the entropy device (virtio 1.2 §5.4): fills buffers with the host's random bytes."""

from __future__ import annotations

import os

from crumble_common.virtqueue import Chain
from crumble_vmm.devices.virtio.local import LocalDevice, Loop

# A driver asks for tens of bytes; a hostile one may offer all its memory as one buffer.
MAX_FILL = 64 << 10


class Rng(LocalDevice):
    """One queue of buffers to fill (§5.4.6)."""

    device_id = 4

    def __init__(self, name: str, loop: Loop) -> None:
        super().__init__(name, (8,), loop)

    def handle(self, _index: int, chain: Chain, /) -> int:
        """Fills the start of the buffer."""
        return chain.write(os.urandom(min(chain.writable_len, MAX_FILL)))
