"""The riscv64 board: PLIC, 16550, goldfish RTC; a device tree says so."""

from __future__ import annotations

from typing import Any

from crumble_common.guest_memory import RamRegion
from crumble_vmm.boards.base import START_CMDLINE, Ends
from crumble_vmm.boards.fdt import FdtBoard
from crumble_vmm.boot.kernel_image import RISCV64
from crumble_vmm.boot.modules import EM_RISCV
from crumble_vmm.boot.tree_riscv64 import EXTENSIONS, Hart, Riscv64Tree
from crumble_vmm.devices import generation_id, goldfish_rtc, uart8250
from crumble_vmm.devices.generation_id import GenerationId
from crumble_vmm.devices.goldfish_rtc import GoldfishRtc
from crumble_vmm.devices.uart8250 import Uart8250
from crumble_vmm.hypervisor.address_space import AddressSpace

# The machine's map: that of QEMU's riscv "virt" board where both have the device.
RTC_BASE, RTC_LINE = 0x0010_1000, 11
GENERATION_ID_BASE, GENERATION_ID_LINE = 0x0010_2000, 12
WATCHDOG_BASE = 0x0010_3000
PLIC_BASE, PLIC_SIZE, PLIC_SOURCES = 0x0C00_0000, 0x0400_0000, 95
UART_BASE, UART_LINE = 0x1000_0000, 10
ECAM_BASE, PCI_WINDOW_BASE, PCI_WINDOW_SIZE = 0x3000_0000, 0x4000_0000, 0x0100_0000
RAM_BASE = 0x8000_0000
TIMEBASE = 10_000_000
_CACHE_BLOCK = 64
SOFT_HART = Hart(
    TIMEBASE, "sv48", EXTENSIONS, dict.fromkeys(("cbom", "cbop", "cboz"), _CACHE_BLOCK)
)
# 8250 input clock of the board; the divisor is of no consequence.
_UART_CLOCK = 3_686_400
# earlycon: a panic before the UART has its driver is seen, too.
BASE_CMDLINE = f"earlycon=sbi console=ttyS0 {START_CMDLINE}"


class Riscv64Board(FdtBoard):
    """What QEMU's board has, and no firmware."""

    architecture = "riscv64"
    elf_machine = EM_RISCV
    kernel_format = RISCV64
    console = f"serial@{UART_BASE:x}"
    virtio_base, virtio_slots, virtio_line = 0x1000_1000, 8, 1
    line_count = PLIC_SOURCES
    base_cmdline = BASE_CMDLINE
    watchdog_base = WATCHDOG_BASE
    ecam_base, pci_window = ECAM_BASE, (PCI_WINDOW_BASE, PCI_WINDOW_SIZE)
    max_cmdline = 1023

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
        clock = ("clock-frequency", _UART_CLOCK)
        self.add_device(uart, line, UART_BASE, uart8250.SIZE, "serial", "ns16550a", clock)
        line = self.lines.claim("rtc", RTC_LINE)
        rtc = GoldfishRtc("rtc", line, ends.local, ends.clock)
        size, name = goldfish_rtc.SIZE, "google,goldfish-rtc"
        self.add_device(rtc, line, RTC_BASE, size, "rtc", name)
        line = self.lines.claim("generation", GENERATION_ID_LINE)
        generation = GenerationId("generation", line, ends.entropy)
        size, name = generation_id.SIZE, "microsoft,vmgenid"
        self.add_device(generation, line, GENERATION_ID_BASE, size, "vmgenid", name)

    def tree(self, **common: Any) -> Riscv64Tree:
        """With the PLIC."""
        hart = getattr(self.vm, "hart", SOFT_HART)  # KVM's are the host's
        plic = (PLIC_BASE, PLIC_SIZE)
        return Riscv64Tree(hart=hart, plic=plic, plic_sources=PLIC_SOURCES, **common)

    def arguments(self, tree: int) -> tuple[int, ...]:
        """a0: the hart; a1: the tree."""
        return (0, tree)
