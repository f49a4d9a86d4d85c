"""KVM's machines and vCPUs on arm64: the kernel's GIC, PSCI and timers, and virtio-mmio's registers in C.

Registers: Linux, Documentation/virt/kvm/api.rst, KVM_SET_ONE_REG.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crumble_native import kvm
from crumble_native.memory import Memory
from crumble_vmm.hypervisor.base import (
    MessageInterrupt,
    MmioHandler,
    VirtualCPU,
)
from crumble_vmm.hypervisor.kvm import arm64_state
from crumble_vmm.hypervisor.kvm.base import KvmCpu, KvmMachine, failed
from crumble_vmm.hypervisor.kvm.messages import Routes
from crumble_vmm.snapshot.state import foreign

# QEMU's "virt" board has them there. The CPU interface is that of version 2.
GIC_DISTRIBUTOR, GIC_DISTRIBUTOR_SIZE = 0x0800_0000, 0x1_0000
GIC_CPU_INTERFACE, GIC_CPU_INTERFACE_SIZE = 0x0801_0000, 0x2_0000
GIC_ITS, GIC_ITS_SIZE = 0x0808_0000, 0x2_0000
GIC_REDISTRIBUTORS, GIC_REDISTRIBUTOR_SIZE = 0x080A_0000, 0x2_0000
LINES = 63

# KVM_IRQ_LINE: a shared interrupt, by its number in the GIC.
_SHARED, _FIRST_SHARED = 1 << 24, 32
_CORE = 0x6030_0000_0010_0000
_X0, _PC = _CORE, _CORE + 2 * 32
# KVM_REG_ARM_TIMER_CNT: the virtual counter of the whole VM
_COUNTER = 0x6030_0000_0013_DF1A


class Arm64Machine(KvmMachine):
    """One guest."""

    def __init__(self, memory: Memory, cpus: int) -> None:
        super().__init__(memory, kvm.IRQCHIP_NONE)
        self._cpus = cpus
        self._early: dict[int, bool] | None = {}  # lines driven before there is a GIC to take them
        try:
            self.gic_version = self._vm.create_gic(
                GIC_DISTRIBUTOR, GIC_REDISTRIBUTORS, GIC_CPU_INTERFACE, LINES + 1
            )
        except OSError as error:
            self._vm.close()
            raise failed(error) from None
        self._routes = Routes(self._vm, LINES + 1)
        self.has_its = False

    def create_cpu(
        self,
        index: int,
        mmio: MmioHandler,
        console: Callable[[bytes], None],  # noqa: ARG002  there is no firmware
        ports: MmioHandler | None = None,
    ) -> VirtualCPU:
        """vCPU `index`; those after the first wait for CPU_ON. The GIC starts with the last."""
        try:
            vcpu = self._vm.create_vcpu(index)
            vcpu.init_arm(off=index > 0)
            if index == self._cpus - 1:
                self._start_gic()
        except OSError as error:
            raise failed(error) from None
        cpu = Arm64Cpu(vcpu, mmio, ports or mmio)
        self._made.append(cpu)
        return cpu

    def _start_gic(self) -> None:
        self._vm.start_gic()
        early, self._early = self._early or {}, None
        for source, level in early.items():
            self.set_line(source, level)

    def set_line(self, source: int, level: bool) -> None:
        """A shared interrupt of the GIC."""
        if self._early is None:
            self._vm.set_line(_SHARED | _FIRST_SHARED + source, level)
        else:
            self._early[source] = level

    def message_interrupt(self, device: int) -> MessageInterrupt | None:
        """By an ITS, which version 2 has none of."""
        if self.gic_version != 3:
            return None
        if not self.has_its:
            try:
                self._vm.create_its(GIC_ITS)
            except OSError as error:
                raise failed(error) from None
            self.has_its = True
        return self._routes.add(device)

    @property
    def time(self) -> int:
        """The virtual counter."""
        return int.from_bytes(self._counter().get_register(_COUNTER), "little")

    def set_time(self, ticks: int) -> None:
        """The virtual counter goes on from here."""
        self._counter().set_register(_COUNTER, ticks.to_bytes(8, "little"))

    def _counter(self) -> kvm.Vcpu:
        return self._made[0].vcpu

    def get_controller(self) -> bytes:
        """The GIC."""
        return arm64_state.get_gic(self._vm, self._registers())

    def set_controller(self, state: bytes) -> None:
        """As get_controller; UsageError for another version's."""
        found = arm64_state.gic_version(state, LINES + 1, self._cpus)
        if found not in (0, self.gic_version):
            raise foreign(f"its GIC is version {found}, this host's {self.gic_version}")
        arm64_state.set_gic(self._vm, self._registers(), state)

    def _registers(self) -> list[tuple[int, int]]:
        count = LINES + 1
        return arm64_state.gic_registers(self.gic_version, count, self._cpus, its=self.has_its)


class Arm64Cpu(KvmCpu):
    """One vCPU."""

    def set_entry(self, pc: int, arguments: tuple[int, ...]) -> None:
        """arguments: x0 and up (Linux, Documentation/arch/arm64/booting.rst)."""
        for number in range(4):
            value = arguments[number] if number < len(arguments) else 0
            self.vcpu.set_register(_X0 + 2 * number, value.to_bytes(8, "little"))
        self.vcpu.set_register(_PC, pc.to_bytes(8, "little"))

    def pc(self) -> int:
        """PC."""
        return int.from_bytes(self.vcpu.get_register(_PC), "little")

    def get_state(self) -> dict[str, Any]:
        """arm64_state."""
        return arm64_state.get_cpu(self.vcpu)

    def set_state(self, state: dict[str, Any]) -> None:
        """arm64_state."""
        arm64_state.set_cpu(self.vcpu, state)
