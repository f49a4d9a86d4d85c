"""build_machine: the one recipe of a machine, top to bottom. It ends with a machine that is built and
stands still; `Machine.run` lets it go.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from crumble_common.errors import CrumbleError, UsageError
from crumble_common.eventloop import EventLoop
from crumble_common.guest_memory import GuestMemory, RamRegion
from crumble_common.vhost_user import MemoryRegion
from crumble_native.memory import PAGE_SIZE
from crumble_vmm.boot.initramfs import Initramfs
from crumble_vmm.boot.kernel_riscv64 import load_kernel
from crumble_vmm.boot.modules import load_modules
from crumble_vmm.boot.ram import Ram
from crumble_vmm.boot.tree_riscv64 import BoardTree, DeviceNode
from crumble_vmm.chipset.builder import ChipsetBuilder
from crumble_vmm.chipset.bus import Mapping as BusMapping
from crumble_vmm.chipset.lines import Line, LineSet
from crumble_vmm.config import MEMORY_UNIT, MachineConfig
from crumble_vmm.devices import generation_id, goldfish_rtc, uart8250
from crumble_vmm.devices.generation_id import GenerationId
from crumble_vmm.devices.goldfish_rtc import GoldfishRtc
from crumble_vmm.devices.uart8250 import Uart8250
from crumble_vmm.devices.virtio import mmio
from crumble_vmm.devices.virtio.console import Console, Port
from crumble_vmm.devices.virtio.device import VirtioDevice
from crumble_vmm.devices.virtio.mmio import MmioTransport
from crumble_vmm.devices.virtio.rng import Rng
from crumble_vmm.devices.virtio.vhost_user import virtio_fs
from crumble_vmm.guest.build import module_path
from crumble_vmm.guest.protocol import ROOT_PARAMETER
from crumble_vmm.hypervisor import choose
from crumble_vmm.hypervisor.address_space import AddressSpace, Region
from crumble_vmm.hypervisor.base import VirtualCPU, VirtualMachine
from crumble_vmm.machine import Machine
from crumble_vmm.timeline import Timeline

# The machine's map: that of QEMU's riscv "virt" board where both have the device.
RTC_BASE, RTC_LINE = 0x0010_1000, 11
GENERATION_ID_BASE, GENERATION_ID_LINE = 0x0010_2000, 12
PLIC_BASE, PLIC_SIZE, PLIC_SOURCES = 0x0C00_0000, 0x0400_0000, 95
UART_BASE, UART_LINE = 0x1000_0000, 10
VIRTIO_BASE, VIRTIO_SLOTS, VIRTIO_FIRST_LINE = 0x1000_1000, 8, 1
RAM_BASE = 0x8000_0000
TIMEBASE = 10_000_000
MMU = "sv48"
# 8250 input clock of the board; the divisor is of no consequence.
_UART_CLOCK = 3_686_400

# Only emergencies are printed; a panic raises the level by itself. Before "earlycon", which prints
# from where it stands on.
QUIET_CMDLINE = "quiet loglevel=1"
# earlycon: a panic before the UART has its driver is seen, too. panic=-1: reboot at once, which is how
# we learn of it. Not needed, and most of a boot: self-tests of ciphers (1,000 million instructions) and
# of the jitter entropy source (70 million); the tree brings a seed.
BASE_CMDLINE = (
    "earlycon=sbi console=ttyS0 panic=-1 cryptomgr.notests initcall_blacklist=jent_mod_init"
)
# Linux, arch/riscv: COMMAND_LINE_SIZE, with the NUL.
MAX_CMDLINE = 1023
_SEED_SIZE = 64


@dataclass(frozen=True, slots=True)
class Ends:
    """Where a machine's devices meet the rest of this process.

    memory: the fds of guest memory and its page state, taken over. sockets: of vhost-user back ends, by
    fd name. console: kernel console output, from vCPU threads. ports: of virtio-console, hvc0 first.
    init: the ELF file for /init. lost: a back end is gone. base: a captured VM's memory, to go on from; -1
    when the guest boots.
    """

    loop: EventLoop
    memory: tuple[int, int]
    sockets: Mapping[str, socket.socket]
    console: Callable[[bytes], None]
    ports: tuple[Port, ...]
    init: Callable[[], bytes]
    lost: Callable[[CrumbleError], None]
    base: int = -1


def build_machine(config: MachineConfig, ends: Ends, timeline: Timeline) -> Machine:
    """A machine, loaded and standing still; without anything loaded when there is a base. CrumbleError."""
    hypervisor, _ = choose(config.hypervisor)
    with timeline.phase("memory map"):
        space = AddressSpace()
        space.add_ram("ram", RAM_BASE, config.memory)
        space.add_mmio("plic", PLIC_BASE, PLIC_SIZE)
        regions = [RamRegion(RAM_BASE, config.memory)]
        memory = GuestMemory.attach(*ends.memory, regions, ends.base)
    with timeline.phase("machine build"):
        vm = hypervisor.create_vm(memory.memory, config.cpus)
        board = _Board(vm, space, memory)
        board.add_platform(ends)
        board.add_virtio(config, ends)
        chipset = board.chipset.build()
        cpus = [vm.create_cpu(index, chipset.bus, ends.console) for index in range(config.cpus)]
    if ends.base < 0:
        _load(config, ends, board, memory, cpus[0], timeline)
    return Machine(vm, cpus, chipset, memory, ends.loop, hypervisor.name)


def _load(
    config: MachineConfig,
    ends: Ends,
    board: _Board,
    memory: GuestMemory,
    cpu: VirtualCPU,
    timeline: Timeline,
) -> None:
    """Kernel, initramfs and device tree; the first vCPU starts in the kernel."""
    ram = Ram(memory.memory, RAM_BASE, config.memory, memory.fd)
    with timeline.phase("kernel load"):
        kernel = load_kernel(config.kernel, ram)
    with timeline.phase("initramfs"):
        initrd = _load_initramfs(config, ends, ram, kernel.end)
    tree = _place_tree(config, board, ram, initrd)
    cpu.set_entry(kernel.entry, (0, tree))


def _load_initramfs(config: MachineConfig, ends: Ends, ram: Ram, after: int) -> tuple[int, int]:
    """Puts the initramfs behind the kernel; gives its start and end."""
    archive = Initramfs()
    archive.character_device("dev/console", 5, 1)
    archive.file("init", ends.init(), 0o755)
    for number, module in enumerate(load_modules(config.modules)):
        archive.file(module_path(number, module.name), module.data)
    start = _up(after, MEMORY_UNIT)
    size = archive.size
    archive.write_into(_window(ram, start, size))
    return start, start + size


def _window(ram: Ram, address: int, size: int) -> memoryview:
    try:
        return ram.window(address, size)
    except ValueError:
        raise UsageError(
            f"{ram.size >> 20} MiB of memory do not hold the kernel and its initramfs.",
            code="vmm.memory",
            hint="Give the VM more memory.",
        ) from None


def _up(value: int, unit: int) -> int:
    return (value + unit - 1) // unit * unit


def cmdline(config: MachineConfig) -> str:
    """The kernel's command line; raises UsageError when it is too long."""
    words = [] if config.dmesg else [QUIET_CMDLINE]
    words.append(BASE_CMDLINE)
    if config.filesystems:
        words.append(ROOT_PARAMETER + config.filesystems[0].tag)
    words.append(config.cmdline)
    line = " ".join(filter(None, words))
    if len(line) > MAX_CMDLINE:
        raise UsageError(
            f"The kernel command line has {len(line)} characters.",
            code="vmm.cmdline",
            hint=f"With ours in front it may have {MAX_CMDLINE}.",
        )
    return line


