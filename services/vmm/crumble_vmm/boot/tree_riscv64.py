"""The device tree of our riscv64 machine (Devicetree Specification v0.4; Linux bindings)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from crumble_vmm.boot.fdt import Node, cells, words
from crumble_vmm.boot.tree import CONTROLLER_PHANDLE, BoardTree

# Of the soft CPU. Linux, Documentation/devicetree/bindings/riscv/cpus.yaml and extensions.yaml.
EXTENSIONS = ("i", "m", "a", "f", "d", "c", "v", "zicbom", "zicbop", "zicboz", "zicntr", "zicond", "zicsr",
              "zifencei", "zihintntl", "zihintpause", "zihpm", "zimop", "zawrs", "zfa", "zfh", "zfhmin",
              "zca", "zcb", "zcd", "zcmop", "zba", "zbb", "zbs",
              "sstc", "svadu", "svinval", "svnapot", "svpbmt", "svvptc")  # fmt: skip
_SUPERVISOR_EXTERNAL = 9


@dataclass(frozen=True)
class Hart:
    """What the tree says of every CPU. timebase: Hz. blocks: bytes of cache operations, by name."""

    timebase: int
    mmu: str
    extensions: tuple[str, ...]
    blocks: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Riscv64Tree(BoardTree):
    """The machine's CPUs and PLIC."""

    hart: Hart
    plic: tuple[int, int]
    plic_sources: int

    def add_cpus(self, cpus: Node) -> None:
        """ISA, and a local interrupt controller each."""
        cpus.set("#address-cells", 1).set("#size-cells", 0)
        cpus.set("timebase-frequency", self.hart.timebase)
        extensions = self.hart.extensions
        letters = "".join(name for name in extensions if len(name) == 1)
        isa = "_".join(["rv64" + letters, *(name for name in extensions if len(name) > 1)])
        for index in range(self.cpus):
            cpu = cpus.add(f"cpu@{index:x}")
            cpu.set("device_type", "cpu").set("compatible", "riscv").set("reg", index)
            cpu.set("status", "okay").set("mmu-type", f"riscv,{self.hart.mmu}")
            cpu.set("riscv,isa", isa).set("riscv,isa-base", "rv64i")
            cpu.set("riscv,isa-extensions", list(extensions))
            for operation, size in self.hart.blocks.items():
                cpu.set(f"riscv,{operation}-block-size", size)
            controller = cpu.add("interrupt-controller")
            controller.set("compatible", "riscv,cpu-intc").set("interrupt-controller")
            controller.set("#interrupt-cells", 1).set("#address-cells", 0)
            controller.set("phandle", _cpu_phandle(index))

    def add_controller(self, soc: Node) -> None:
        """The PLIC."""
        plic = soc.add(f"interrupt-controller@{self.plic[0]:x}")
        plic.set("compatible", ["sifive,plic-1.0.0", "riscv,plic0"])
        plic.set("reg", cells(*self.plic)).set("riscv,ndev", self.plic_sources)
        plic.set("interrupt-controller").set("#interrupt-cells", 1).set("#address-cells", 0)
        contexts = [(_cpu_phandle(index), _SUPERVISOR_EXTERNAL) for index in range(self.cpus)]
        plic.set("interrupts-extended", b"".join(words(*context) for context in contexts))
        plic.set("phandle", CONTROLLER_PHANDLE)

    def interrupt(self, line: int, *, edge: bool) -> bytes:  # noqa: ARG002  a source has no trigger
        """The source."""
        return words(line)


def _cpu_phandle(index: int) -> int:
    return CONTROLLER_PHANDLE + 1 + index
