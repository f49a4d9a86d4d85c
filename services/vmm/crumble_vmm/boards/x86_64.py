"""The x86_64 board: no firmware, PCI only on demand, no legacy but an 8250 and the i8042's reset; ACPI says so."""

from __future__ import annotations

import os
from collections.abc import Sequence

from crumble_common.guest_memory import GuestMemory, RamRegion
from crumble_vmm.boards.base import START_CMDLINE, Board, Ends, window
from crumble_vmm.boot import aml
from crumble_vmm.boot.acpi import LOCAL_APIC, AcpiBoard, AcpiDevice, AcpiPci
from crumble_vmm.boot.kernel_x86 import (
    E820_RAM,
    E820_RESERVED,
    BootParams,
    LoadedKernel,
    load_kernel,
    page_tables,
    seed_data,
)
from crumble_vmm.boot.modules import EM_X86_64
from crumble_vmm.boot.mptable import mp_table
from crumble_vmm.boot.pvh import StartInfo
from crumble_vmm.chipset.builder import RegisterDevice
from crumble_vmm.chipset.bus import Mapping as BusMapping
from crumble_vmm.chipset.ioapic import PINS
from crumble_vmm.chipset.lines import Line, Trigger
from crumble_vmm.config import MachineConfig
from crumble_vmm.devices import power_ports
from crumble_vmm.devices.pci.host import ECAM_SIZE
from crumble_vmm.devices.power_ports import KeyboardController, PowerPorts
from crumble_vmm.devices.uart8250 import Uart8250
from crumble_vmm.hypervisor.address_space import AddressSpace, Kind, Region
from crumble_vmm.hypervisor.base import VirtualCPU, VirtualMachine
from crumble_vmm.hypervisor.kvm.machine import IOAPIC_BASE
from crumble_vmm.hypervisor.kvm.x86 import GDT
from crumble_vmm.timeline import Timeline

# Below 640 KiB, what the kernel is entered with: boot_params, or PVH's start info.
GDT_BASE, BOOT_PARAMS_BASE, SETUP_DATA_BASE = 0x500, 0x7000, 0x8000
PAGE_TABLES_BASE, CMDLINE_BASE = 0x9000, 0x2_0000
LOW_END = 0x9_FC00
ACPI_BASE, MP_TABLE_BASE, ACPI_END = 0xE_0000, 0xF_0000, 0x10_0000
# RAM below 4 GiB ends here at the latest; devices follow.
HOLE_START, HOLE_END = 0xC000_0000, 1 << 32
VIRTIO_BASE = 0xD000_0000
WATCHDOG_BASE = 0xD00F_0000
PCI_WINDOW_BASE, PCI_WINDOW_SIZE = 0xD100_0000, 0x0100_0000
ECAM_BASE = 0xE000_0000
APIC_SIZE = 0x1000
# Linux, arch/x86/kvm/vmx: pages for the kernel's own use (native/src/kvm_x86.c).
KVM_BASE, KVM_SIZE = 0xFFFB_C000, 0x4000
UART_PORT, UART_SIZE, UART_LINE = 0x3F8, 8, 4
POWER_PORT = 0x600
_SEED_SIZE = 64
BASE_CMDLINE = f"earlycon=uart8250,io,0x3f8 console=ttyS0 8250.nr_uarts=1 {START_CMDLINE}"


