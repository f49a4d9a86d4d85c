"""A VM: what `vmm` is given, and the processes, files and events of the guest."""

from __future__ import annotations

from typing import Literal

from crumble_common.record import dataclass, field
from crumble_common.wire import message


@dataclass(frozen=True)
class VirtioFs:
    """A virtio-fs device: its tag and the fd name of its connected vhost-user socket.

    late: nobody need be at the other end before FsWanted, which a restored guest says when it wants files. Not of a
    deterministic guest.
    """

    tag: str
    socket_fd: str
    late: bool = False


@message("vm.fs.wanted")
@dataclass(frozen=True)
class FsWanted:
    """Event: the back end of a late VirtioFs has to begin."""


@dataclass(frozen=True)
class VirtioNet:
    """A virtio-net device: the fd name of its connected vhost-user socket, and what the guest is told.

    address: ADDRESS/BITS of IPv4. IPv6 the guest learns from the network. When the back end dies,
    NetReconnect follows, and the guest is not told.
    """

    socket_fd: str
    mac: str
    mtu: int
    address: str
    gateway: str


@message("vm.net.reconnect")
@dataclass(frozen=True)
class NetReconnect:
    """The network's back end died; `socket_fd` (a `take_fd` name) leads to another one, which has taken over what
    there was. network: it is another network's: the guest is told who it is there, and the link comes up.
    Reply: Ok, at once, or when the guest has been told.
    """

    socket_fd: str
    network: VirtioNet | None = None


@message("vm.net.disconnect")
@dataclass(frozen=True)
class NetDisconnect:
    """The interface's link goes down, and its rings are taken from the back end, until NetReconnect. Reply: Ok, when
    that is done.
    """


@message("vm.net.rest")
@dataclass(frozen=True)
class NetRest:
    """The network's back end has nothing to do: its rings are taken from it, until NetReconnect, and the guest is not
    told. Reply: Ok, when that is done. NetWanted follows.
    """


@message("vm.net.wanted")
@dataclass(frozen=True)
class NetWanted:
    """Event: after NetRest, the guest has something to send."""


@message("vm.rename")
@dataclass(frozen=True)
class Rename:
    """It is to be called this from now on; the guest is told its hostname before whatever is asked next. Reply: Ok."""

    vm: str
    hostname: str


@message("vm.config")
@dataclass(frozen=True)
class VmConfig:
    """`vmm`'s configuration. Fds given at spawn, by name: "memory", "page_state", each `socket_fd`.

    memory: bytes, a multiple of 2 MiB. kernel: path of a kernel image. modules: paths of .ko files to
    load in order. cmdline: appended to ours. hypervisor: "auto", "soft", "kvm". cpu_model: of hypervisors.CPU_MODELS.
    transport: of virtio devices. watchdog: it has one; when the guest lets it fire: "guest.watchdog".
    irqchip: who has the IOAPIC of KVM on x86_64: "split", this process; "kernel".
    boot_limit: seconds from the kernel's entry to the agent's first word; 0: whoever asked waits.
    seed: not empty makes the guest deterministic (docs/decisions/0013), its entropy from these bytes.
    recording: of its inputs, the fd "recording": written, or given back. made_of: what else the recorded guest
    depends on, told when it is another. Errors: "recording.other", "recording.corrupt".
    restore: `Frozen.state` of the VM this one goes on from: no kernel is loaded, and the fds of a
    MemoryBase are that VM's captured memory. Errors: "snapshot.foreign", "snapshot.corrupt", before anything runs.
    """

    vm: str
    kernel: str
    memory: int
    cpus: int = 1
    modules: list[str] = field(default_factory=list)
    cmdline: str = ""
    hypervisor: str = "auto"
    hostname: str = ""
    dmesg: bool = False
    filesystems: list[VirtioFs] = field(default_factory=list)
    boot_limit: float = 0.0
    restore: bytes = b""
    network: VirtioNet | None = None
    cpu_model: str = "host"
    transport: Literal["mmio", "pci"] = "mmio"
    watchdog: bool = False
    irqchip: Literal["split", "kernel"] = "split"
    seed: bytes = b""
    recording: Literal["", "record", "replay"] = ""
    made_of: dict[str, str] = field(default_factory=dict)


@message("vm.event")
@dataclass(frozen=True)
class VmEvent:
    """Event: a change in a VM's life. `detail` is one sentence for a person; the back end's name
    when it is booting. code: of what it died of (crumble_common.vm_faults), or of the error that it
    failed with, if that has one.
    """

    vm: str
    kind: Literal[
        "booting", "agent_ready", "poweroff", "reset", "panic", "crash", "failed", "stopped"
    ]
    detail: str = ""
    code: str = ""


@message("vm.console")
@dataclass(frozen=True)
class ConsoleOutput:
    """Event: bytes the guest's kernel console printed."""

    vm: str
    data: bytes


# Commands that are of no use but as PID 1.
INIT_PROGRAMS = (
    "/sbin/init",
    "/usr/sbin/init",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
)


@message("vm.process.start")
@dataclass(frozen=True)
class ProcessStart:
    """Starts a process in the guest. Reply: ProcessStarted.

    Errors: "exec.not_found" (exit status 127), "exec.not_executable" (126), "exec.failed", "exec.user".
    user: "", "name", "uid", "uid:gid", "name:group". env: added to the guest's default. tty: a pty of
    rows × cols as stdin, stdout and stderr. stdin: false gives /dev/null. credit: bytes of output the
    caller is ready to take before it sends ProcessCredit, for each stream. systemd: it becomes PID 1, as root, and
    ends with status 0 when it powers off or resets the guest; "auto": if it is one of INIT_PROGRAMS. "exec.init".
    """

    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    cwd: str = ""
    user: str = ""
    tty: bool = False
    rows: int = 24
    cols: int = 80
    stdin: bool = False
    credit: int = 1 << 20
    systemd: Literal["auto", "always", "never"] = "never"


