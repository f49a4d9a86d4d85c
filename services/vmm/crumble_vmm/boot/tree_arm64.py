"""The device tree of our arm64 machine (Linux, Documentation/devicetree/bindings)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from crumble_vmm.boot.fdt import Node, cells, words
from crumble_vmm.boot.tree import CONTROLLER_PHANDLE, BoardTree

CLOCK_PHANDLE, MESSAGES_PHANDLE = 2, 3
_CLOCK_HZ = 24_000_000
# interrupt-controller/arm,gic-v3.yaml: kind; flags.
_SHARED, _PRIVATE = 0, 1
_EDGE, _HIGH = 1, 4
# Private interrupts of the generic timer: secure, physical, virtual, hypervisor.
_TIMERS = (13, 14, 11, 10)


def mpidr(index: int) -> int:
    """The affinity KVM gives vCPU `index`: sixteen to a cluster."""
    return index & 0xF | index >> 4 << 8


@dataclass(frozen=True, kw_only=True)
class Arm64Tree(BoardTree):
    """The machine's CPUs, PSCI, timer and GIC.

    gic: version; distributor and the other part, (base, size). its: what takes messages.
    """

    compatible: ClassVar[str] = "linux,dummy-virt"

    gic_version: int
    gic: tuple[tuple[int, int], tuple[int, int]]
    its: tuple[int, int] | None = None

    def add_cpus(self, cpus: Node) -> None:
        """Numbers, and PSCI to start them."""
        cpus.set("#address-cells", 1).set("#size-cells", 0)
        for index in range(self.cpus):
            cpu = cpus.add(f"cpu@{mpidr(index):x}")
            cpu.set("device_type", "cpu").set("compatible", "arm,armv8").set("reg", mpidr(index))
            cpu.set("enable-method", "psci")

    def add_platform(self, root: Node) -> None:
        """PSCI, the timer, and the clock that PrimeCells insist on."""
        psci = root.add("psci")
        psci.set("compatible", ["arm,psci-1.0", "arm,psci-0.2"]).set("method", "hvc")
        timer = root.add("timer")
        timer.set("compatible", "arm,armv8-timer").set("always-on")
        timer.set("interrupt-parent", CONTROLLER_PHANDLE)
        interrupts = b"".join(words(_PRIVATE, number, _HIGH) for number in _TIMERS)
        timer.set("interrupts", interrupts)
        clock = root.add("clock")
        clock.set("compatible", "fixed-clock").set("clock-frequency", _CLOCK_HZ)
        clock.set("#clock-cells", 0).set("phandle", CLOCK_PHANDLE)

    def add_controller(self, soc: Node) -> None:
        """The GIC."""
        gic = soc.add(f"interrupt-controller@{self.gic[0][0]:x}")
        name = "arm,gic-v3" if self.gic_version == 3 else "arm,cortex-a15-gic"
        gic.set("compatible", name).set("reg", cells(*self.gic[0], *self.gic[1]))
        gic.set("interrupt-controller").set("#interrupt-cells", 3).set("#address-cells", 0)
        gic.set("phandle", CONTROLLER_PHANDLE)
        if self.its is not None:
            its = soc.add(f"msi-controller@{self.its[0]:x}")
            its.set("compatible", "arm,gic-v3-its").set("reg", cells(*self.its))
            its.set("msi-controller").set("#msi-cells", 1).set("phandle", MESSAGES_PHANDLE)

    def messages(self) -> int | None:
        """The ITS."""
        return MESSAGES_PHANDLE if self.its is not None else None

    def interrupt(self, line: int, *, edge: bool) -> bytes:
        """A shared one."""
        return words(_SHARED, line, _EDGE if edge else _HIGH)
