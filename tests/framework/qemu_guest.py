"""A real Linux guest in QEMU, to use services under a VMM that is not ours.

    guest = QemuGuest(tmp_path, script="find /mnt | sort", virtiofs="/path/of/fsd.sock")
    output = guest.run()

Boots a stock kernel with a busybox initramfs whose init mounts the virtio-fs device at /mnt, runs the
script and powers off. Kernel and busybox come from framework.assets.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from crumble_vmm.boot.initramfs import Initramfs
from framework import assets

_BEGIN, _END = "==begin==", "==end=="
_INIT = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /bin /proc /sys /dev /mnt /tmp /run
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmpfs /tmp
echo 1 > /proc/sys/kernel/printk
for tag in MOUNTS; do mkdir -p /mnt/$tag; done
MOUNTING
echo {_BEGIN}
sh /script 2>&1
echo "{_END} $?"
poweroff -f
"""


class QemuGuest:
    """virtiofs: tag → socket of a vhost-user back end; each is mounted at /mnt, or /mnt/TAG if many.

    files: more for the initramfs. More devices: append to `command`.
    """

    def __init__(
        self,
        work: Path,
        script: str,
        virtiofs: dict[str, Path],
        *,
        options: str = "",
        memory: int = 256,
        files: dict[str, bytes] | None = None,
    ) -> None:
        if shutil.which("qemu-system-riscv64") is None:
            pytest.skip("qemu-system-riscv64 is not installed")
        kernel = assets.kernel().image
        archive = Initramfs()
        archive.file("init", _init(virtiofs, options).encode(), 0o755)
        archive.file("script", script.encode(), 0o755)
        archive.file("bin/busybox", assets.busybox(), 0o755)
        for name, data in (files or {}).items():
            archive.file(name, data, 0o644)
        initramfs = work / "initramfs"
        initramfs.write_bytes(b"".join(archive.chunks()))
        self.command = [
            "qemu-system-riscv64", "-M", "virt", "-nographic", "-nodefaults", "-no-reboot",
            "-serial", "stdio", "-kernel", str(kernel), "-initrd", str(initramfs),
            "-append", "console=ttyS0 quiet cryptomgr.notests",
            "-object", f"memory-backend-memfd,id=m,size={memory}M,share=on", "-m", f"{memory}",
            "-machine", "memory-backend=m",
        ]  # fmt: skip
        for index, (tag, path) in enumerate(virtiofs.items()):
            self.command += [
                "-chardev", f"socket,id=c{index},path={path}",
                "-device", f"vhost-user-fs-pci,chardev=c{index},tag={tag},queue-size=1024",
            ]  # fmt: skip

    def run(self, timeout: float = 240) -> str:
        """What the script printed. Fails when it did not run to its end."""
        done = subprocess.run(
            self.command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        output = done.stdout.decode(errors="replace").replace("\r\n", "\n")
        assert _BEGIN in output, (
            f"the guest did not get to its script:\n{output}\n{done.stderr.decode()}"
        )
        body, end, status = output.split(_BEGIN + "\n", 1)[1].partition(_END)
        assert end, f"the script did not end:\n{body}"
        assert status.split()[0] == "0", f"the script failed ({status.split()[0]}):\n{body}"
        return body


def _init(virtiofs: dict[str, Path], options: str) -> str:
    mounts = [
        f"mount -t virtiofs {options} {tag} {'/mnt' if len(virtiofs) == 1 else f'/mnt/{tag}'} || exit 1"
        for tag in virtiofs
    ]
    tags = " ".join(virtiofs) if len(virtiofs) > 1 else ""
    return _INIT.replace("MOUNTS", tags).replace("MOUNTING", "\n".join(mounts))
