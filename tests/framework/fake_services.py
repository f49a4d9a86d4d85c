"""Stand-ins for vmm, fsd, netd and ocid: real processes with the real control protocol, without a guest.

The fake vmm runs a VM's processes as processes of this host, in a directory of its own, with the
same credits, signals, ptys and errors, so that what is above it (supervisor, SDK, CLI) is tested end to
end. Misbehaviour is asked for by the kernel command line: `fake=panic`, `fake=silent`,
`fake=poweroff`, `fake=die` (at boot), `fake=die-later` (when a process starts), `fake=frail` (dies when it
goes on from a snapshot), `fake=unfrozen` (refuses Freeze), `fake=unsaved` (cannot save its memory),
`fake=frozen` (dies in Freeze), `fake=saving` (dies while it saves), `fake=held` (has saved when it starts a
process after that).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, ClassVar

import msgpack

from crumble.supervisor.table import Row, Table
from crumble_common.errors import GuestError, InternalError, RemoteError, UsageError
from crumble_common.messages import fs, image, net, vm
from crumble_common.messages.service import Ok
from crumble_common.service import Context, Reply, Service
from framework.fake_process import FakeProcess

JANITOR = """
mkdir "$1"; exec >&-
while read pid; do pids="$pids -$pid"; done
[ "$pids" ] && kill -9 $pids
rm -rf "$1"
"""


class Unconfined(Service[Any]):
    """The fakes start host processes."""

    isolated: ClassVar[bool] = False

    def sandbox(self) -> None:
        return None


class FakeFsd(Unconfined):
    name = "fsd"
    config_type = fs.FsConfig

    def open(self, config: fs.FsConfig) -> None:
        for share in config.shares:
            if not Path(share.source).exists():
                raise UsageError(f"The share {share.source} does not exist.", code="share.source")
        self.socket = socket.socket(fileno=self.context.fd(config.socket_fd))
        os.fstat(self.context.fd("page_state"))

    def start(self) -> None:
        self.context.loop.add_fd(self.socket.fileno(), "vhost-user", self.driver_gone)

    def driver_gone(self) -> None:
        if not self.socket.recv(64):
            self.context.finish()

    def handle(self, message: Any, reply: Reply) -> None:
        if not isinstance(message, fs.FsFreeze):
            super().handle(message, reply)
            return
        for name in (message.index_fd, message.contents_fd):
            with os.fdopen(self.context.take_fd(name), "wb") as file:
                file.write(name.encode())
        if message.capture_fd:
            os.close(self.context.take_fd(message.capture_fd))
        reply.ok(fs.FsFrozen(b"fsd" if message.capture_fd else b"", True, 8))


class FakeNetd(Unconfined):
    name = "netd"
    config_type = net.NetConfig

    def open(self, config: net.NetConfig) -> None:
        self.socket = socket.socket(fileno=self.context.fd(config.socket_fd))

    def start(self) -> None:
        self.context.loop.add_fd(self.socket.fileno(), "vhost-user", self.driver_gone)

    def driver_gone(self) -> None:
        if not self.socket.recv(64):
            self.context.finish()

    def handle(self, message: Any, reply: Reply) -> None:
        if isinstance(message, net.NetFreeze):
            os.close(self.context.take_fd(message.capture_fd))
            reply.ok(net.NetFrozen(b""))
        elif isinstance(message, net.NetRename):
            reply.ok()
        else:
            super().handle(message, reply)


class FakeVmm(Unconfined):
    name = "vmm"
    config_type = vm.VmConfig

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.processes: dict[int, FakeProcess] = {}
        self.paused = self.saving = False
        self.root = Path(os.environ.get("TMPDIR", "/tmp"), f"fake-guest-{secrets.token_hex(4)}")
        # Like a guest's processes, ours must not outlive a vmm that was killed.
        self.janitor = subprocess.Popen(
            ["/bin/sh", "-c", JANITOR, "janitor", self.root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.janitor.stdout is not None
        self.janitor.stdout.read()

    def open(self, config: vm.VmConfig) -> None:
        self.config = config
        if config.restore:
            base = self.context.fd("memory_base")
            assert os.pread(base, 4, 4096) == b"page"
            assert os.fstat(base).st_size == config.memory
        elif not Path(config.kernel).exists():
            raise UsageError(f"{config.kernel} is not a kernel.", code="kernel.bad")
        assert os.fstat(self.context.fd("memory")).st_size == config.memory
        os.fstat(self.context.fd("page_state"))
        self.socket = socket.socket(fileno=self.context.fd(config.filesystems[0].socket_fd))
        if config.network is not None:
            self.net = socket.socket(fileno=self.context.fd(config.network.socket_fd))

    def start(self) -> None:
        loop = self.context.loop
        loop.add_fd(self.socket.fileno(), "vhost-user", self.device_gone)
        loop.call_soon(self.boot)

    def boot(self) -> None:
        words = self.config.cmdline.split()
        self.event("booting", "fake")
        if self.config.restore:
            self.go_on(words)
            return
        if self.config.dmesg:
            self.context.send(vm.ConsoleOutput(self.config.vm, b"[    0.000000] Linux\n"))
        if "fake=die" in words:
            os.kill(os.getpid(), signal.SIGKILL)
        elif "fake=panic" in words:
            self.event("panic", "The guest's kernel panicked: not syncing.")
        elif "fake=poweroff" in words:
            self.event("poweroff")
        elif "fake=silent" not in words:
            self.event("agent_ready")

    def go_on(self, words: list[str]) -> None:
        if "fake=frail" in words:
            os.kill(os.getpid(), signal.SIGKILL)
        self.root.mkdir(exist_ok=True)
        for name, data in msgpack.unpackb(self.config.restore).items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.event("agent_ready")

    def freeze(self, message: vm.Freeze) -> vm.Frozen:
        self.capture = self.context.take_fd(message.capture_fd)
        words = self.config.cmdline.split()
        if "fake=frozen" in words:
            os.kill(os.getpid(), signal.SIGKILL)
        if "fake=unfrozen" in words:
            os.close(self.capture)
            raise GuestError("Not now.", code="vm.busy")
        files = {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file()
        }
        return vm.Frozen(msgpack.packb(files))

    def thaw(self) -> None:
        words = self.config.cmdline.split()
        if "fake=saving" in words:
            os.kill(os.getpid(), signal.SIGKILL)
        os.pwrite(self.capture, b"page", 4096)
        os.close(self.capture)
        self.saving = True
        if "fake=held" not in words:
            self.save("There is no room." if "fake=unsaved" in words else "")

    def save(self, error: str = "") -> None:
        if self.saving:
            self.saving = False
            self.context.send(vm.Captured(self.config.vm, 1, error))

    def event(self, kind: Any, detail: str = "") -> None:
        self.context.send(vm.VmEvent(self.config.vm, kind, detail))

    def device_gone(self) -> None:
        if not self.socket.recv(64):
            self.context.fail(InternalError("The device root went away.", code="vhost_user.gone"))

    def handle(self, message: Any, reply: Reply) -> None:
        if isinstance(message, vm.ProcessStart):
            self.start_process(message, reply)
            self.save()
        elif isinstance(message, vm.Sync | vm.Rename):
            reply.ok()
        elif isinstance(message, vm.FileRead | vm.FileWrite):
            with translated_errors():
                reply.ok(self.file(message))
        elif isinstance(message, vm.Shutdown):
            reply.ok()
            if "fake=stubborn" not in self.config.cmdline:
                self.event("poweroff")
        elif isinstance(message, vm.Pause | vm.Resume):
            self.pause(isinstance(message, vm.Pause))
            reply.ok()
        elif isinstance(message, vm.Freeze):
            reply.ok(self.freeze(message))
        elif isinstance(message, vm.Thaw):
            reply.ok()
            self.thaw()
        elif isinstance(message, vm.Timeline):
            now = time.monotonic_ns()
            reply.ok(vm.TimelineSlices([vm.Slice("kernel", now - 3_000_000, now - 1_000_000)]))
        elif message.process in self.processes:
            self.processes[message.process].handle(message)
            reply.ok()
        elif isinstance(message, vm.ProcessSignal):
            raise GuestError("There is no such process.", code="process.unknown")

    def pause(self, wanted: bool) -> None:
        if self.paused == wanted:
            code = "vm.paused" if wanted else "vm.not_paused"
            raise UsageError("It is so already.", code=code)
        self.paused = wanted
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.popen.pid, signal.SIGSTOP if wanted else signal.SIGCONT)

    def start_process(self, message: vm.ProcessStart, reply: Reply) -> None:
        if "fake=die-later" in self.config.cmdline:
            os.kill(os.getpid(), signal.SIGKILL)
        number = len(self.processes) + 1
        process = FakeProcess(self.context, number, message, self.root)
        self.processes[number] = process
        assert self.janitor.stdin is not None
        os.write(self.janitor.stdin.fileno(), b"%d\n" % process.popen.pid)
        reply.ok(vm.ProcessStarted(number, process.popen.pid))
        process.watch()

    def file(self, message: vm.FileRead | vm.FileWrite) -> Any:
        path = self.root / message.path.lstrip("/")
        if isinstance(message, vm.FileRead):
            with path.open("rb") as file:
                file.seek(message.offset)
                data = file.read(min(message.size, 1 << 20))
            return vm.FileData(data, message.offset + len(data) >= path.stat().st_size)
        with path.open("r+b" if message.offset else "wb") as file:
            file.seek(message.offset)
            file.write(message.data)
        return Ok()

    def stop(self, grace: float) -> None:
        assert self.janitor.stdin is not None
        self.janitor.stdin.close()
        self.janitor.wait()


@contextlib.contextmanager
def translated_errors() -> Any:
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(f"{error.filename}: no such file.", code="file.ENOENT") from None


class FakeOcid(Unconfined):
    """Knows the images "fake", "entry" (with an ENTRYPOINT) and "empty" (without a command)."""

    name = "ocid"
    config_type = image.ImagesConfig

    def open(self, config: image.ImagesConfig) -> None:
        self.store = Path(config.store)
        self.pulled: list[str] = []

    def start(self) -> None:
        pass

    def handle(self, message: Any, reply: Reply) -> None:
        if isinstance(message, image.ImageGet):
            self.get(message, reply)
        elif isinstance(message, image.KernelGet):
            path = self.store / "kernel"
            path.write_bytes(b"kernel")
            reply.ok(image.Kernel(message.architecture, "6.12", "sha256:1", str(path), []))
        elif isinstance(message, image.ImageList):
            reply.ok(image.Images([made(name) for name in ("fake", "entry")]))
        elif isinstance(message, image.ImageInspect):
            reply.ok(image.ImageDetails(made(message.reference), "{}", "{}", [message.reference]))
        elif isinstance(message, image.ImageRemove):
            reply.ok(image.Removed([message.reference], ["sha256:1"], 5 << 20))
        elif isinstance(message, image.ImageExport):
            Path(message.path).write_bytes(message.format.encode())
            reply.ok()
        elif isinstance(message, image.ImageCommit):
            assert Path(message.index).read_bytes() == b"index"
            reply.ok(made(message.reference))
        else:
            super().handle(message, reply)

    def get(self, message: image.ImageGet, reply: Reply) -> None:
        name = message.reference
        if name == "unknown":
            raise RemoteError("There is no image unknown.", code="image.unknown", hint="Look.")
        if name == "fatal":
            os.kill(os.getpid(), signal.SIGKILL)
        for done in range(0, 11, 5):
            progress = image.Progress(message.operation, f"layer {name}", done << 20, 10 << 20)
            self.context.send(progress)
        if name == "slow":
            (self.store / "half-written").touch()
        else:
            reply.ok(made(name))

    def stop(self, grace: float) -> None:
        (self.store / "half-written").unlink(missing_ok=True)


def made(name: str) -> image.Image:
    config = {
        "entry": image.ImageConfig(["GREETING=hello"], ["/bin/echo", "entry"], ["cmd"]),
        "empty": image.ImageConfig(),
    }.get(name, image.ImageConfig(["GREETING=hello"], [], ["/bin/sh", "-c", "echo default"]))
    return image.Image(
        id=f"sha256:{name.encode().hex():1<64.64}", digest="sha256:" + "2" * 64, reference=name,
        platform="linux/riscv64", size=5 << 20, created="2026-01-01T00:00:00Z", config=config,
        layers=[],
    )  # fmt: skip


TABLE: Table = {
    "vmm": Row(
        "vmm",
        "framework.fake_services:FakeVmm",
        "vm",
        ("memory", "page_state", "memory_base", "root_fs", "net"),
    ),
    "fsd": Row(
        "fsd", "framework.fake_services:FakeFsd", "vm", ("page_state", "memory_base", "root_fs")
    ),
    "netd": Row("netd", "framework.fake_services:FakeNetd", "vm", ("net",)),
    "ocid": Row("ocid", "framework.fake_services:FakeOcid", "user", restart=True),
}
