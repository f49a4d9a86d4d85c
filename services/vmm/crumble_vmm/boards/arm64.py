"""The arm64 board: GIC, PL011, PL031, PSCI by KVM; a device tree says so."""

from __future__ import annotations

from typing import Any

from crumble_common.guest_memory import RamRegion
from crumble_vmm.boards.base import START_CMDLINE, Ends
from crumble_vmm.boards.fdt import FdtBoard
from crumble_vmm.boot.fdt import words
from crumble_vmm.boot.kernel_image import ARM64
from crumble_vmm.boot.modules import EM_AARCH64
from crumble_vmm.boot.tree_arm64 import CLOCK_PHANDLE, Arm64Tree
from crumble_vmm.chipset.lines import Trigger
from crumble_vmm.devices import pl011, pl031
from crumble_vmm.devices.pl011 import Pl011
from crumble_vmm.devices.pl031 import Pl031
from crumble_vmm.hypervisor.address_space import AddressSpace
from crumble_vmm.hypervisor.kvm import arm64
from crumble_vmm.hypervisor.kvm.arm64 import Arm64Machine

# The machine's map: that of QEMU's "virt" board where both have the device.
UART_BASE, UART_LINE = 0x0900_0000, 1
RTC_BASE, RTC_LINE = 0x0901_0000, 2
WATCHDOG_BASE = 0x0902_0000
VIRTIO_BASE = 0x0A00_0000
ECAM_BASE, PCI_WINDOW_BASE, PCI_WINDOW_SIZE = 0x3F00_0000, 0x1000_0000, 0x0100_0000
RAM_BASE = 0x4000_0000
BASE_CMDLINE = f"earlycon console=ttyAMA0 {START_CMDLINE}"


class Arm64Board(FdtBoard):
    """What QEMU's board has, and no firmware."""

    architecture = "arm64"
    elf_machine = EM_AARCH64
    kernel_format = ARM64
    console = f"serial@{UART_BASE:x}"
    virtio_base, virtio_slots, virtio_line = VIRTIO_BASE, 8, 16
    virtio_trigger = Trigger.EDGE
    virtio_properties = (("dma-coherent", None),)
    line_count = arm64.LINES
    base_cmdline = BASE_CMDLINE
    watchdog_base = WATCHDOG_BASE
    ecam_base, pci_window = ECAM_BASE, (PCI_WINDOW_BASE, PCI_WINDOW_SIZE)
    max_cmdline = 2047

    @classmethod
    def regions(cls, size: int) -> list[RamRegion]:
        """One run."""
        return [RamRegion(RAM_BASE, size)]

    @classmethod
    def reserve(cls, space: AddressSpace) -> None:
        """The GIC."""
        places = (*_gic(3, _MAX_CPUS), (arm64.GIC_ITS, arm64.GIC_ITS_SIZE))
        for number, (base, size) in enumerate(places):
            space.add_mmio(f"gic{number}", base, size)

    def add_platform(self, ends: Ends) -> None:
        """Serial port and clock.

        No generation ID: its driver copies 16 bytes at once, which no exit describes; the agent tells a
        clone's kernel what it is.
        """
        clocks = (
            ("clocks", words(CLOCK_PHANDLE, CLOCK_PHANDLE)),
            ("clock-names", ["uartclk", "apb_pclk"]),
        )
        line = self.lines.claim("serial", UART_LINE)
        uart = Pl011("serial", line, ends.console)
        names = ["arm,pl011", "arm,primecell"]
        self.add_device(uart, line, UART_BASE, pl011.SIZE, "serial", names, *clocks)
        line = self.lines.claim("rtc", RTC_LINE)
        rtc = Pl031("rtc", line, ends.loop)
        names = ["arm,pl031", "arm,primecell"]
        clock = (("clocks", words(CLOCK_PHANDLE)), ("clock-names", "apb_pclk"))
        self.add_device(rtc, line, RTC_BASE, pl031.SIZE, "rtc", names, *clock)

    def tree(self, **common: Any) -> Arm64Tree:
        """With the GIC that KVM made."""
        assert isinstance(self.vm, Arm64Machine)
        version = self.vm.gic_version
        its = (arm64.GIC_ITS, arm64.GIC_ITS_SIZE) if self.vm.has_its else None
        gic = _gic(version, common["cpus"])
        return Arm64Tree(gic_version=version, gic=gic, its=its, **common)

    def arguments(self, tree: int) -> tuple[int, ...]:
        """x0: the tree."""
        return (tree,)


_MAX_CPUS = 64


def _gic(version: int, cpus: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Places of the distributor, and of what each CPU has."""
    distributor = (arm64.GIC_DISTRIBUTOR, arm64.GIC_DISTRIBUTOR_SIZE)
    if version == 2:
        return distributor, (arm64.GIC_CPU_INTERFACE, arm64.GIC_CPU_INTERFACE_SIZE)
    return distributor, (arm64.GIC_REDISTRIBUTORS, cpus * arm64.GIC_REDISTRIBUTOR_SIZE)
