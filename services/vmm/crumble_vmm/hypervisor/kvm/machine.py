"""KVM's machines and vCPUs on x86_64.

LAPICs are the kernel's, the IOAPIC is ours: what its pins send is the kernel's routing table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from crumble_common.errors import HostError
from crumble_native import kvm
from crumble_native.memory import Memory
from crumble_vmm.chipset import ioapic
from crumble_vmm.chipset.ioapic import Ioapic
from crumble_vmm.hypervisor.base import (
    MessageInterrupt,
    MmioHandler,
    VirtioInterrupt,
    VirtualCPU,
)
from crumble_vmm.hypervisor.kvm import cpuid, x86, x86_state
from crumble_vmm.hypervisor.kvm.base import KvmCpu, KvmInterrupt, KvmMachine, failed
from crumble_vmm.hypervisor.kvm.messages import Routes

IOAPIC_BASE = 0xFEC0_0000
_CAP_TSC_DEADLINE_TIMER = 72


class X86Machine(KvmMachine):
    """One guest."""

    irqchip: ClassVar[int] = kvm.IRQCHIP_SPLIT

    def __init__(self, memory: Memory, cpus: int, cpu_model: str = "host") -> None:
        super().__init__(memory, self.irqchip)
        self._cpus, self._model = cpus, cpu_model
        self._routes = Routes(self._vm, 0, ioapic.PINS)
        self._ioapic = Ioapic(self._routes.send, self._routes.set)
        self._cpuid = cpuid.unpack(self._vm.supported_cpuid())
        try:
            cpuid.check_model(cpu_model, self._cpuid)
        except HostError:
            self._vm.close()
            raise
        self._msrs = self._vm.msr_list()
        self._deadline = bool(self._vm.capability(_CAP_TSC_DEADLINE_TIMER))

    def create_cpu(
        self,
        index: int,
        mmio: MmioHandler,
        console: Callable[[bytes], None],  # noqa: ARG002  there is no firmware
        ports: MmioHandler | None = None,
    ) -> VirtualCPU:
        """vCPU `index`; those after the first wait for INIT and SIPI."""
        try:
            vcpu = self._vm.create_vcpu(index)
            table = cpuid.guest_table(
                self._cpuid, index, self._cpus, deadline=self._deadline, model=self._model
            )
            cpu = X86Cpu(vcpu, self.on_bus(mmio), ports or mmio, self._ioapic)
            cpu.identify(table, self._cpuid, self._msrs)
        except OSError as error:
            raise failed(error) from None
        self._made.append(cpu)
        return cpu

    def on_bus(self, bus: MmioHandler) -> MmioHandler:
        """What vCPUs reach: the IOAPIC beside what the machine has."""
        return _WithIoapic(self._ioapic, bus)

    def set_line(self, source: int, level: bool) -> None:
        """A pin of the IOAPIC."""
        self._ioapic.set_line(source, level)

    def virtio_interrupt(self, source: int, status: int, acknowledge: int) -> VirtioInterrupt:
        """Registers in C, edges by the kernel."""
        slot = self._vm.add_slot(status, acknowledge)
        return _Interrupt(self._vm, self._ioapic, self._routes, source, slot)

    def message_interrupt(self, device: int) -> MessageInterrupt:  # noqa: ARG002  no LAPIC asks
        """The numbers after the IOAPIC's pins."""
        return self._routes.add()

    @property
    def time(self) -> int:
        """The kvmclock, ns."""
        return self._vm.clock

    def set_time(self, ticks: int) -> None:
        """The kvmclock goes on from here; the TSC never stood."""
        self._vm.clock = ticks

    def get_controller(self) -> bytes:
        """The IOAPIC; LAPICs are their vCPUs'."""
        return self._ioapic.get_state()

    def set_controller(self, state: bytes) -> None:
        """The IOAPIC, and what its pins send."""
        self._ioapic.set_state(state)


class _WithIoapic:
    """The bus, with the IOAPIC on it."""

    def __init__(self, controller: Ioapic, bus: MmioHandler) -> None:
        self._ioapic, self._bus = controller, bus

    def read(self, address: int, size: int) -> int:
        offset = address - IOAPIC_BASE
        if 0 <= offset < ioapic.SIZE:
            return self._ioapic.mmio_read(offset, size)
        return self._bus.read(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        offset = address - IOAPIC_BASE
        if 0 <= offset < ioapic.SIZE:
            self._ioapic.mmio_write(offset, size, value)
        else:
            self._bus.write(address, size, value)


class _Interrupt(KvmInterrupt):
    """A virtio slot's pin."""

    def __init__(self, vm: kvm.Vm, controller: Ioapic, routes: Routes, pin: int, slot: int) -> None:
        super().__init__(vm, pin, slot, lambda: controller.pulse(pin))
        self._routes = routes

    def add_call_fd(self, fd: int, queue: int = 0) -> None:  # noqa: ARG002  a slot has one line
        self._routes.irqfd(self._line, fd, on=True)

    def remove_call_fd(self, fd: int) -> None:
        self._routes.irqfd(self._line, fd, on=False)


class X86Cpu(KvmCpu):
    """One vCPU."""

    def __init__(
        self, vcpu: kvm.Vcpu, mmio: MmioHandler, ports: MmioHandler, controller: Ioapic
    ) -> None:
        super().__init__(vcpu, mmio, ports)
        self._ioapic = controller

    def set_entry(self, pc: int, arguments: tuple[int, ...]) -> None:
        """arguments: boot_params, page tables, GDT (boot protocol, 64-bit); or the start info alone (PVH)."""
        enter = x86.kernel_entry if len(arguments) == 3 else x86.pvh_entry
        regs, sregs = enter(self.vcpu.get(kvm.SREGS), pc, *arguments)
        self.vcpu.set(kvm.SREGS, sregs)
        self.vcpu.set(kvm.REGS, regs)

    def identify(
        self, table: list[cpuid.CpuidEntry], supported: list[cpuid.CpuidEntry], msrs: list[int]
    ) -> None:
        """What CPUID tells the guest, of what it could; MSRs there may be, and those that firmware sets in each."""
        self._table, self._supported, self._msrs = cpuid.pack(table), supported, msrs
        self.vcpu.set_cpuid(self._table)
        self.vcpu.set_msrs(x86.boot_msrs())

    def get_state(self) -> dict[str, Any]:
        """x86_state."""
        return x86_state.get_state(self.vcpu, self._msrs, self._table)

    def set_state(self, state: dict[str, Any]) -> None:
        """x86_state."""
        x86_state.set_state(self.vcpu, state, self._supported, self._table)
        self._table = state["cpuid"]

    def pc(self) -> int:
        """RIP."""
        return int(x86.REGS.unpack(self.vcpu.get(kvm.REGS))[x86.RIP])

    def end_of_interrupt(self, vector: int) -> None:
        """The IOAPIC looks at its lines."""
        self._ioapic.end_of_interrupt(vector)
