"""Other VMMs beside us on a host of its own: each boots the same kernel to the same init, is saved, and goes on.

A peer is a process whose stdout is its guest's console. Each is found by its command's name on PATH.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from benchmarks._common import Sample
from crumble.supervisor.backend import choose

LIMIT = 120.0
UP, ALIVE = b"UP", b"."
_SERIAL = {"amd64": "ttyS0", "arm64": "ttyAMA0", "riscv64": "ttyS0"}


@dataclass(frozen=True)
class Guest:
    """What every peer boots. kernel: an ELF file for amd64, an Image else. memory: MiB."""

    architecture: str
    kernel: str
    initramfs: str
    memory: int

    @property
    def cmdline(self) -> str:
        return f"console={_SERIAL[self.architecture]} quiet loglevel=1 panic=-1 reboot=k cryptomgr.notests"


class Peer(ABC):
    """folder: for sockets and what is saved. api: its control socket."""

    command: str

    def __init__(self, guest: Guest, folder: Path) -> None:
        self.guest = guest
        self.folder = folder / self.command
        self.folder.mkdir()
        self.api = self.folder / "api"

    @classmethod
    def there(cls, _architecture: str) -> bool:
        return shutil.which(cls.command) is not None

    @abstractmethod
    def booting(self) -> list[str]:
        """The words that start a guest, with a control socket at `api`."""

    @abstractmethod
    def save(self) -> None:
        """Stops the guest that runs, and saves it in `folder`."""

    @abstractmethod
    def restoring(self) -> list[str]:
        """The words that start a process for what was saved."""

    @abstractmethod
    def started(self) -> None:
        """Whatever else the process for what was saved must be told."""

    def sample(self) -> Sample:
        """One round: ms until the guest was up, MiB (PSS) then, ms until what was saved goes on."""
        self.api.unlink(missing_ok=True)
        began = time.perf_counter()
        with self._process(self.booting()) as process:
            await_console(process, UP)
            booted = time.perf_counter() - began
            memory = pss(process.pid)
            self.save()
        self.api.unlink(missing_ok=True)
        began = time.perf_counter()
        with self._process(self.restoring()) as process:
            self.started()
            await_console(process, ALIVE)
            restored = time.perf_counter() - began
        return {"boot": booted * 1000, "restore": restored * 1000, "memory": memory}

    @contextmanager
    def _process(self, words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        log = self.folder / "log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
            )
        try:
            yield process
        except Exception as error:
            raise RuntimeError(f"{self.command}: {error}; {log.read_text()[-500:]}") from error
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()

    def connected(self) -> socket.socket:
        """Its control socket, which appears a moment after the process."""
        end = time.monotonic() + LIMIT
        while True:
            try:
                made = socket.socket(socket.AF_UNIX)
                made.connect(str(self.api))
                return made
            except OSError:
                made.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.001)

    def ask(self, method: str, path: str, body: object = None) -> None:
        """One request of a REST API over the control socket; RuntimeError when it is refused."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = self.connected()
        said = None if body is None else json.dumps(body)
        connection.request(method, path, said, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        why = answer.read()
        connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {why!r}")


class Qemu(Peer):
    """microvm on x86, virt elsewhere; saved by migration into a file."""

    command = "qemu"

    def __init__(self, guest: Guest, folder: Path) -> None:
        super().__init__(guest, folder)
        self._saved = self.folder / "saved"

    @classmethod
    def there(cls, architecture: str) -> bool:
        return shutil.which(_qemu(architecture)) is not None

    def booting(self) -> list[str]:
        guest = self.guest
        kvm = choose("auto").name == "kvm"
        machine = "microvm" if guest.architecture == "amd64" else "virt"
        words = [
            _qemu(guest.architecture), "-M", machine, "-accel", "kvm" if kvm else "tcg",
            "-cpu", "host" if kvm else "max", "-m", str(guest.memory), "-nodefaults", "-no-user-config",
            "-display", "none", "-serial", "stdio", "-kernel", guest.kernel, "-initrd", guest.initramfs,
            "-append", guest.cmdline, "-qmp", f"unix:{self.api},server=on,wait=off",
        ]  # fmt: skip
        if not kvm and guest.architecture == "riscv64":
            words[words.index("max")] = "rv64"
        return words

    def save(self) -> None:
        with self.connected() as control, control.makefile("rw") as lines:
            _qmp(lines, "qmp_capabilities")
            _qmp(lines, "stop")
            _qmp(lines, "migrate", uri=f"exec:cat > {self._saved}")
            end = time.monotonic() + LIMIT
            while _qmp(lines, "query-migrate").get("status") != "completed":
                if time.monotonic() > end:
                    raise RuntimeError("it was not saved in time")
                time.sleep(0.01)

    def restoring(self) -> list[str]:
        return [*self.booting(), "-incoming", f"exec:cat {self._saved}"]

    def started(self) -> None:
        """What was saved standing still does so until it is told."""
        with self.connected() as control, control.makefile("rw") as lines:
            _qmp(lines, "qmp_capabilities")
            end = time.monotonic() + LIMIT
            while _qmp(lines, "query-status").get("status") != "paused":
                if time.monotonic() > end:
                    raise RuntimeError("it was not loaded in time")
                time.sleep(0.001)
            _qmp(lines, "cont")


def _qmp(lines: TextIO, name: str, **arguments: object) -> dict[str, object]:
    lines.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
    lines.flush()
    for line in lines:
        said = json.loads(line)
        if "error" in said:
            raise RuntimeError(f"{name}: {said['error']}")
        if "return" in said:
            return dict(said["return"])
    raise RuntimeError(f"{name}: QEMU ended")


class Firecracker(Peer):
    """By its API (docs/getting-started.md, docs/snapshotting/snapshot-support.md)."""

    command = "firecracker"

    def booting(self) -> list[str]:
        guest, config = self.guest, self.folder / "config.json"
        said = {
            "boot-source": {
                "kernel_image_path": guest.kernel, "initrd_path": guest.initramfs, "boot_args": guest.cmdline,
            },
            "machine-config": {"vcpu_count": 1, "mem_size_mib": guest.memory},
            "drives": [],
        }  # fmt: skip
        config.write_text(json.dumps(said))
        return [self.command, "--api-sock", str(self.api), "--config-file", str(config)]

    def save(self) -> None:
        self.ask("PATCH", "/vm", {"state": "Paused"})
        places = {"snapshot_path": f"{self.folder}/state", "mem_file_path": f"{self.folder}/memory"}
        self.ask("PUT", "/snapshot/create", {"snapshot_type": "Full", **places})

    def restoring(self) -> list[str]:
        return [self.command, "--api-sock", str(self.api)]

    def started(self) -> None:
        memory = {"backend_type": "File", "backend_path": f"{self.folder}/memory"}
        place = {"snapshot_path": f"{self.folder}/state", "mem_backend": memory}
        self.ask("PUT", "/snapshot/load", {**place, "resume_vm": True})


class CloudHypervisor(Peer):
    """By its API (docs/api.md, docs/snapshot_restore.md)."""

    command = "cloud-hypervisor"

    def booting(self) -> list[str]:
        guest = self.guest
        return [
            self.command, "--api-socket", str(self.api), "--kernel", guest.kernel,
            "--initramfs", guest.initramfs, "--cmdline", guest.cmdline, "--cpus", "boot=1",
            "--memory", f"size={guest.memory}M", "--serial", "tty", "--console", "off",
        ]  # fmt: skip

    def save(self) -> None:
        shutil.rmtree(self.folder / "saved", ignore_errors=True)
        (self.folder / "saved").mkdir()
        self.ask("PUT", "/api/v1/vm.pause")
        place = f"file://{self.folder}/saved"
        self.ask("PUT", "/api/v1/vm.snapshot", {"destination_url": place})

    def restoring(self) -> list[str]:
        place = f"source_url=file://{self.folder}/saved"
        return [self.command, "--api-socket", str(self.api), "--restore", place]

    def started(self) -> None:
        """What was restored is paused; until it is there, nothing can be resumed."""
        end = time.monotonic() + LIMIT
        while True:
            try:
                self.ask("PUT", "/api/v1/vm.resume")
                return
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.001)


PEERS: tuple[type[Peer], ...] = (Firecracker, CloudHypervisor, Qemu)


def await_console(process: subprocess.Popen[bytes], mark: bytes) -> None:
    """Reads what the guest prints until `mark`."""
    assert process.stdout is not None
    fd, data, end = process.stdout.fileno(), b"", time.monotonic() + LIMIT
    while mark not in data:
        ready, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
        more = os.read(fd, 65536) if ready else b""
        if not more:
            raise RuntimeError(f"the guest said only {data[-200:]!r}")
        data += more


def pss(pid: int) -> float:
    """MiB, with its guest's memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _qemu(architecture: str) -> str:
    return (
        f"qemu-system-{ {'amd64': 'x86_64', 'arm64': 'aarch64'}.get(architecture, architecture) }"
    )
