"""What KVM's machines and vCPUs have in common on all architectures, over `crumble_native.kvm`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from crumble_common.errors import HostError
from crumble_common.kvm.preflight import refused
from crumble_native import kvm
from crumble_native.memory import Memory
from crumble_vmm.hypervisor.base import (
    Exit,
    ExitReason,
    GuestEnds,
    MmioHandler,
    VirtioInterrupt,
    VirtualCPU,
    VirtualMachine,
)
from crumble_vmm.hypervisor.kvm.faults import SYSTEM_EVENTS, fault


class KvmMachine(VirtualMachine):
    """A VM over all of the memory, its doorbells and counters."""

    translates = False

    def __init__(self, memory: Memory, irqchip: int) -> None:
        self._made: list[KvmCpu] = []
        self._bells: dict[tuple[int, int, int], int] = {}
        try:
            self._vm = kvm.Vm(irqchip)
        except kvm.KvmError as error:
            raise refused(error) from None
        memory.flatten()  # what the kernel maps has one layer
        try:
            self._vm.set_memory(memory)
        except OSError as error:
            self._vm.close()
            raise failed(error) from None

    def add_doorbell(self, address: int, size: int, value: int, fd: int) -> None:
        """An ioeventfd."""
        self._vm.doorbell(address, size, value, fd)
        self._bells[address, size, value] = fd

    def remove_doorbell(self, address: int, size: int, value: int) -> None:
        """Undone."""
        fd = self._bells.pop((address, size, value))
        self._vm.doorbell(address, size, value, fd, on=False)

    def virtio_interrupt(self, source: int, status: int, acknowledge: int) -> VirtioInterrupt:
        """Registers in C, edges by the kernel."""
        slot = self._vm.add_slot(status, acknowledge)
        return KvmInterrupt(self._vm, source, slot, lambda: self._pulse(source))

    def _pulse(self, source: int) -> None:
        self.set_line(source, True)
        self.set_line(source, False)

    def settle(self) -> None:
        """What is under way is the kernel's, and each device interrupts once more when it goes on."""

    def counters(self) -> dict[str, int]:
        """Exits by kind, of all vCPUs."""
        total: dict[str, int] = {}
        for cpu in self._made:
            for name, count in cpu.counters().items():
                total[name] = total.get(name, 0) + count
        return total

    def close(self) -> None:
        """Frees the VM."""
        self._vm.close()


class KvmInterrupt(VirtioInterrupt):
    """A virtio slot's line, which takes edges, and its registers in C.

    An eventfd raises the line without us, so bit 0 of InterruptStatus always reads as set, which a driver
    takes as "look at your rings".
    """

    def __init__(self, vm: kvm.Vm, line: int, slot: int, pulse: Callable[[], None]) -> None:
        self._vm, self._line, self._slot = vm, line, slot
        self._pulse = pulse

    def signal(self, bits: int, queue: int = -1) -> None:  # noqa: ARG002  a slot has one line
        self._vm.slot_set(self._slot, bits)
        self._pulse()

    def status(self) -> int:
        return self._vm.slot_set(self._slot, 0) | 1

    def acknowledge(self, bits: int) -> None:
        self._vm.slot_clear(self._slot, bits)

    def add_call_fd(self, fd: int, queue: int = 0) -> None:  # noqa: ARG002  a slot has one line
        self._vm.irqfd(self._line, fd)

    def remove_call_fd(self, fd: int) -> None:
        self._vm.irqfd(self._line, fd, on=False)


class KvmCpu(VirtualCPU):
    """A vCPU and who serves what it accesses."""

    def __init__(self, vcpu: kvm.Vcpu, mmio: MmioHandler, ports: MmioHandler) -> None:
        self.index = vcpu.index
        self.vcpu = vcpu
        self._mmio, self._ports = mmio, ports

    def cancel(self) -> None:
        """Any thread."""
        self.vcpu.cancel()

    def prefault(self, address: int, size: int) -> None:
        """By KVM_PRE_FAULT_MEMORY."""
        self.vcpu.prefault(address, size)

    def counters(self) -> dict[str, int]:
        """Exits by kind."""
        return self.vcpu.counters()

    def run(self) -> Exit:
        """Serves register and port accesses; the rest is for the machine."""
        try:
            return self._serve()
        except GuestEnds as end:
            return end.exit

    def _serve(self) -> Exit:
        vcpu, mmio, ports = self.vcpu, self._mmio, self._ports
        answer = error = 0
        while True:
            stop = vcpu.run(answer, error)
            reason = stop.reason
            if reason == kvm.EXIT_PORT_WRITE:
                ports.write(stop.address, stop.size, stop.data)
            elif reason == kvm.EXIT_PORT_READ:
                answer = ports.read(stop.address, stop.size)
            elif reason == kvm.EXIT_MMIO_READ:
                answer = mmio.read(stop.address, stop.size)
            elif reason == kvm.EXIT_MMIO_WRITE:
                mmio.write(stop.address, stop.size, stop.data)
            elif reason == kvm.EXIT_EOI:
                self.end_of_interrupt(stop.data)
            elif reason == kvm.EXIT_SBI:
                error, answer = self.firmware(stop.sbi)
            else:
                return self._outcome(stop)

    def _outcome(self, stop: kvm.Exit) -> Exit:
        """What an exit means for the machine."""
        if stop.reason == kvm.EXIT_CANCELED:
            return Exit(ExitReason.CANCELED)
        if stop.reason == kvm.EXIT_SYSTEM and stop.data in SYSTEM_EVENTS:
            return SYSTEM_EVENTS[stop.data]
        reason, detail = fault(stop)
        return Exit(reason, f"{detail} {self._where()}")

    def _where(self) -> str:
        try:
            return f"at {self.pc():#x}"
        except OSError:
            return "at an unknown place"

    @abstractmethod
    def pc(self) -> int:
        """The address of the next instruction; OSError."""

    def end_of_interrupt(self, vector: int) -> None:
        """x86: of a level interrupt from the IOAPIC."""

    def firmware(self, registers: tuple[int, ...]) -> tuple[int, int]:
        """riscv64: a call to it with a0 to a7; gives a0 and a1."""
        raise NotImplementedError


def failed(error: OSError) -> HostError:
    """The error for what KVM refuses."""
    return HostError(
        f"KVM cannot make this VM: {error.strerror}.",
        code="vmm.hypervisor",
        hint="Free some memory on this host, or use --hv soft.",
    )
