"""The device tree of our riscv64 machine (Devicetree Specification v0.4; Linux bindings)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crumble_vmm.boot.fdt import Node, cells, flatten, words

# Linux, Documentation/devicetree/bindings/riscv/cpus.yaml and extensions.yaml.
EXTENSIONS = ("i", "m", "a", "f", "d", "c", "v", "zicbom", "zicbop", "zicboz", "zicntr", "zicond", "zicsr",
              "zifencei", "zihintntl", "zihintpause", "zihpm", "zimop", "zawrs", "zfa", "zfh", "zfhmin",
              "zca", "zcb", "zcd", "zcmop", "zba", "zbb", "zbs",
              "sstc", "svadu", "svinval", "svnapot", "svpbmt", "svvptc")  # fmt: skip
_CACHE_BLOCK = 64
_SUPERVISOR_EXTERNAL = 9


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device with registers and one interrupt. properties: beyond those every device has."""

    name: str
    compatible: str
    base: int
    size: int
    interrupt: int
    properties: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class PciNode:
    """A PCI host bridge (bindings/pci/host-generic-pci.yaml). ecam, window: (base, size). lines: INTA of
    devices 1, 2, ...
    """

    ecam: tuple[int, int]
    window: tuple[int, int]
    lines: Sequence[int]


@dataclass(frozen=True, slots=True)
class BoardTree:
    """What the tree says. seed: entropy for the guest's random pool. initrd: (start, end)."""

    cpus: int
    memory: tuple[int, int]
    timebase: int
    mmu: str
    plic: tuple[int, int]
    plic_sources: int
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
        root.set("compatible", "crumble,virt").set("model", "Crumble virtual machine")
        self._chosen(root.add("chosen"))
        self._cpus(root.add("cpus"))
        memory = root.add(f"memory@{self.memory[0]:x}")
        memory.set("device_type", "memory").set("reg", cells(*self.memory))
        soc = root.add("soc")
        soc.set("#address-cells", 2).set("#size-cells", 2)
        soc.set("compatible", "simple-bus").set("ranges")
        self._plic(soc)
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

    def _cpus(self, cpus: Node) -> None:
        cpus.set("#address-cells", 1).set("#size-cells", 0)
        cpus.set("timebase-frequency", self.timebase)
        letters = "".join(name for name in EXTENSIONS if len(name) == 1)
        isa = "_".join(["rv64" + letters, *(name for name in EXTENSIONS if len(name) > 1)])
        for index in range(self.cpus):
            cpu = cpus.add(f"cpu@{index:x}")
            cpu.set("device_type", "cpu").set("compatible", "riscv").set("reg", index)
            cpu.set("status", "okay").set("mmu-type", f"riscv,{self.mmu}")
            cpu.set("riscv,isa", isa).set("riscv,isa-base", "rv64i")
            cpu.set("riscv,isa-extensions", list(EXTENSIONS))
            for operation in ("cbom", "cbop", "cboz"):
                cpu.set(f"riscv,{operation}-block-size", _CACHE_BLOCK)
            controller = cpu.add("interrupt-controller")
            controller.set("compatible", "riscv,cpu-intc").set("interrupt-controller")
            controller.set("#interrupt-cells", 1).set("#address-cells", 0)
            controller.set("phandle", _cpu_phandle(index))

    def _plic(self, soc: Node) -> None:
        plic = soc.add(f"interrupt-controller@{self.plic[0]:x}")
        plic.set("compatible", ["sifive,plic-1.0.0", "riscv,plic0"])
        plic.set("reg", cells(*self.plic)).set("riscv,ndev", self.plic_sources)
        plic.set("interrupt-controller").set("#interrupt-cells", 1).set("#address-cells", 0)
        contexts = [(_cpu_phandle(index), _SUPERVISOR_EXTERNAL) for index in range(self.cpus)]
        plic.set("interrupts-extended", b"".join(words(*context) for context in contexts))
        plic.set("phandle", _PLIC_PHANDLE)

    @staticmethod
    def _device(soc: Node, device: DeviceNode) -> None:
        node = soc.add(f"{device.name}@{device.base:x}")
        node.set("compatible", device.compatible).set("reg", cells(device.base, device.size))
        node.set("interrupt-parent", _PLIC_PHANDLE).set("interrupts", device.interrupt)
        for name, value in device.properties:
            node.set(name, value)

    @staticmethod
    def _pci(soc: Node, pci: PciNode) -> None:
        node = soc.add(f"pci@{pci.ecam[0]:x}")
        node.set("compatible", "pci-host-ecam-generic").set("device_type", "pci")
        node.set("#address-cells", 3).set("#size-cells", 2).set("#interrupt-cells", 1)
        node.set("reg", cells(*pci.ecam)).set("bus-range", words(0, 0))
        node.set("linux,pci-domain", 0).set("dma-coherent")
        base, size = pci.window
        node.set("ranges", words(_PCI_MEMORY_32, 0, base) + cells(base, size))
        node.set("interrupt-map-mask", words(_PCI_DEVICE_MASK, 0, 0, _PCI_PIN_MASK))
        entries = (
            words(number << _PCI_DEVICE_SHIFT, 0, 0, _PCI_INTA, _PLIC_PHANDLE, line)
            for number, line in enumerate(pci.lines, start=1)
        )
        node.set("interrupt-map", b"".join(entries))


# IEEE 1275's PCI addresses: space, device, pin.
_PCI_MEMORY_32, _PCI_DEVICE_SHIFT, _PCI_DEVICE_MASK = 0x0200_0000, 11, 0xF800
_PCI_INTA, _PCI_PIN_MASK = 1, 7
_PLIC_PHANDLE = 1


def _cpu_phandle(index: int) -> int:
    return _PLIC_PHANDLE + 1 + index
