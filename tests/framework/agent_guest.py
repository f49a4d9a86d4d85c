"""Our init and agent in a real guest under QEMU, with a host's end of the port.

with AgentGuest(tmp_path, modules={"virtio_mmio": ...}) as guest:
    guest.host.run("uname", "-m")
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from crumble_vmm.boot.initramfs import Initramfs
from crumble_vmm.guest import build, module_path, protocol
from framework import assets
from framework.agent_process import AgentHost
from framework.ready import readable

APPLETS = "sh ls cat mount ps stty tty id uname sleep hostname date ifconfig grep touch sync echo seq sha256sum kill rm env head readlink stat mkdir poweroff"
# Boots take 2 s here, more when the machine is busy.
BOOT_TIMEOUT = 120.0


class AgentGuest:
    """files: more for the initramfs. root: socket of the vhost-user back end with the root file system.

    Without ioeventfd, QEMU takes what the port is given before the guest goes on: else a guest that powers off in that
    moment loses its last words.
    """

    def __init__(
        self,
        work: Path,
        *,
        modules: dict[str, bytes] | None = None,
        cmdline: str = "",
        root: Path | None = None,
        port_name: str = protocol.PORT_NAME,
        serial: str = "virtio-serial-pci,ioeventfd=off",
    ) -> None:
        if shutil.which("qemu-system-riscv64") is None:
            pytest.skip("qemu-system-riscv64 is not installed")
        kernel = assets.kernel().image
        archive = Initramfs()
        archive.file("init", build("riscv64"), 0o755)
        for index, (name, data) in enumerate((modules or {}).items()):
            archive.file(module_path(index, name), data)
        if root is None:
            archive.file("bin/busybox", assets.busybox(), 0o755)
            for name in APPLETS.split():
                archive.symlink(f"bin/{name}", "busybox")
        initramfs = work / "initramfs"
        initramfs.write_bytes(b"".join(archive.chunks()))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(work / "agent.sock"))
        self._listener.listen()
        self.console = work / "console.log"
        self.command = [
            "qemu-system-riscv64", "-M", "virt", "-nographic", "-nodefaults", "-no-reboot",
            "-serial", f"file:{self.console}", "-kernel", str(kernel), "-initrd", str(initramfs),
            "-append", f"console=ttyS0 quiet cryptomgr.notests {cmdline}",
            "-object", "memory-backend-memfd,id=m,size=256M,share=on", "-m", "256",
            "-machine", "memory-backend=m", "-device", serial,
            "-chardev", f"socket,id=agent,path={work}/agent.sock",
            "-device", f"virtserialport,chardev=agent,name={port_name}",
        ]  # fmt: skip
        if root is not None:
            self.command += [
                "-chardev", f"socket,id=root,path={root}",
                "-device", "vhost-user-fs-pci,chardev=root,tag=root,queue-size=1024",
            ]  # fmt: skip

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL)
        assert readable(self._listener, timeout=30), "QEMU did not start"
        self.host = AgentHost(self._listener.accept()[0])
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._listener.close()
        self.host.sock.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def ready(self) -> list[tuple[str, int]]:
        """Init's phases, when the agent is there."""
        return protocol.decode_ready(self.host.ready(BOOT_TIMEOUT).payload)

    def power_off(self, grace_ms: int = 5000) -> float:
        """Shuts the guest down; gives the seconds it took."""
        begin = time.monotonic()
        self.host.send(protocol.encode_shutdown(grace_ms))
        assert self.process.wait(60) == 0
        return time.monotonic() - begin

    def ended(self) -> str:
        """What was on the console, once the guest has powered off by itself."""
        assert self.process.wait(BOOT_TIMEOUT) == 0
        return self.console.read_text(errors="replace")
