"""Root file systems for real guests in tests: a busybox tree, and processes that serve it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from framework.assets import busybox

VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
_COMMANDS = (
    "sh cat date echo env false grep head hostname id kill ls mount nproc poweroff printf ps reboot seq "
    "sha256sum sleep stty touch true tty uname wc"
)


def make_root(path: Path) -> Path:
    """Fills a directory with what a guest needs to be of use."""
    for name in ("bin", "etc", "tmp", "root", "srv"):
        (path / name).mkdir(parents=True)
    path.chmod(0o755)  # it becomes a guest's /, for all its users
    (path / "bin/busybox").write_bytes(busybox())
    (path / "bin/busybox").chmod(0o755)
    for name in _COMMANDS.split():
        (path / "bin" / name).symlink_to("busybox")
    (path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n")
    (path / "etc/group").write_text("root:x:0:\nextra:x:50:web\n")
    return path


@contextmanager
def fsd(root: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Our own server of `root`: a connected socket, the caller's to use up, and the process."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "crumble_fsd", "--fd", str(theirs.fileno())]
    with theirs:
        process = subprocess.Popen(
            [*command, "--shared-dir", str(root)], pass_fds=[theirs.fileno()]
        )
    try:
        yield ours.detach(), process
    finally:
        process.kill()
        process.wait()


@contextmanager
def virtiofsd(root: Path, work: Path) -> Iterator[int]:
    """QEMU's virtiofsd serving `root`: a connected socket."""
    path = work / "virtiofsd.sock"
    process = subprocess.Popen(
        [VIRTIOFSD, f"--socket-path={path}", "-o", f"source={root}", "-o", "sandbox=chroot"],
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while not path.exists():
            assert process.poll() is None, "virtiofsd ended at once"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(os.fspath(path))
        yield sock.detach()
    finally:
        process.kill()
        process.wait()
