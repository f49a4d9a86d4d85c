"""What the CLI and SDK ask of the supervisor.

Requests with `to="vm:NAME"` are passed on to that VM's `vmm` (messages.vm), with `to="images"` to `ocid`
(messages.image); everything else is the supervisor's own.
"""

from __future__ import annotations

from typing import Literal

from crumble_common.messages.fs import Share
from crumble_common.messages.image import ImageConfig
from crumble_common.messages.net import Forward, NetPolicy
from crumble_common.messages.vm import ProcessStart
from crumble_common.record import dataclass, field
from crumble_common.wire import message


@message("client.vm.create")
@dataclass(frozen=True)
class VmCreate:
    """Boots a VM around an image. Reply: VmInfo, when the agent is ready.

    name: "" picks one. memory: bytes. kernel: path, "" for the provider's. The requester gets
    Progress (pulls), VmEvent and, with `dmesg`, ConsoleOutput events of it. detach: the VM outlives
    the requester's connection, and runs `main`, whose output goes to its log and whose end is its end.
    An empty `main.argv` is the image's own command; entrypoint replaces the image's, None keeps it.
    boot_timeout: seconds from the kernel's entry to the agent's first word. network: "user" (the host's,
    through `netd`), "none", or a network's name; publish: port forwards; policy: what it may talk to; capture: a file.

    snapshot: goes on from this snapshot; image, cpus, memory, kernel, cmdline, transport, watchdog, irqchip and network are then its own.
    watchdog: the guest has a /dev/watchdog that ends it.
    seed: not empty makes it deterministic: one CPU, no network, soft (docs/decisions/0013).
    record, replay: the file that a deterministic VM's inputs are written to, or come from.
    boot_snapshot: may go on from where another VM like it had booted, and leave that for the next one.
    """

    image: str
    name: str = ""
    cpus: int = 1
    memory: int = 512 << 20
    kernel: str = ""
    cmdline: str = ""
    hypervisor: str = "auto"
    cpu_model: str = "host"
    transport: Literal["mmio", "pci"] = "mmio"
    watchdog: bool = False
    irqchip: Literal["split", "kernel"] = "split"
    seed: str = ""
    record: str = ""
    replay: str = ""
    pull: str = "missing"
    dmesg: bool = False
    shares: list[Share] = field(default_factory=list)
    hostname: str = ""
    detach: bool = False
    main: ProcessStart | None = None
    entrypoint: list[str] | None = None
    boot_timeout: float = 120.0
    operation: str = ""
    snapshot: str = ""
    boot_snapshot: bool = True
    network: str = "user"
    publish: list[Forward] = field(default_factory=list)
    policy: NetPolicy = field(default_factory=NetPolicy)
    capture: str = ""


@dataclass(frozen=True)
class ServiceInfo:
    """One process behind a VM or the supervisor."""

    name: str
    pid: int
    state: str
    restarts: int = 0
    sandbox: dict[str, str] = field(default_factory=dict)


@message("client.vm.info")
@dataclass(frozen=True)
class VmInfo:
    """A VM as `ps` shows it. state: "starting", "running", "paused", "stopping", "stopped",
    "failed". snapshot: the one it went on from, "" when it booted. network: its kind or name; address: of IPv4.
    """

    id: str
    name: str
    image: str
    state: str
    created: float
    cpus: int
    memory: int
    hypervisor: str
    detail: str = ""
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    env: list[str] = field(default_factory=list)
    working_dir: str = ""
    user: str = ""
    services: list[ServiceInfo] = field(default_factory=list)
    snapshot: str = ""
    network: str = "none"
    address: str = ""


@message("client.vm.list")
@dataclass(frozen=True)
class VmList:
    """Reply: VmInfos. all: also those that ended."""

    all: bool = False


@message("client.vm.infos")
@dataclass(frozen=True)
class VmInfos:
    """Every VM."""

    vms: list[VmInfo]


