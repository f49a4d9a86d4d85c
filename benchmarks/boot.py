"""From nothing to a guest that takes commands, on `soft` beside QEMU's TCG; what a VM costs in memory.

    python -m benchmarks.boot [--rounds 5] [--image deb:trixie]

Both boot the same kernel with the same initramfs (our /init and modules) and command line, mount the
same image from an `fsd` of ours, have no network and are done when the agent says READY. Nothing goes on
from a snapshot: that is `benchmarks.start`. Rows:

  ready cpu   CPU seconds of the emulator process (vmm or QEMU), from its start to READY
  ready wall  kernel entry to READY (vmm's timeline) beside QEMU's start to READY
  run wall    `crumble run IMAGE true`, the whole command, no supervisor running
  run warm    the same, with `crumble up`
  exec wall   `crumble exec VM true` in a running VM, the whole command
  pss MiB     all processes of an idle VM with its own supervisor and a network, without guest memory (PSS)
  rss MiB     the same, RSS

RVVM and TinyEMU have no vhost-user, so they cannot have the same image: their boots to /init are the row `boot` of
`benchmarks.cpu`.

The last rows have no peer: they are absolutes of this host, for comparing runs on it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import crumble
from benchmarks._common import Comparison, Sample, process_cpu_seconds
from crumble_vmm.boards.base import QUIET_CMDLINE
from crumble_vmm.boards.riscv64 import BASE_CMDLINE
from crumble_vmm.boot.initramfs import Initramfs
from crumble_vmm.boot.modules import load_modules
from crumble_vmm.guest.build import build, module_path
from crumble_vmm.guest.protocol import ToHost

QEMU = "qemu-system-riscv64"
MEMORY_MIB = 512
CRUMBLE = Path(sys.executable).parent / "crumble"
# Guest RAM and what else a VM's processes share of it.
_GUEST_MEMORY = ("crumble-memory", "/dev/shm/", "memfd:")


def ocid(*arguments: str) -> dict[str, Any]:
    """An answer of the image service's command."""
    command = [sys.executable, "-m", "crumble_ocid", arguments[0], "--json", *arguments[1:]]
    answer: dict[str, Any] = json.loads(subprocess.check_output(command))
    return answer


def write_initramfs(path: Path, modules: list[str]) -> None:
    """The same as vmm makes."""
    archive = Initramfs()
    archive.character_device("dev/console", 5, 1)
    archive.file("init", build("riscv64"), 0o755)
    for number, module in enumerate(load_modules(tuple(Path(name) for name in modules))):
        archive.file(module_path(number, module.name), module.data)
    path.write_bytes(b"".join(archive.chunks()))


class QemuSide:
    """Boots under QEMU with the image served by a process of our fsd."""

    def __init__(self, folder: Path, image: str) -> None:
        kernel = ocid("kernel")
        self._layers = ocid("pull", "--policy", "missing", image)["layers"]
        self._kernel = str(kernel["image"])
        self._initramfs = folder / "initramfs"
        self._folder = folder
        write_initramfs(self._initramfs, list(kernel["modules"]))

    def boot(self) -> Sample:
        """One boot, to READY."""
        agent, files = self._folder / "agent", self._folder / "fs"
        for path in (agent, files):
            path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener, self._fsd(files):
            listener.bind(str(agent))
            listener.listen()
            listener.settimeout(120)
            started = time.monotonic()
            with subprocess.Popen(self._command(agent, files), stdout=subprocess.DEVNULL) as qemu:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(120)
                    await_ready(connection)
                wall, cpu = time.monotonic() - started, process_cpu_seconds(qemu.pid)
                qemu.kill()
        return {"ready wall": wall, "ready cpu": cpu}

    @contextmanager
    def _fsd(self, path: Path) -> Iterator[None]:
        assert isinstance(self._layers, list)
        layers = [f"--layer={layer['index']}:{layer['contents']}" for layer in self._layers]
        command = [sys.executable, "-m", "crumble_fsd", f"--socket-path={path}", *layers]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
            while not path.exists():
                time.sleep(0.01)
            yield
            server.terminate()

    def _command(self, agent: Path, files: Path) -> list[str]:
        line = f"{QUIET_CMDLINE} {BASE_CMDLINE} crumble.root=root"
        return [
            QEMU, "-M", "virt,memory-backend=m", "-m", f"{MEMORY_MIB}", "-smp", "1", "-nographic",
            "-nodefaults", "-no-reboot", "-serial", "null", "-kernel", self._kernel,
            "-initrd", str(self._initramfs), "-append", line,
            "-object", f"memory-backend-memfd,id=m,size={MEMORY_MIB}M,share=on",
            "-chardev", f"socket,id=fs,path={files}",
            "-device", "vhost-user-fs-pci,chardev=fs,tag=root",
            "-chardev", f"socket,id=agent,path={agent}",
            "-device", "virtio-serial-pci",
            "-device", "virtserialport,chardev=agent,name=crumble.agent",
            "-device", "virtio-rng-pci",
        ]  # fmt: skip


