"""Our vhost-user Frontend, and the test master on it, with a back end that is not ours: QEMU's virtiofsd."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.vhost_user_master import Master, MasterQueue

VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
pytestmark = [
    pytest.mark.skipif(not VIRTIOFSD.exists(), reason="QEMU's virtiofsd is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="virtiofsd's sandbox needs root"),
]
FUSE_INIT, FUSE_LOOKUP, ENOENT = 26, 1, 2
REQUESTS = 1  # queue 0 is for FORGET


@pytest.fixture
def virtiofsd(tmp_path: Path) -> Iterator[str]:
    shared, path = tmp_path / "shared", tmp_path / "fs.sock"
    shared.mkdir()
    (shared / "hello").write_text("from the host")
    process = subprocess.Popen(
        [VIRTIOFSD, f"--socket-path={path}", "-o", f"source={shared}", "-o", "sandbox=chroot"],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while not path.exists():
        assert process.poll() is None, "virtiofsd ended at once"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield str(path)
    process.kill()
    process.wait()


def ask(queue: MasterQueue, opcode: int, nodeid: int, body: bytes) -> tuple[int, bytes]:
    """Sends a FUSE request; returns errno and the reply's body."""
    header = struct.pack("<IIQQIIII", 40 + len(body), opcode, 7, nodeid, 0, 0, 1, 0)
    head = queue.submit([header, body], [16, 4096])
    answered, written, data = queue.wait()
    length, error, unique = struct.unpack_from("<IiQ", data)
    assert (answered, length, unique) == (head, written, 7)
    return -error, data[16:]


@pytest.mark.parametrize("indirect", [False, True])
def test_fuse_requests_are_answered(virtiofsd: str, indirect: bool) -> None:
    with Master(virtiofsd) as master:
        master.attach(queues=2, indirect=indirect)
        queue = master.queues[REQUESTS]
        error, reply = ask(queue, FUSE_INIT, 0, struct.pack("<IIII", 7, 31, 1 << 17, 0))
        assert (error, struct.unpack_from("<I", reply)) == (0, (7,))
        error, reply = ask(queue, FUSE_LOOKUP, 1, b"hello\0")
        assert (error, struct.unpack_from("<Q", reply, 40 + 8)[0]) == (0, len("from the host"))
        for _ in range(500):
            assert ask(queue, FUSE_LOOKUP, 1, b"nothing\0")[0] == ENOENT
        assert master.detach()[REQUESTS] == 502


def test_queues_stop_and_start_again(virtiofsd: str) -> None:
    with Master(virtiofsd) as master:
        master.attach(queues=2)
        queue = master.queues[REQUESTS]
        ask(queue, FUSE_INIT, 0, struct.pack("<IIII", 7, 31, 1 << 17, 0))
        base = master.detach()[REQUESTS]
        master.frontend.start_ring(REQUESTS, queue.setup(base))
        master.frontend.enable_ring(REQUESTS, True)
        assert ask(queue, FUSE_LOOKUP, 1, b"hello\0")[0] == 0
