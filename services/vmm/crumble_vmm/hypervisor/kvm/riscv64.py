"""KVM's machines and vCPUs on riscv64: the kernel's timers, IPIs and hart states, our PLIC, in C.

An in-kernel AIA is not used: see docs/testing-kvm.md.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from crumble_native import kvm
from crumble_native.memory import Memory
from crumble_vmm.boot.tree_riscv64 import Hart
from crumble_vmm.hypervisor.base import MmioHandler, VirtioInterrupt, VirtualCPU
from crumble_vmm.hypervisor.kvm import riscv64_state
from crumble_vmm.hypervisor.kvm.base import KvmCpu, KvmMachine, failed
from crumble_vmm.hypervisor.kvm.sbi import Firmware

PLIC_BASE = 0x0C00_0000


class Riscv64Machine(KvmMachine):
    """One guest."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory, kvm.IRQCHIP_NONE)
        self._memory = memory
        try:
            self._vm.create_plic(PLIC_BASE)
        except OSError as error:
            self._vm.close()
            raise failed(error) from None

    def create_cpu(
        self,
        index: int,
        mmio: MmioHandler,
        console: Callable[[bytes], None],
        ports: MmioHandler | None = None,
    ) -> VirtualCPU:
        """vCPU `index`; those after the first wait for the guest to start them (HSM)."""
        try:
            vcpu = self._vm.create_vcpu(index)
        except OSError as error:
            raise failed(error) from None
        # Kernels before 6.6 know neither, and what a guest is told follows.
        for register, on in ((riscv64_state.DEBUG_CONSOLE, 1), (riscv64_state.PERFORMANCE, 0)):
            with suppress(OSError):
                vcpu.set_register(register, on.to_bytes(8, "little"))
        cpu = Riscv64Cpu(vcpu, mmio, ports or mmio, Firmware(self._memory, console), self._vm)
        self._made.append(cpu)
        return cpu

    @property
    def hart(self) -> Hart:
        """What the device tree says of every CPU."""
        vcpu, state = self._made[0].vcpu, riscv64_state
        values = {item: state.number(vcpu.get_register(item)) for item in vcpu.register_list()}
        return Hart(
            values[state.FREQUENCY], state.mmu(values), state.extensions(values), state.blocks(values)
        )  # fmt: skip

    def set_line(self, source: int, level: bool) -> None:
        """A PLIC source."""
        self._vm.set_line(source, level)

    def virtio_interrupt(self, source: int, status: int, acknowledge: int) -> VirtioInterrupt:
        """Served in the run loop."""
        slot = self._vm.add_slot(status, acknowledge)
        self._vm.bind_slot(slot, source)
        return _Interrupt(self._vm, source, slot)

    @property
    def time(self) -> int:
        """`time`, in ticks of the timebase."""
        return riscv64_state.number(self._made[0].vcpu.get_register(riscv64_state.TIME))

    def set_time(self, ticks: int) -> None:
        """`time` goes on from here."""
        riscv64_state.set_time([cpu.vcpu for cpu in self._made], ticks)

    def get_controller(self) -> bytes:
        """The PLIC."""
        return self._vm.get_plic()

    def set_controller(self, state: bytes) -> None:
        """The PLIC."""
        try:
            self._vm.set_plic(state)
        except OSError as error:
            raise ValueError(str(error)) from None


class _Interrupt(VirtioInterrupt):
    """A virtio source of the PLIC."""

    def __init__(self, vm: kvm.Vm, source: int, slot: int) -> None:
        self._vm, self._source, self._slot = vm, source, slot

    def signal(self, bits: int, queue: int = -1) -> None:  # noqa: ARG002  a source is one line
        self._vm.slot_set(self._slot, bits)

    def status(self) -> int:
        return self._vm.slot_set(self._slot, 0)

    def acknowledge(self, bits: int) -> None:
        self._vm.slot_clear(self._slot, bits)

    def add_call_fd(self, fd: int, queue: int = 0) -> None:  # noqa: ARG002  a source is one line
        self._vm.irqfd(self._source, fd)

    def remove_call_fd(self, fd: int) -> None:
        self._vm.irqfd(self._source, fd, on=False)


class Riscv64Cpu(KvmCpu):
    """One vCPU."""

    def __init__(
        self,
        vcpu: kvm.Vcpu,
        mmio: MmioHandler,
        ports: MmioHandler,
        firmware: Firmware,
        vm: kvm.Vm,
    ) -> None:
        super().__init__(vcpu, mmio, ports)
        self._firmware, self._vm = firmware, vm

    def set_entry(self, pc: int, arguments: tuple[int, ...]) -> None:
        """arguments: a0, a1, … (Linux, Documentation/arch/riscv/boot.rst)."""
        for place, value in enumerate(arguments):
            self.vcpu.set_register(riscv64_state.A0 + place, value.to_bytes(8, "little"))
        self.vcpu.set_register(riscv64_state.PC, pc.to_bytes(8, "little"))

    def firmware(self, registers: tuple[int, ...]) -> tuple[int, int]:
        """What KVM does not serve."""
        return self._firmware.call(registers)

    def pc(self) -> int:
        """PC."""
        return riscv64_state.number(self.vcpu.get_register(riscv64_state.PC))

    def get_state(self) -> dict[str, Any]:
        """riscv64_state."""
        return riscv64_state.get_cpu(self.vcpu)

    def set_state(self, state: dict[str, Any]) -> None:
        """riscv64_state; its external interrupt is the PLIC's word."""
        riscv64_state.set_cpu(self.vcpu, state)
        self._vm.redrive_plic(self.index)
