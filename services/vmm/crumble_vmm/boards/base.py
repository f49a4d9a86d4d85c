"""Board: the devices and the boot of one architecture's machine; `build_machine` drives it.

regions → create_vm → Board(...) → add_platform → add_virtio → load
"""

from __future__ import annotations

import functools
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from crumble_common.errors import CrumbleError, UsageError
from crumble_common.eventloop import EventLoop
from crumble_common.guest_memory import GuestMemory, RamRegion
from crumble_common.memory_base import MemoryBase
from crumble_common.vhost_user import MemoryRegion
from crumble_native.memory import PAGE_SIZE
from crumble_vmm.boot.initramfs import Initramfs
from crumble_vmm.boot.modules import load_modules
from crumble_vmm.boot.ram import Ram
from crumble_vmm.chipset.builder import ChipsetBuilder
from crumble_vmm.chipset.bus import Mapping as BusMapping
from crumble_vmm.chipset.lines import Line, LineSet, Trigger
from crumble_vmm.config import MEMORY_UNIT, MachineConfig
from crumble_vmm.devices.pci.host import ECAM_SIZE, PciHost, Window
from crumble_vmm.devices.virtio import mmio
from crumble_vmm.devices.virtio.console import Console, Port
from crumble_vmm.devices.virtio.device import VirtioDevice
from crumble_vmm.devices.virtio.mmio import MmioTransport
from crumble_vmm.devices.virtio.pci import PciTransport
from crumble_vmm.devices.virtio.rng import Rng
from crumble_vmm.devices.virtio.vhost_user_fs import virtio_fs
from crumble_vmm.devices.virtio.vhost_user_net import VirtioNet
from crumble_vmm.devices.watchdog import SIZE as WATCHDOG_SIZE
from crumble_vmm.devices.watchdog import Watchdog
from crumble_vmm.guest.build import module_path
from crumble_vmm.guest.protocol import NETWORK_PARAMETER, ROOT_PARAMETER
from crumble_vmm.hypervisor.address_space import AddressSpace, Region
from crumble_vmm.hypervisor.base import VirtioInterrupt, VirtualCPU, VirtualMachine
from crumble_vmm.lockstep import Lockstep
from crumble_vmm.timeline import Timeline

# Only emergencies are printed; a panic raises the level by itself. Before "earlycon", which prints
# from where it stands on.
QUIET_CMDLINE = "quiet loglevel=1"
# panic=-1: reboot at once, which is how we learn of it. Not needed, and most of a boot: self-tests of
# ciphers (1,000 million instructions) and of the jitter entropy source (70 million); each board brings a seed.
# The last two are for an image's systemd: eth0 keeps its name, and nobody logs in where the kernel's messages go.
START_CMDLINE = "panic=-1 cryptomgr.notests initcall_blacklist=jent_mod_init net.ifnames=0 systemd.getty_auto=no"


@dataclass(frozen=True, slots=True)
class Ends:
    """Where a machine's devices meet the rest of this process.

    memory: the fds of guest memory and its page state, taken over. sockets: of vhost-user back ends, by
    fd name. console: kernel console output, from vCPU threads. ports: of virtio-console, hvc0 first.
    init: the ELF file for /init of an architecture. lost: a back end is gone. base: a captured VM's memory,
    to go on from; None when the guest boots. lockstep: of a deterministic machine. wanted: a late back end has to
    begin now.
    """

    loop: EventLoop
    memory: tuple[int, int]
    sockets: Mapping[str, socket.socket]
    console: Callable[[bytes], None]
    ports: tuple[Port, ...]
    init: Callable[[str], bytes]
    lost: Callable[[CrumbleError], None]
    base: MemoryBase | None = None
    lockstep: Lockstep | None = None
    wanted: Callable[[], None] = lambda: None

    @property
    def local(self) -> EventLoop | Lockstep:
        """The loop of the devices of this process."""
        return self.lockstep or self.loop

    @property
    def entropy(self) -> Callable[[int], bytes]:
        """Random bytes, so many."""
        return self.lockstep.entropy if self.lockstep else os.urandom

    @property
    def clock(self) -> Callable[[], int]:
        """ns since 1970."""
        return self.lockstep.time_ns if self.lockstep else time.time_ns


