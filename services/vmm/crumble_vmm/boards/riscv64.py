"""The riscv64 board: PLIC, 16550, goldfish RTC; a device tree says so."""

from __future__ import annotations

from collections.abc import Sequence

from crumble_common.guest_memory import GuestMemory, RamRegion
from crumble_native.memory import PAGE_SIZE
from crumble_vmm.boards.base import Board, Ends, up, window
from crumble_vmm.boot.kernel_riscv64 import load_kernel
from crumble_vmm.boot.modules import EM_RISCV
from crumble_vmm.boot.ram import Ram
from crumble_vmm.boot.tree_riscv64 import BoardTree, DeviceNode, PciNode
from crumble_vmm.chipset.bus import Mapping as BusMapping
from crumble_vmm.chipset.lines import Line
from crumble_vmm.config import MachineConfig
from crumble_vmm.devices import generation_id, goldfish_rtc, uart8250
from crumble_vmm.devices.generation_id import GenerationId
from crumble_vmm.devices.goldfish_rtc import GoldfishRtc
from crumble_vmm.devices.pci.host import ECAM_SIZE
from crumble_vmm.devices.uart8250 import Uart8250
from crumble_vmm.hypervisor.address_space import AddressSpace, Region
from crumble_vmm.hypervisor.base import VirtualCPU, VirtualMachine
from crumble_vmm.timeline import Timeline

# The machine's map: that of QEMU's riscv "virt" board where both have the device.
RTC_BASE, RTC_LINE = 0x0010_1000, 11
GENERATION_ID_BASE, GENERATION_ID_LINE = 0x0010_2000, 12
PLIC_BASE, PLIC_SIZE, PLIC_SOURCES = 0x0C00_0000, 0x0400_0000, 95
UART_BASE, UART_LINE = 0x1000_0000, 10
ECAM_BASE, PCI_WINDOW_BASE, PCI_WINDOW_SIZE = 0x3000_0000, 0x4000_0000, 0x0100_0000
RAM_BASE = 0x8000_0000
TIMEBASE = 10_000_000
MMU = "sv48"
# 8250 input clock of the board; the divisor is of no consequence.
_UART_CLOCK = 3_686_400
# earlycon: a panic before the UART has its driver is seen, too. panic=-1: reboot at once, which is how
# we learn of it. Not needed, and most of a boot: self-tests of ciphers (1,000 million instructions) and
# of the jitter entropy source (70 million); the tree brings a seed.
BASE_CMDLINE = (
    "earlycon=sbi console=ttyS0 panic=-1 cryptomgr.notests initcall_blacklist=jent_mod_init"
)
_SEED_SIZE = 64


class Riscv64Board(Board):
    """The devices and their nodes in the device tree."""

    architecture = "riscv64"
    elf_machine = EM_RISCV
    virtio_base, virtio_slots, virtio_line = 0x1000_1000, 8, 1
    line_count = PLIC_SOURCES
    base_cmdline = BASE_CMDLINE
    ecam_base, pci_window = ECAM_BASE, (PCI_WINDOW_BASE, PCI_WINDOW_SIZE)
    max_cmdline = 1023

    def __init__(self, vm: VirtualMachine, space: AddressSpace, memory: GuestMemory) -> None:
        super().__init__(vm, space, memory)
        self._nodes: list[DeviceNode] = []

    @classmethod
    def regions(cls, size: int) -> list[RamRegion]:
        """One run."""
        return [RamRegion(RAM_BASE, size)]

    @classmethod
    def reserve(cls, space: AddressSpace) -> None:
        """The PLIC."""
        space.add_mmio("plic", PLIC_BASE, PLIC_SIZE)

    def add_platform(self, ends: Ends) -> None:
        """Serial port, clock, generation ID."""
        line = self.lines.claim("serial", UART_LINE)
        uart = Uart8250("serial", line, ends.console)
        region = self.space.add_mmio("serial", UART_BASE, uart8250.SIZE)
        self.chipset.add(uart, [BusMapping(region, uart)])
        clock = (("clock-frequency", _UART_CLOCK),)
        self._describe("serial", "ns16550a", region, line, clock)
        line = self.lines.claim("rtc", RTC_LINE)
        rtc = GoldfishRtc("rtc", line, ends.local, ends.clock)
        region = self.space.add_mmio("rtc", RTC_BASE, goldfish_rtc.SIZE)
        self.chipset.add(rtc, [BusMapping(region, rtc)])
        self._describe("rtc", "google,goldfish-rtc", region, line)
        line = self.lines.claim("generation", GENERATION_ID_LINE)
        generation = GenerationId("generation", line, ends.entropy)
        region = self.space.add_mmio("generation", GENERATION_ID_BASE, generation_id.SIZE)
        self.chipset.add(generation, [BusMapping(region, generation)])
        self._describe("vmgenid", "microsoft,vmgenid", region, line)

    def describe_virtio(self, region: Region, line: Line) -> None:
        """A node."""
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
        self._nodes.append(node)

    def load(
        self, config: MachineConfig, ends: Ends, cpus: Sequence[VirtualCPU], timeline: Timeline
    ) -> None:
        """Kernel, initramfs and device tree."""
        ram = self.ram
        with timeline.phase("kernel load"):
            kernel = load_kernel(config.kernel, ram)
        with timeline.phase("initramfs"):
            initrd = self.load_initramfs(config, ends, ram, kernel.end)
        tree = self._place_tree(config, ram, initrd, ends.entropy(_SEED_SIZE))
        cpus[0].set_entry(kernel.entry, (0, tree))

    def _pci_node(self) -> PciNode | None:
        if self.pci is None:
            return None
        return PciNode((ECAM_BASE, ECAM_SIZE), self.pci_window, self.pci_lines)

    def _place_tree(
        self, config: MachineConfig, ram: Ram, initrd: tuple[int, int], seed: bytes
    ) -> int:
        """Puts the device tree behind the initramfs; gives its address."""
        tree = BoardTree(
            cpus=config.cpus,
            memory=(ram.base, ram.size),
            timebase=TIMEBASE,
            mmu=MMU,
            plic=(PLIC_BASE, PLIC_SIZE),
            plic_sources=PLIC_SOURCES,
            devices=self._nodes,
            pci=self._pci_node(),
            cmdline=self.cmdline(config),
            console=f"serial@{UART_BASE:x}",
            initrd=initrd,
            seed=seed,
        ).flatten()
        # A page of its own: the kernel takes the pages of the initramfs back.
        address = up(initrd[1], PAGE_SIZE)
        window(ram, address, len(tree))[:] = tree
        return address