@message("client.vm.stop")
@dataclass(frozen=True)
class VmStop:
    """Stops a VM and removes it from the table. Reply: Ok."""

    name: str
    grace: float = 10.0


@message("client.vm.logs")
@dataclass(frozen=True)
class VmLogs:
    """Reply: LogData. follow: LogData events keep coming until the VM ends."""

    name: str
    follow: bool = False
    tail: int = 0


@message("client.log.data")
@dataclass(frozen=True)
class LogData:
    """Output of a VM: its console and what its main command printed."""

    name: str
    data: bytes
    eof: bool = False


@message("client.lease")
@dataclass(frozen=True)
class Lease:
    """Event on the supervisor's plain socket: the client with this ZeroMQ identity ends with this
    connection, and with it the VMs and processes it did not detach.
    """

    identity: bytes


@message("client.status")
@dataclass(frozen=True)
class Status:
    """Reply: StatusInfo."""


@message("client.status.info")
@dataclass(frozen=True)
class StatusInfo:
    """The supervisor itself."""

    pid: int
    version: str
    started: float
    services: list[ServiceInfo]
    vms: int


@message("client.snapshot.create")
@dataclass(frozen=True)
class SnapshotCreate:
    """Captures a VM, which goes on running. Reply: SnapshotMade, when it is on disk."""

    vm: str
    name: str


@message("client.snapshot.made")
@dataclass(frozen=True)
class SnapshotMade:
    """pause: seconds the VM stood still. size: bytes of memory on disk."""

    name: str
    pause: float
    size: int


@message("client.fork")
@dataclass(frozen=True)
class Fork:
    """Makes `count` VMs more of a running one. Reply: Forked, when the agents of all are ready.

    name: of the new one; with several, what their names begin with; "" invents them. detach: they
    outlive the requester's connection.
    """

    vm: str
    count: int = 1
    name: str = ""
    detach: bool = False


@message("client.forked")
@dataclass(frozen=True)
class Forked:
    """The new VMs. pause: seconds the old one stood still. seconds: all it took."""

    vms: list[VmInfo]
    pause: float
    seconds: float


@message("client.commit")
@dataclass(frozen=True)
class Commit:
    """Makes an image of what a VM's files are now. Reply: messages.image.Image.

    excludes: paths to leave out. config: replaces the image's, None keeps it.
    """

    vm: str
    reference: str
    excludes: list[str] = field(default_factory=list)
    config: ImageConfig | None = None
    comment: str = ""


@message("client.net.capture")
@dataclass(frozen=True)
class NetCapture:
    """Captures a VM's packets from now on to `path`, a file or a pipe that is read. Reply: Ok.
    messages.net.CaptureStop ends it.
    """

    path: str
    snaplen: int = 262_144
    guest: str = ""


@message("client.network.inspect")
@dataclass(frozen=True)
class NetworkInspect:
    """Reply: messages.net.NetState, of a named network as it is now."""

    name: str


@message("client.network.connect")
@dataclass(frozen=True)
class NetworkConnect:
    """A running VM's interface moves to a network ("user": one of its own again); its rules, forwards and services of
    the host go along. Reply: VmInfo. Errors: "vm.network", "network.unknown", "network.full", "vm.paused", "vm.busy".
    """

    network: str
    vm: str


@message("client.network.disconnect")
@dataclass(frozen=True)
class NetworkDisconnect:
    """A running VM's interface leaves the network that it is on; its link is down. Reply: VmInfo. Error: "vm.network"."""

    network: str
    vm: str


@message("client.network.remove")
@dataclass(frozen=True)
class NetworkRemove:
    """Removes a network's definition. Reply: Ok. Error: "network.used"."""

    name: str


@message("client.down")
@dataclass(frozen=True)
class Down:
    """Stops every VM, every service and the supervisor. Reply: Ok, before it ends."""

    grace: float = 10.0
