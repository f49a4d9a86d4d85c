"""x86_64 with all of its interrupt controllers in the kernel: as an option, since what a guest writes to the
IOAPIC is then parsed by the host's kernel. There is no PIT, and nobody looks at the PIC.
"""

from __future__ import annotations

from crumble_native import kvm
from crumble_native.memory import Memory
from crumble_vmm.chipset import ioapic
from crumble_vmm.hypervisor.base import MmioHandler, VirtioInterrupt
from crumble_vmm.hypervisor.kvm.base import KvmMachine
from crumble_vmm.hypervisor.kvm.machine import X86Machine
from crumble_vmm.hypervisor.kvm.messages import Routes


class KernelIrqchipMachine(X86Machine):
    """One guest."""

    irqchip = kvm.IRQCHIP_KERNEL

    def __init__(self, memory: Memory, cpus: int, cpu_model: str = "host") -> None:
        super().__init__(memory, cpus, cpu_model)
        self._routes = Routes(self._vm, ioapic.PINS)

    def on_bus(self, bus: MmioHandler) -> MmioHandler:
        """Nothing of ours."""
        return bus

    def set_line(self, source: int, level: bool) -> None:
        """A pin of the kernel's IOAPIC."""
        self._vm.set_line(source, level)

    def virtio_interrupt(self, source: int, status: int, acknowledge: int) -> VirtioInterrupt:
        """As where no part of the controller is ours."""
        return KvmMachine.virtio_interrupt(self, source, status, acknowledge)

    def get_controller(self) -> bytes:
        """PICs and IOAPIC."""
        return self._vm.get_irqchip()

    def set_controller(self, state: bytes) -> None:
        """As get_controller; ValueError."""
        try:
            self._vm.set_irqchip(state)
        except OSError as error:
            raise ValueError(f"the interrupt controllers: {error}") from None