def await_ready(connection: socket.socket) -> None:
    """Reads frames until the agent's READY."""
    data = b""
    while True:
        chunk = connection.recv(65536)
        if not chunk:
            sys.exit("benchmarks.boot: the guest in QEMU ended before its agent was ready.")
        data += chunk
        while len(data) >= 16 and len(data) >= 16 + int.from_bytes(data[:4], "little"):
            if int.from_bytes(data[4:6], "little") == ToHost.READY:
                return
            data = data[16 + int.from_bytes(data[:4], "little") :]


def soft_boot(image: str) -> Sample:
    """One VM through the SDK, with its own supervisor; then `crumble run` and `exec`."""
    memory = MEMORY_MIB << 20
    with crumble.VM(image, memory=memory, network="none", boot_snapshot=False) as vm:
        (vmm,) = [item.pid for item in vm.info.services if item.name.startswith("vmm")]
        cpu = process_cpu_seconds(vmm)
        slices = {item.name: item for item in vm.timeline().slices}
        kernel = slices["guest: kernel"]
        ready = max(item.end for name, item in slices.items() if name.startswith("guest: "))
    with crumble.VM(image, memory=memory, boot_snapshot=False) as vm:
        vm.run(["true"])
        pids = [item.pid for item in vm.info.services] + children_of(os.getpid())
        rss, pss = memory_of(set(pids))
    sample = {
        "ready cpu": cpu,
        "ready wall": (ready - kernel.start) / 1e9,
        "run wall": timed("run", "--no-snapshot", image, "true"),
        "pss MiB": pss / 2**20,
        "rss MiB": rss / 2**20,
    }
    with supervisor():
        sample["run warm"] = timed("run", "--no-snapshot", image, "true")
        subprocess.run([CRUMBLE, "run", "-d", "--no-snapshot", "--name", "bench", image, "sleep", "1000"], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        sample["exec wall"] = timed("exec", "bench", "true")
    return sample


def timed(*arguments: str) -> float:
    """Wall seconds of one crumble command."""
    started = time.monotonic()
    subprocess.run([CRUMBLE, *arguments], check=True)
    return time.monotonic() - started


@contextmanager
def supervisor() -> Iterator[None]:
    """`crumble up` for as long as it lasts."""
    bare = {
        **os.environ,
        "CRUMBLE_RESERVE": "0",
    }  # no processes but those of the VM that is looked at
    subprocess.run([CRUMBLE, "up", "-d"], check=True, stdout=subprocess.DEVNULL, env=bare)
    try:
        yield
    finally:
        subprocess.run([CRUMBLE, "down"], check=True, stdout=subprocess.DEVNULL)


def children_of(pid: int) -> list[int]:
    """All descendants."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *children_of(child)]
    return found


def memory_of(pids: set[int]) -> tuple[int, int]:
    """RSS and PSS of processes together, bytes, without mappings of guest memory."""
    rss = pss = 0
    for pid in pids:
        counted = True
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            words = line.split()
            if "-" in words[0] and ":" not in words[0]:
                counted = not any(mark in line for mark in _GUEST_MEMORY)
            elif counted and words[0] in ("Rss:", "Pss:"):
                rss += int(words[1]) * 1024 * (words[0] == "Rss:")
                pss += int(words[1]) * 1024 * (words[0] == "Pss:")
    return rss, pss


def main() -> None:
    """Measures, prints the table, writes benchmarks/results/boot.json."""
    parser = argparse.ArgumentParser(prog="benchmarks.boot", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image", default="deb:trixie")
    options = parser.parse_args()
    if shutil.which(QEMU) is None:
        sys.exit(f"benchmarks.boot: {QEMU} is not installed.")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CRUMBLE_RUNTIME_DIR"] = f"{folder}/run"
        qemu = QemuSide(Path(folder), options.image)
        soft_boot(options.image)  # fills caches: the compiled agent, the kernel in the page cache
        comparison = Comparison("boot", "seconds unless said", {"rounds": options.rounds})
        sides = {"soft": lambda: soft_boot(options.image), "qemu-tcg": qemu.boot}
        comparison.measure(sides, options.rounds)
    print(comparison.table())
    print(f"written: {comparison.save()}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
