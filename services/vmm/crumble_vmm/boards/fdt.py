"""What boards share that a device tree describes: nodes, and a kernel Image entered with the tree's address."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from crumble_common.guest_memory import GuestMemory
from crumble_native.memory import PAGE_SIZE
from crumble_vmm.boards.base import Board, Ends, up, window
from crumble_vmm.boot.fdt import Value
from crumble_vmm.boot.kernel_image import Format, load_kernel
from crumble_vmm.boot.ram import Ram
from crumble_vmm.boot.tree import BoardTree, DeviceNode, PciNode
from crumble_vmm.chipset.builder import RegisterDevice
from crumble_vmm.chipset.bus import Mapping as BusMapping
from crumble_vmm.chipset.lines import Line, Trigger
from crumble_vmm.config import MachineConfig
from crumble_vmm.devices.pci.host import ECAM_SIZE
from crumble_vmm.hypervisor.address_space import AddressSpace, Region
from crumble_vmm.hypervisor.base import VirtualCPU, VirtualMachine
from crumble_vmm.timeline import Timeline

_SEED_SIZE = 64


class FdtBoard(Board):
    """Devices and their nodes in the device tree. console: the node of the serial port."""

    kernel_format: ClassVar[Format]
    console: ClassVar[str]
    virtio_properties: ClassVar[tuple[tuple[str, Value], ...]] = ()

    def __init__(self, vm: VirtualMachine, space: AddressSpace, memory: GuestMemory) -> None:
        super().__init__(vm, space, memory)
        self._nodes: list[DeviceNode] = []

    @abstractmethod
    def tree(self, **common: Any) -> BoardTree:
        """The machine's tree. common: what BoardTree takes."""

    def add_device(
        self,
        device: RegisterDevice,
        line: Line,
        base: int,
        size: int,
        name: str,
        compatible: str | list[str],
        *properties: tuple[str, Value],
    ) -> None:
        """A device at an address, and its node `name`."""
        region = self.space.add_mmio(device.name, base, size)
        self.chipset.add(device, [BusMapping(region, device)])
        self._describe(name, compatible, region, line, properties)

    def describe_virtio(self, region: Region, line: Line) -> None:
        """A node."""
        self._describe("virtio_mmio", "virtio,mmio", region, line, self.virtio_properties)

    def describe_watchdog(self, region: Region) -> None:
        """A node of what Linux' sunxi_wdt drives (bindings/watchdog/allwinner,sun4i-a10-wdt.yaml)."""
        place = (region.base, region.size, None)
        self._nodes.append(DeviceNode("watchdog", "allwinner,sun6i-a31-wdt", *place))

    def _describe(
        self,
        name: str,
        compatible: str | list[str],
        region: Region,
        line: Line,
        properties: tuple[tuple[str, Value], ...],
    ) -> None:
        edge = line.trigger is Trigger.EDGE
        place = (region.base, region.size, line.number)
        self._nodes.append(DeviceNode(name, compatible, *place, properties, edge))

    def load(
        self, config: MachineConfig, ends: Ends, cpus: Sequence[VirtualCPU], timeline: Timeline
    ) -> None:
        """Kernel, initramfs and device tree."""
        ram = self.ram
        with timeline.phase("kernel load"):
            kernel = load_kernel(config.kernel, ram, self.kernel_format)
        with timeline.phase("initramfs"):
            initrd = self.load_initramfs(config, ends, ram, kernel.end)
        tree = self._place_tree(config, ram, initrd, ends.entropy(_SEED_SIZE))
        cpus[0].set_entry(kernel.entry, self.arguments(tree))
        self.prefault(cpus[0], ram)

    @abstractmethod
    def arguments(self, tree: int) -> tuple[int, ...]:
        """What the kernel is entered with. tree: its address."""

    def _pci_node(self) -> PciNode | None:
        if self.pci is None:
            return None
        edge = self.virtio_trigger is Trigger.EDGE
        return PciNode((self.ecam_base, ECAM_SIZE), self.pci_window, self.pci_lines, edge)

    def _place_tree(
        self, config: MachineConfig, ram: Ram, initrd: tuple[int, int], seed: bytes
    ) -> int:
        """Puts the device tree behind the initramfs; gives its address."""
        tree = self.tree(
            cpus=config.cpus,
            memory=(ram.base, ram.size),
            devices=self._nodes,
            pci=self._pci_node(),
            cmdline=self.cmdline(config),
            console=self.console,
            initrd=initrd,
            seed=seed,
        ).flatten()
        # A page of its own: the kernel takes the pages of the initramfs back.
        address = up(initrd[1], PAGE_SIZE)
        window(ram, address, len(tree))[:] = tree
        return address