class Board(ABC):
    """One machine's devices, as they are put on it.

    virtio_base, virtio_slots, virtio_line: where the first virtio-mmio slot is, how many there are, and
    the first one's interrupt. pci: the host bridge when the devices are behind it. ports: registers in a port space, where there is one. lines: inputs of the interrupt controller. elf_machine: of kernel modules.
    """

    architecture: ClassVar[str]
    elf_machine: ClassVar[int]
    virtio_base: ClassVar[int]
    virtio_slots: ClassVar[int]
    virtio_line: ClassVar[int]
    virtio_trigger: ClassVar[Trigger] = Trigger.LEVEL
    line_count: ClassVar[int]
    base_cmdline: ClassVar[str]
    # Appended when there is no PCI.
    no_pci_cmdline: ClassVar[str] = ""
    watchdog_base: ClassVar[int]
    # Where ECAM is, and the window of BARs: (base, size).
    ecam_base: ClassVar[int]
    pci_window: ClassVar[tuple[int, int]]
    # COMMAND_LINE_SIZE of the architecture, with the NUL.
    max_cmdline: ClassVar[int]

    def __init__(self, vm: VirtualMachine, space: AddressSpace, memory: GuestMemory) -> None:
        self.chipset = ChipsetBuilder()
        self.ports: list[BusMapping] = []
        self.lines = LineSet(self.line_count, vm.set_line)
        self.vm, self.space, self.memory = vm, space, memory
        self._slots = 0
        self.pci: PciHost | None = None

    @classmethod
    @abstractmethod
    def regions(cls, size: int) -> list[RamRegion]:
        """Where `size` bytes of RAM are."""

    @classmethod
    @abstractmethod
    def reserve(cls, space: AddressSpace) -> None:
        """Claims what the hypervisor itself serves."""

    @abstractmethod
    def add_platform(self, ends: Ends) -> None:
        """The devices that are there whatever the VM is for."""

    @abstractmethod
    def describe_virtio(self, region: Region, line: Line) -> None:
        """Tells the guest of a virtio-mmio slot, when it boots."""

    def add_watchdog(self, ends: Ends) -> None:
        """It fires in the loop's thread."""
        watchdog = Watchdog(ends.loop)
        region = self.space.add_mmio(watchdog.name, self.watchdog_base, WATCHDOG_SIZE)
        self.chipset.add(watchdog, [BusMapping(region, watchdog)])
        self.describe_watchdog(region)

    @abstractmethod
    def describe_watchdog(self, region: Region) -> None:
        """Tells the guest of it, when it boots."""

    @abstractmethod
    def load(
        self, config: MachineConfig, ends: Ends, cpus: Sequence[VirtualCPU], timeline: Timeline
    ) -> None:
        """Kernel, initramfs and what describes the machine; the first vCPU starts in the kernel."""

    def add_virtio(self, config: MachineConfig, ends: Ends) -> None:
        """A slot for each virtio device, lowest first; or a PCI function."""
        if config.transport == "pci":
            self._add_pci()
        add = functools.partial(self._add_slot, lockstep=ends.lockstep)
        add(Console("console", ends.ports, ends.local))
        add(Rng("rng", ends.local, ends.entropy))
        regions = [
            MemoryRegion(region.gpa, region.size, self.memory.fd, region.offset)
            for region in self.memory.regions
        ]
        for item in config.filesystems:
            sock = ends.sockets[item.socket_fd]
            name = f"fs {item.tag}"
            wanted = ends.wanted if item.late else None
            add(
                virtio_fs(
                    name, item.tag, sock, regions, ends.loop, ends.lost, ends.lockstep, wanted
                )
            )
        if net := config.network:
            sock = ends.sockets[net.socket_fd]
            add(VirtioNet("net", net.mac, net.mtu, sock, regions, ends.loop, ends.lost))

    def _add_slot(self, device: VirtioDevice, lockstep: Lockstep | None) -> None:
        slot, self._slots = self._slots, self._slots + 1
        if slot == self.virtio_slots:
            raise UsageError(
                f"A VM has room for {self.virtio_slots} virtio devices.", code="vmm.devices"
            )
        name = f"virtio{slot}"
        line = self.lines.claim(name, self.virtio_line + slot, self.virtio_trigger)
        region = self.space.add_mmio(name, self.virtio_base + slot * mmio.SIZE, mmio.SIZE)
        interrupt = self.vm.virtio_interrupt(
            line.number, region.base + mmio.INTERRUPT_STATUS, region.base + mmio.INTERRUPT_ACK
        )
        if self.pci is not None:
            self._add_function(self.pci, device, interrupt)
            return
        transport = MmioTransport(device, region.base, self.memory.memory, interrupt, lockstep)
        transport.connect_doorbells(self.vm)
        self.chipset.add(transport, [BusMapping(region, transport)])
        self.describe_virtio(region, line)

    def _add_pci(self) -> None:
        """The host bridge: configuration space, and the window."""
        ecam = self.space.add_mmio("pci ecam", self.ecam_base, ECAM_SIZE)
        window = self.space.add_mmio("pci window", *self.pci_window)
        self.pci = PciHost(window)
        self.chipset.add(
            self.pci, [BusMapping(ecam, self.pci), BusMapping(window, Window(self.pci))]
        )

    def _add_function(self, pci: PciHost, device: VirtioDevice, line: VirtioInterrupt) -> None:
        """line: its INTA. With a message for each queue and for the configuration, where they can be had."""
        requester = len(pci.functions) << 3
        found = [self.vm.message_interrupt(requester) for _ in range(len(device.queue_sizes) + 1)]
        messages = [message for message in found if message is not None]
        transport = PciTransport(device, self.memory.memory, line, messages)
        pci.add(transport.function)
        transport.connect_doorbells(self.vm)
        self.chipset.add(transport)

    @property
    def pci_lines(self) -> list[int]:
        """INTA of each function behind the bridge, from device 1 on."""
        count = len(self.pci.functions) - 1 if self.pci is not None else 0
        return [self.virtio_line + number for number in range(count)]

    @property
    def ram(self) -> Ram:
        """The RAM that a kernel is loaded into: the lowest run of it."""
        first = self.memory.regions[0]
        return Ram(self.memory.memory, first.gpa, first.size, self.memory.fd)

    def load_initramfs(
        self, config: MachineConfig, ends: Ends, ram: Ram, after: int
    ) -> tuple[int, int]:
        """Puts the initramfs behind the kernel; gives its start and end."""
        archive = Initramfs()
        archive.character_device("dev/console", 5, 1)
        archive.file("init", ends.init(self.architecture), 0o755)
        for number, module in enumerate(load_modules(config.modules, self.elf_machine)):
            archive.file(module_path(number, module.name), module.data)
        start = up(after, MEMORY_UNIT)
        size = archive.size
        archive.write_into(window(ram, start, size))
        return start, start + size

    def prefault(self, cpu: VirtualCPU, ram: Ram) -> None:
        """The guest's first accesses are to what was loaded."""
        for address, size in ram.filled:
            start = address // PAGE_SIZE * PAGE_SIZE
            cpu.prefault(start, up(address + size, PAGE_SIZE) - start)

    def cmdline(self, config: MachineConfig) -> str:
        """The kernel's command line; raises UsageError when it is too long."""
        words = [] if config.dmesg else [QUIET_CMDLINE]
        words.append(self.base_cmdline)
        if self.pci is None and self.no_pci_cmdline:
            words.append(self.no_pci_cmdline)
        if config.filesystems:
            words.append(ROOT_PARAMETER + config.filesystems[0].tag)
        if network := config.network:
            words.append(NETWORK_PARAMETER + network.told())
        words.append(config.cmdline)
        line = " ".join(filter(None, words))
        if len(line) > self.max_cmdline:
            raise UsageError(
                f"The kernel command line has {len(line)} characters.",
                code="vmm.cmdline",
                hint=f"With ours in front it may have {self.max_cmdline}.",
            )
        return line


def window(ram: Ram, address: int, size: int) -> memoryview:
    """RAM to load something into; raises UsageError where there is none."""
    try:
        return ram.window(address, size)
    except ValueError:
        raise UsageError(
            f"{ram.size >> 20} MiB of memory do not hold the kernel and its initramfs.",
            code="vmm.memory",
            hint="Give the VM more memory.",
        ) from None


def up(value: int, unit: int) -> int:
    """`value`, rounded up."""
    return (value + unit - 1) // unit * unit