class X8664Board(Board):
    """The devices and what ACPI says of them."""

    architecture = "amd64"
    elf_machine = EM_X86_64
    # Pins above the PIC's: one input, not two.
    virtio_base, virtio_slots, virtio_line = VIRTIO_BASE, 8, 16
    line_count = PINS - 1
    base_cmdline = BASE_CMDLINE
    no_pci_cmdline = "pci=off"  # looking for it takes exits
    watchdog_base = WATCHDOG_BASE
    ecam_base, pci_window = ECAM_BASE, (PCI_WINDOW_BASE, PCI_WINDOW_SIZE)
    max_cmdline = 2047

    def __init__(self, vm: VirtualMachine, space: AddressSpace, memory: GuestMemory) -> None:
        super().__init__(vm, space, memory)
        self._devices: list[AcpiDevice] = []
        self._watchdog: int | None = None

    @classmethod
    def regions(cls, size: int) -> list[RamRegion]:
        """From 0; what does not fit below the hole is above 4 GiB."""
        low = min(size, HOLE_START)
        regions = [RamRegion(0, low)]
        if size > low:
            regions.append(RamRegion(HOLE_END, size - low, low))
        return regions

    @classmethod
    def reserve(cls, space: AddressSpace) -> None:
        """The interrupt controllers and KVM's own pages."""
        space.add_mmio("ioapic", IOAPIC_BASE, APIC_SIZE)
        space.add_mmio("lapic", LOCAL_APIC, APIC_SIZE)
        space.add_mmio("kvm", KVM_BASE, KVM_SIZE)

    def add_platform(self, ends: Ends) -> None:
        """Serial port, and what ends the machine."""
        line = self.lines.claim("serial", UART_LINE, Trigger.EDGE)
        uart = Uart8250("serial", line, ends.console)
        self.chipset.add(uart)
        self._map_ports("serial", UART_PORT, UART_SIZE, uart)
        crs = (aml.io_ports(UART_PORT, UART_SIZE), aml.interrupt(UART_LINE, edge=True))
        self._devices.append(AcpiDevice("COM1", "PNP0501", 0, crs))
        power, keyboard = PowerPorts(), KeyboardController()
        self.chipset.add(power)
        self.chipset.add(keyboard)
        self._map_ports("power", POWER_PORT, power_ports.SIZE, power)
        self._map_ports("i8042", power_ports.I8042_BASE, power_ports.I8042_SIZE, keyboard)

    def _map_ports(self, name: str, base: int, size: int, device: RegisterDevice) -> None:
        self.ports.append(BusMapping(Region(name, base, size, Kind.MMIO), device))

    def describe_virtio(self, region: Region, line: Line) -> None:
        """An LNRO0005 (Linux, drivers/virtio/virtio_mmio.c). Its interrupt is an edge: an irqfd's."""
        number = line.number - self.virtio_line
        crs = (aml.memory(region.base, region.size), aml.interrupt(line.number, edge=True))
        self._devices.append(AcpiDevice(f"VR{number:02}", "LNRO0005", number, crs))

    def describe_watchdog(self, region: Region) -> None:
        """A WDAT, for Linux' wdat_wdt."""
        self._watchdog = region.base

    def load(
        self, config: MachineConfig, ends: Ends, cpus: Sequence[VirtualCPU], timeline: Timeline
    ) -> None:
        """Kernel, initramfs, ACPI tables, boot_params."""
        ram = self.ram
        with timeline.phase("kernel load"):
            kernel = load_kernel(config.kernel, ram)
        with timeline.phase("initramfs"):
            initrd = self.load_initramfs(config, ends, ram, kernel.end)
        pieces = {
            **(self._start_info(initrd) if kernel.pvh else self._boot_params(kernel, initrd)),
            CMDLINE_BASE: self.cmdline(config).encode() + b"\0",
            ACPI_BASE: self._acpi(config.cpus).tables(ACPI_BASE),
            MP_TABLE_BASE: mp_table(MP_TABLE_BASE, config.cpus, IOAPIC_BASE, PINS),
        }
        for address, data in pieces.items():
            window(ram, address, len(data))[:] = data
        tables = () if kernel.pvh else (PAGE_TABLES_BASE, GDT_BASE)
        cpus[0].set_entry(kernel.entry, (BOOT_PARAMS_BASE, *tables))
        self.prefault(cpus[0], ram)

    def _start_info(self, initrd: tuple[int, int]) -> dict[int, bytes]:
        """What PVH wants, by address."""
        info = StartInfo(CMDLINE_BASE, initrd, ACPI_BASE, self._e820())
        return {BOOT_PARAMS_BASE: info.encode(BOOT_PARAMS_BASE)}

    def _boot_params(self, kernel: LoadedKernel, initrd: tuple[int, int]) -> dict[int, bytes]:
        """What the 64-bit boot protocol wants, by address."""
        params = BootParams(
            kernel.header, CMDLINE_BASE, initrd, ACPI_BASE, SETUP_DATA_BASE, self._e820()
        )
        return {
            GDT_BASE: GDT,
            BOOT_PARAMS_BASE: params.encode(),
            SETUP_DATA_BASE: seed_data(os.urandom(_SEED_SIZE)),
            PAGE_TABLES_BASE: page_tables(PAGE_TABLES_BASE),
        }

    def _acpi(self, cpus: int) -> AcpiBoard:
        return AcpiBoard(
            cpus=cpus,
            ioapic=IOAPIC_BASE,
            sleep_control=POWER_PORT + power_ports.SLEEP_CONTROL,
            sleep_status=POWER_PORT + power_ports.SLEEP_STATUS,
            reset=(POWER_PORT + power_ports.RESET, power_ports.RESET_VALUE),
            devices=self._devices,
            pci=self._acpi_pci(),
            watchdog=self._watchdog,
        )

    def _acpi_pci(self) -> AcpiPci | None:
        return AcpiPci(ECAM_BASE, self.pci_window, self.pci_lines) if self.pci is not None else None

    def _e820(self) -> list[tuple[int, int, int]]:
        low, *high = self.memory.regions
        found = [
            (0, LOW_END, E820_RAM),
            (ACPI_BASE, ACPI_END - ACPI_BASE, E820_RESERVED),
            (ACPI_END, low.size - ACPI_END, E820_RAM),
        ]
        if self.pci is not None:  # Linux trusts no MCFG that is not reserved
            found.append((ECAM_BASE, ECAM_SIZE, E820_RESERVED))
        return found + [(region.gpa, region.size, E820_RAM) for region in high]
