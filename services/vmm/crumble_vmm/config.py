"""What one VM is made of, checked: nothing is built from a configuration that cannot be.

`MachineConfig.from_message` takes what arrived on the control plane; every rule is in
`__post_init__`, so that a config made any other way obeys it too.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from crumble_common.errors import UsageError
from crumble_common.hypervisors import CPU_MODELS
from crumble_common.messages.vm import VirtioNet, VmConfig

MIB = 1 << 20
# Guest memory comes in pages of 2 MiB, the unit of huge pages and of the kernel's alignment.
MEMORY_UNIT = 2 * MIB
# Below this Debian's kernel (image, page tables, initramfs) does not reach its init.
MIN_MEMORY = 64 * MIB
MAX_CPUS = 16
MAX_MODULES = 64
# virtio 1.2 §5.11.4: the tag field of the configuration.
MAX_TAG = 36
# Linux, arch/riscv: COMMAND_LINE_SIZE is 1024 with its NUL; ours takes up to 200 of it.
MAX_CMDLINE = 800
_HOSTNAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62}[a-zA-Z0-9])?\Z")
_TAG = re.compile(r"[a-zA-Z0-9._-]{1,36}\Z")


@dataclass(frozen=True, slots=True)
class Filesystem:
    """A virtio-fs device: the guest mounts `tag`; `socket_fd` names the back end's connection. late: see messages.vm."""

    tag: str
    socket_fd: str
    late: bool = False


@dataclass(frozen=True, slots=True)
class Network:
    """A virtio-net device. mac: 6 bytes. address: ADDRESS/BITS; gateway: ADDRESS; both IPv4."""

    socket_fd: str
    mac: bytes
    mtu: int
    address: str
    gateway: str

    @classmethod
    def from_message(cls, message: VirtioNet) -> Network:
        """Raises UsageError for what is no MAC address."""
        try:
            mac = bytes.fromhex(message.mac.replace(":", ""))
        except ValueError:
            mac = b""
        return cls(message.socket_fd, mac, message.mtu, message.address, message.gateway)

    def told(self) -> str:
        """As the guest is told of it: guest/network.py."""
        return f"{self.mac.hex()},{self.address},{self.gateway}"


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """One VM. memory: bytes. modules: in load order. The first file system is the guest's root.

    restore: state of the VM it goes on from (snapshot/state.py); kernel, modules and cmdline are then not
    used. seed: not empty makes it deterministic. recording, made_of: as in messages.vm.
    """

    name: str
    kernel: Path
    memory: int
    cpus: int = 1
    modules: tuple[Path, ...] = ()
    cmdline: str = ""
    hypervisor: str = "auto"
    hostname: str = ""
    dmesg: bool = False
    filesystems: tuple[Filesystem, ...] = field(default=())
    boot_limit: float = 0.0
    restore: bytes = b""
    network: Network | None = None
    cpu_model: str = "host"
    transport: str = "mmio"
    watchdog: bool = False
    irqchip: str = "split"
    seed: bytes = b""
    recording: str = ""
    made_of: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for check in _CHECKS:
            check(self)

    @classmethod
    def from_message(cls, message: VmConfig) -> MachineConfig:
        """The config a supervisor sent; raises UsageError."""
        return cls(
            name=message.vm,
            kernel=Path(message.kernel),
            memory=message.memory,
            cpus=message.cpus,
            modules=tuple(map(Path, message.modules)),
            cmdline=message.cmdline,
            hypervisor=message.hypervisor,
            cpu_model=message.cpu_model,
            transport=message.transport,
            watchdog=message.watchdog,
            irqchip=message.irqchip,
            seed=message.seed,
            recording=message.recording,
            made_of=message.made_of,
            hostname=message.hostname,
            dmesg=message.dmesg,
            filesystems=tuple(
                Filesystem(item.tag, item.socket_fd, item.late) for item in message.filesystems
            ),
            boot_limit=max(0.0, message.boot_limit),
            restore=message.restore,
            network=Network.from_message(message.network) if message.network else None,
        )


