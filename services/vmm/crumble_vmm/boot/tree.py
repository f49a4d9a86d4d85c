"""Device trees of our machines (Devicetree Specification v0.4): what all of them say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from crumble_vmm.boot.fdt import Node, Value, cells, flatten, words

CONTROLLER_PHANDLE = 1
# IEEE 1275's PCI addresses: space, device, pin.
_PCI_MEMORY_32, _PCI_DEVICE_SHIFT, _PCI_DEVICE_MASK = 0x0200_0000, 11, 0xF800
_PCI_INTA, _PCI_PIN_MASK = 1, 7


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device with registers and one interrupt, or none. properties: beyond those every device has."""

    name: str
    compatible: str | list[str]
    base: int
    size: int
    interrupt: int | None
    properties: tuple[tuple[str, Value], ...] = ()
    edge: bool = False


@dataclass(frozen=True, slots=True)
class PciNode:
    """A PCI host bridge (bindings/pci/host-generic-pci.yaml). ecam, window: (base, size). lines: INTA of
    devices 1, 2, ..., and whether they are edges.
    """

    ecam: tuple[int, int]
    window: tuple[int, int]
    lines: Sequence[int]
    edge: bool = False


@dataclass(frozen=True, kw_only=True)
class BoardTree(ABC):
    """What the tree says. seed: entropy for the guest's random pool. initrd: (start, end)."""

    compatible: ClassVar[str] = "crumble,virt"

    cpus: int
    memory: tuple[int, int]
    devices: Sequence[DeviceNode]
    cmdline: str
    console: str
    initrd: tuple[int, int]
    seed: bytes
    pci: PciNode | None = None

    def flatten(self) -> bytes:
        """The blob for the guest."""
        root = Node("")
        root.set("#address-cells", 2).set("#size-cells", 2)
        root.set("compatible", self.compatible).set("model", "Crumble virtual machine")
        self._chosen(root.add("chosen"))
        self.add_cpus(root.add("cpus"))
        memory = root.add(f"memory@{self.memory[0]:x}")
        memory.set("device_type", "memory").set("reg", cells(*self.memory))
        self.add_platform(root)
        soc = root.add("soc")
        soc.set("#address-cells", 2).set("#size-cells", 2)
        soc.set("compatible", "simple-bus").set("ranges")
        self.add_controller(soc)
        for device in self.devices:
            self._device(soc, device)
        if self.pci is not None:
            self._pci(soc, self.pci)
        return flatten(root)

    def _chosen(self, chosen: Node) -> None:
        chosen.set("bootargs", self.cmdline).set("stdout-path", f"/soc/{self.console}")
        chosen.set("linux,initrd-start", cells(self.initrd[0]))
        chosen.set("linux,initrd-end", cells(self.initrd[1]))
        chosen.set("rng-seed", self.seed)

    def _device(self, soc: Node, device: DeviceNode) -> None:
        node = soc.add(f"{device.name}@{device.base:x}")
        node.set("compatible", device.compatible).set("reg", cells(device.base, device.size))
        if device.interrupt is not None:
            node.set("interrupt-parent", CONTROLLER_PHANDLE)
            node.set("interrupts", self.interrupt(device.interrupt, edge=device.edge))
        for name, value in device.properties:
            node.set(name, value)

    def _pci(self, soc: Node, pci: PciNode) -> None:
        node = soc.add(f"pci@{pci.ecam[0]:x}")
        node.set("compatible", "pci-host-ecam-generic").set("device_type", "pci")
        node.set("#address-cells", 3).set("#size-cells", 2).set("#interrupt-cells", 1)
        node.set("reg", cells(*pci.ecam)).set("bus-range", words(0, 0))
        node.set("linux,pci-domain", 0).set("dma-coherent")
        base, size = pci.window
        node.set("ranges", words(_PCI_MEMORY_32, 0, base) + cells(base, size))
        node.set("interrupt-map-mask", words(_PCI_DEVICE_MASK, 0, 0, _PCI_PIN_MASK))
        entries = (
            words(number << _PCI_DEVICE_SHIFT, 0, 0, _PCI_INTA, CONTROLLER_PHANDLE)
            + self.interrupt(line, edge=pci.edge)
            for number, line in enumerate(pci.lines, start=1)
        )
        node.set("interrupt-map", b"".join(entries))
        if (controller := self.messages()) is not None:  # requester IDs as they are
            node.set("msi-map", words(0, controller, 0, 1 << 16))

    @abstractmethod
    def add_cpus(self, cpus: Node) -> None:
        """The CPUs."""

    def add_platform(self, root: Node) -> None:  # noqa: B027  most have nothing more
        """What else has no registers."""

    @abstractmethod
    def add_controller(self, soc: Node) -> None:
        """The interrupt controller, CONTROLLER_PHANDLE."""

    def messages(self) -> int | None:
        """The phandle of what takes messages of PCI devices; None: nothing does."""
        return None

    @abstractmethod
    def interrupt(self, line: int, *, edge: bool) -> bytes:
        """What says to the controller which interrupt it is."""
