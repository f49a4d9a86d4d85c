"""KVM: the CPU's own virtualization, on Linux hosts that have it: x86_64, arm64 and riscv64."""

from __future__ import annotations

import platform
from typing import ClassVar

from crumble_common.hypervisors import Probe
from crumble_common.kvm.probe import probe_kvm
from crumble_native.memory import Memory
from crumble_vmm.hypervisor.base import Hypervisor, VirtualMachine, no_choice


class KvmHypervisor(Hypervisor):
    """The CPU's own virtualization, through /dev/kvm."""

    name: ClassVar[str] = "kvm"

    def probe(self) -> Probe:
        """Measured once a boot of the host."""
        return probe_kvm()

    def create_vm(
        self, memory: Memory, cpus: int, cpu_model: str = "host", irqchip: str = "split"
    ) -> VirtualMachine:
        """A VM of the host's architecture."""
        if irqchip != "split":
            return self._kernel_irqchip(memory, cpus, cpu_model)
        if platform.machine() == "aarch64":
            from crumble_vmm.hypervisor.kvm.arm64 import Arm64Machine

            return Arm64Machine(memory, cpus)
        if platform.machine() == "riscv64":
            from crumble_vmm.hypervisor.kvm.riscv64 import Riscv64Machine

            return Riscv64Machine(memory)
        from crumble_vmm.hypervisor.kvm.machine import X86Machine

        return X86Machine(memory, cpus, cpu_model)

    def _kernel_irqchip(self, memory: Memory, cpus: int, cpu_model: str) -> VirtualMachine:
        if platform.machine() != "x86_64":
            raise no_choice()
        from crumble_vmm.hypervisor.kvm.x86_irqchip import KernelIrqchipMachine

        return KernelIrqchipMachine(memory, cpus, cpu_model)