@message("vm.process.started")
@dataclass(frozen=True)
class ProcessStarted:
    """`process` names it from now on; `pid` is the guest's."""

    process: int
    pid: int


@message("vm.process.input")
@dataclass(frozen=True)
class ProcessInput:
    """Event to `vmm`: bytes for stdin; `eof` closes it (on a pty: VEOF)."""

    process: int
    data: bytes = b""
    eof: bool = False


@message("vm.process.credit")
@dataclass(frozen=True)
class ProcessCredit:
    """Event, both ways: the receiver took `size` bytes of `stream` (0 stdin, 1 stdout, 2 stderr)."""

    process: int
    stream: int
    size: int


@message("vm.process.signal")
@dataclass(frozen=True)
class ProcessSignal:
    """Sends a signal to the process's group. Reply: Ok."""

    process: int
    signal: int


@message("vm.process.resize")
@dataclass(frozen=True)
class ProcessResize:
    """Event to `vmm`: the terminal changed."""

    process: int
    rows: int
    cols: int


@message("vm.process.output")
@dataclass(frozen=True)
class ProcessOutput:
    """Event: at most 64 KiB of stdout (1) or stderr (2)."""

    process: int
    stream: int
    data: bytes


@message("vm.process.exit")
@dataclass(frozen=True)
class ProcessExit:
    """Event: all output has been sent; `status` is the exit code, 128 + signal when killed by one."""

    process: int
    status: int
    signal: int = 0


@message("vm.file.read")
@dataclass(frozen=True)
class FileRead:
    """Reads up to `size` (≤ 1 MiB) bytes at `offset`. Reply: FileData. Errors: "file.<errno name>"."""

    path: str
    offset: int = 0
    size: int = 1 << 20


@message("vm.file.data")
@dataclass(frozen=True)
class FileData:
    """Bytes of a file; `eof` when nothing follows."""

    data: bytes
    eof: bool


@message("vm.file.write")
@dataclass(frozen=True)
class FileWrite:
    """Writes `data` at `offset` (0 truncates first), creating with `mode`. Reply: Ok."""

    path: str
    data: bytes
    offset: int = 0
    mode: int = 0o644


@message("vm.sync")
@dataclass(frozen=True)
class Sync:
    """Has what the guest's processes have written reach its file systems. Reply: Ok."""


# What the guest's agent answers.
AGENT_REQUESTS = (ProcessStart, FileRead, FileWrite, Sync)


@message("vm.timeline")
@dataclass(frozen=True)
class Timeline:
    """Asks for the time slices recorded so far. Reply: TimelineSlices."""


@dataclass(frozen=True)
class Slice:
    """One phase: start and end in ns of CLOCK_MONOTONIC."""

    name: str
    start: int
    end: int


@message("vm.timeline.slices")
@dataclass(frozen=True)
class TimelineSlices:
    """The time slices of a boot, in order of start, and counters."""

    slices: list[Slice]
    counters: dict[str, int] = field(default_factory=dict)


@message("vm.digest")
@dataclass(frozen=True)
class Digest:
    """Asks what a deterministic guest is now. Reply: Digested. Errors: "vm.not_deterministic"."""


@message("vm.digested")
@dataclass(frozen=True)
class Digested:
    """instructions: that it has executed. digest: SHA-256, in hex, of registers, interrupt controller, clock
    and memory. disturbed: it was sent something while it ran, so the same run need not give the same.
    """

    instructions: int
    digest: str
    disturbed: bool


@message("vm.shutdown")
@dataclass(frozen=True)
class Shutdown:
    """Ends the guest: signals all processes, syncs, powers off within `grace` seconds. Reply: Ok."""

    grace: float = 10.0


@message("vm.pause")
@dataclass(frozen=True)
class Pause:
    """Lets the guest stand still. Reply: Ok. Errors: "vm.paused" when it does already."""


@message("vm.resume")
@dataclass(frozen=True)
class Resume:
    """Lets a paused guest go on. Reply: Ok. Errors: "vm.not_paused"."""


@message("vm.freeze")
@dataclass(frozen=True)
class Freeze:
    """Begins a capture: the VM stands still until Thaw. Reply: Frozen. Errors: "vm.captured" while another is
    under way.

    capture_fd: name of the fd, sent to the inbox before, that the memory is saved to: page n of RAM at byte
    n * 4096, pages of zeroes are holes. parent: save only what was written since the capture before, or since the
    restore.
    """

    capture_fd: str
    parent: bool = False


@message("vm.frozen")
@dataclass(frozen=True)
class Frozen:
    """The VM but for its memory: `VmConfig.restore` of those that go on from here. At most 1 MiB."""

    state: bytes


@message("vm.thaw")
@dataclass(frozen=True)
class Thaw:
    """Ends the stillness that Freeze began. Reply: Ok. The memory is saved from now on, and told by Captured;
    or, with `abort`, not at all. A guest that Pause stopped before stays so.
    """

    abort: bool = False


@message("vm.captured")
@dataclass(frozen=True)
class Captured:
    """Event: the memory of the last Freeze is saved, `pages` of it written; or it is not, for `error`, a
    sentence.
    """

    vm: str
    pages: int
    error: str = ""