def _place_tree(config: MachineConfig, board: _Board, ram: Ram, initrd: tuple[int, int]) -> int:
    """Puts the device tree behind the initramfs; gives its address."""
    tree = BoardTree(
        cpus=config.cpus,
        memory=(ram.base, ram.size),
        timebase=TIMEBASE,
        mmu=MMU,
        plic=(PLIC_BASE, PLIC_SIZE),
        plic_sources=PLIC_SOURCES,
        devices=board.nodes,
        cmdline=cmdline(config),
        console=f"serial@{UART_BASE:x}",
        initrd=initrd,
        seed=os.urandom(_SEED_SIZE),
    ).flatten()
    # A page of its own: the kernel takes the pages of the initramfs back.
    address = _up(initrd[1], PAGE_SIZE)
    _window(ram, address, len(tree))[:] = tree
    return address


class _Board:
    """The devices, as they are put on the board, and their nodes in the device tree."""

    def __init__(self, vm: VirtualMachine, space: AddressSpace, memory: GuestMemory) -> None:
        self.chipset = ChipsetBuilder()
        self.nodes: list[DeviceNode] = []
        self._vm, self._space, self._memory = vm, space, memory
        self._lines = LineSet(PLIC_SOURCES, vm.set_line)
        self._slots = 0

    def add_platform(self, ends: Ends) -> None:
        """The devices that are there whatever the VM is for."""
        line = self._lines.claim("serial", UART_LINE)
        uart = Uart8250("serial", line, ends.console)
        region = self._space.add_mmio("serial", UART_BASE, uart8250.SIZE)
        self.chipset.add(uart, [BusMapping(region, uart)])
        clock = (("clock-frequency", _UART_CLOCK),)
        self._describe("serial", "ns16550a", region, line, clock)
        line = self._lines.claim("rtc", RTC_LINE)
        rtc = GoldfishRtc("rtc", line, ends.loop)
        region = self._space.add_mmio("rtc", RTC_BASE, goldfish_rtc.SIZE)
        self.chipset.add(rtc, [BusMapping(region, rtc)])
        self._describe("rtc", "google,goldfish-rtc", region, line)
        line = self._lines.claim("generation", GENERATION_ID_LINE)
        generation = GenerationId("generation", line)
        region = self._space.add_mmio("generation", GENERATION_ID_BASE, generation_id.SIZE)
        self.chipset.add(generation, [BusMapping(region, generation)])
        self._describe("vmgenid", "microsoft,vmgenid", region, line)

    def add_virtio(self, config: MachineConfig, ends: Ends) -> None:
        """A slot for each virtio device, lowest first."""
        self._add_slot(Console("console", ends.ports, ends.loop))
        self._add_slot(Rng("rng", ends.loop))
        regions = [MemoryRegion(RAM_BASE, config.memory, self._memory.fd)]
        for item in config.filesystems:
            sock = ends.sockets[item.socket_fd]
            name = f"fs {item.tag}"
            self._add_slot(virtio_fs(name, item.tag, sock, regions, ends.loop, ends.lost))

    def _add_slot(self, device: VirtioDevice) -> None:
        slot, self._slots = self._slots, self._slots + 1
        if slot == VIRTIO_SLOTS:
            raise UsageError(
                f"A VM has room for {VIRTIO_SLOTS} virtio devices.", code="vmm.devices"
            )
        name = f"virtio{slot}"
        line = self._lines.claim(name, VIRTIO_FIRST_LINE + slot)
        region = self._space.add_mmio(name, VIRTIO_BASE + slot * mmio.SIZE, mmio.SIZE)
        interrupt = self._vm.virtio_interrupt(
            line.number, region.base + mmio.INTERRUPT_STATUS, region.base + mmio.INTERRUPT_ACK
        )
        transport = MmioTransport(device, region.base, self._memory.memory, interrupt)
        transport.connect_doorbells(self._vm)
        self.chipset.add(transport, [BusMapping(region, transport)])
        self._describe("virtio_mmio", "virtio,mmio", region, line)

    def _describe(
        self,
        name: str,
        compatible: str,
        region: Region,
        line: Line,
        properties: tuple[tuple[str, int], ...] = (),
    ) -> None:
        node = DeviceNode(name, compatible, region.base, region.size, line.number, properties)
        self.nodes.append(node)
