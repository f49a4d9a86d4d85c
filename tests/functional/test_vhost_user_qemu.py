"""Our vhost-user Backend under a front end that is not ours: an entropy device in QEMU, used by Linux."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest

from crumble_common import doorbell
from crumble_common.doorbell import QueuePump, Served
from crumble_common.eventloop import EventLoop
from crumble_common.vhost_user import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_VERSION_1,
    Backend,
    Ring,
    listen,
)
from crumble_common.virtqueue import Chain
from framework import assets
from framework.qemu_guest import QemuGuest

pytestmark = [pytest.mark.guest, pytest.mark.slow]


class CountingRng:
    """virtio-rng whose entropy is 0, 1, 2, … so that what arrives can be checked."""

    features = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC
    queues = 1
    config = None

    def __init__(self, loop: EventLoop) -> None:
        self.pump = QueuePump(loop)
        self.acked = 0
        self._ring: Ring | None = None
        self._next = itertools.cycle(range(256))

    def negotiated(self, features: int) -> None:
        self.acked = features

    def start(self, ring: Ring) -> None:
        assert ring.queue is not None
        self._ring = ring
        notify, broken = lambda: doorbell.ring(ring.call_fd), lambda _: ring.fail()
        self.pump.add(Served(ring.queue, ring.kick_fd, self._serve, notify, broken))

    def stop(self, index: int) -> None:
        assert self._ring is not None
        assert self._ring.queue is not None
        self.pump.remove(self._ring.queue)

    def reset(self) -> None:
        pass

    def _serve(self, chain: Chain) -> int:
        return chain.write(bytes(itertools.islice(self._next, chain.writable_len)))


def test_linux_reads_entropy_through_qemu(tmp_path: Path) -> None:
    script = """
    insmod /virtio-rng.ko || exit 1
    cat /sys/class/misc/hw_random/rng_available
    dd if=/dev/hwrng bs=64 count=40 2>/dev/null | od -An -v -tu1 | tr -s ' \\n' ' '
    """
    path = tmp_path / "rng.sock"
    guest = QemuGuest(
        tmp_path, script, {}, files={"virtio-rng.ko": assets.kernel().module("virtio_rng")}
    )
    guest.command += [
        "-chardev", f"socket,id=rng,path={path}", "-device", "vhost-user-rng-pci,chardev=rng",
    ]  # fmt: skip
    loop = EventLoop()
    device = CountingRng(loop)
    listener = listen(str(path))
    listener.settimeout(60)

    def serve() -> None:
        connection, _ = listener.accept()
        backend = Backend(connection, device)
        loop.add_fd(
            backend.fileno(), "vhost-user", lambda: backend.handle_readable() or loop.stop()
        )
        loop.run()
        loop.remove_fd(backend.fileno())
        backend.close()

    thread = threading.Thread(target=serve)
    thread.start()
    output = guest.run()
    thread.join(10)
    listener.close()
    loop.close()
    assert "virtio_rng" in output
    got = [int(word) for word in output.split("\n", 1)[1].split()]
    assert len(got) == 40 * 64
    steps = {(after - before) % 256 for before, after in itertools.pairwise(got)}
    # The kernel drops what is left of a buffer now and then, but within a buffer bytes count up.
    assert sum((b - a) % 256 == 1 for a, b in itertools.pairwise(got)) > 0.9 * len(got), steps
    assert device.acked & VIRTIO_F_EVENT_IDX
    assert device.pump.stats()["chains"] > 10