def host_memory() -> int:
    """Bytes of RAM this host has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_memory(config: MachineConfig) -> None:
    size, limit = config.memory, host_memory()
    if size < MIN_MEMORY:
        raise UsageError(
            f"A VM with {size / MIB:g} MiB of memory cannot boot.",
            code="vmm.memory",
            hint=f"Give it at least {MIN_MEMORY // MIB} MiB.",
        )
    if size > limit:
        raise UsageError(
            f"A VM with {size // MIB} MiB of memory is larger than this host's {limit // MIB} MiB.",
            code="vmm.memory",
            hint="Give it less.",
        )
    if size % MEMORY_UNIT:
        raise UsageError(
            f"{size} bytes of memory are no multiple of {MEMORY_UNIT // MIB} MiB.",
            code="vmm.memory",
            hint="Round it up.",
        )


def _check_cpus(config: MachineConfig) -> None:
    if not 1 <= config.cpus <= MAX_CPUS:
        raise UsageError(
            f"A VM cannot have {config.cpus} vCPUs.",
            code="vmm.cpus",
            hint=f"Give it 1 to {MAX_CPUS}.",
        )


def _check_cpu_model(config: MachineConfig) -> None:
    if config.cpu_model not in CPU_MODELS:
        raise UsageError(
            f"There is no CPU model {config.cpu_model!r}.",
            code="vmm.cpu_model",
            hint=f"Choose one of {', '.join(CPU_MODELS)}.",
        )


def _check_cmdline(config: MachineConfig) -> None:
    line = config.cmdline
    if len(line) > MAX_CMDLINE or not line.isascii() or not (line.isprintable() or not line):
        raise UsageError(
            "The kernel command line is not printable ASCII or is too long.",
            code="vmm.cmdline",
            hint=f"Keep it under {MAX_CMDLINE} characters.",
        )


def _check_hostname(config: MachineConfig) -> None:
    if config.hostname and not _HOSTNAME.match(config.hostname):
        raise UsageError(
            f"{config.hostname!r} is no host name.",
            code="vmm.hostname",
            hint="Use letters, digits, dots and hyphens, at most 64.",
        )


def _check_files(config: MachineConfig) -> None:
    if config.restore:
        return  # the kernel is in memory
    if not config.kernel.is_file():
        raise UsageError(
            f"There is no kernel {config.kernel}.",
            code="vmm.kernel",
            hint="Give the path of a riscv64 Linux Image.",
        )
    if len(config.modules) > MAX_MODULES:
        raise UsageError(
            f"{len(config.modules)} kernel modules are too many for an initramfs.",
            code="vmm.module",
            hint=f"Name at most {MAX_MODULES}; the guest can load others from its own files.",
        )
    for module in config.modules:
        if not module.is_file():
            raise UsageError(f"There is no kernel module {module}.", code="vmm.module")


def _check_filesystems(config: MachineConfig) -> None:
    tags = [item.tag for item in config.filesystems]
    for tag in tags:
        if not _TAG.match(tag) or tags.count(tag) > 1:
            raise UsageError(
                f"File system tag {tag!r} is used twice or cannot be one.",
                code="vmm.tag",
                hint=f"Use letters, digits, '.', '_' and '-', at most {MAX_TAG}.",
            )
    if config.seed and any(item.late for item in config.filesystems):
        raise UsageError("A deterministic VM's file systems cannot be late.", code="vmm.late")


def _check_network(config: MachineConfig) -> None:
    network = config.network
    if network is None:
        return
    try:
        ipaddress.IPv4Interface(network.address)
        ipaddress.IPv4Address(network.gateway)
        fine = len(network.mac) == 6 and not network.mac[0] & 1 and 68 <= network.mtu <= 65_535
    except ValueError:
        fine = False
    if not fine:
        raise UsageError(
            "The network device has an address, MAC address or MTU that cannot be.",
            code="vmm.network",
            hint="Give an IPv4 address with its prefix length, and a MAC address of a host.",
        )


def _check_seed(config: MachineConfig) -> None:
    if not config.seed:
        if config.recording:
            raise UsageError("Only a deterministic VM is recorded.", code="vmm.deterministic")
        return
    for wrong, what in (
        (config.cpus != 1, "has one vCPU"),
        (config.hypervisor not in ("auto", "soft"), "runs on the soft back end"),
        (config.network is not None, "has no network"),
        (bool(config.restore), "boots"),
        (config.transport != "mmio", "has virtio over MMIO"),
        (config.watchdog, "has no watchdog"),
    ):
        if wrong:
            raise UsageError(f"A deterministic VM {what}.", code="vmm.deterministic")


_CHECKS: tuple[Callable[[MachineConfig], None], ...] = (
    _check_memory,
    _check_cpus,
    _check_cpu_model,
    _check_seed,
    _check_cmdline,
    _check_hostname,
    _check_files,
    _check_filesystems,
    _check_network,
)
