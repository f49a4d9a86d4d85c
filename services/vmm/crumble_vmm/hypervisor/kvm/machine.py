"""Hypervisor, VirtualMachine and VirtualCPU over `crumble_native.kvm`, for x86_64.

LAPICs are the kernel's, the IOAPIC is ours: what its pins send is the kernel's routing table. A virtio
slot's interrupt is an edge of its pin, so an eventfd can raise it without us; bit 0 of its InterruptStatus
therefore always reads as set, which a driver takes as "look at your rings".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from crumble_common.errors import HostError
from crumble_common.hypervisors import Probe
from crumble_common.kvm.preflight import refused
from crumble_common.kvm.probe import probe_kvm
from crumble_native import kvm
from crumble_native.memory import Memory
from crumble_vmm.chipset import ioapic
from crumble_vmm.chipset.ioapic import Ioapic
from crumble_vmm.hypervisor.base import (
    Exit,
    ExitReason,
    GuestEnds,
    Hypervisor,
    MessageInterrupt,
    MmioHandler,
    VirtioInterrupt,
    VirtualCPU,
    VirtualMachine,
)
from crumble_vmm.hypervisor.kvm import cpuid, x86, x86_state

IOAPIC_BASE = 0xFEC0_0000
_CAP_TSC_DEADLINE_TIMER = 72
# KVM_SYSTEM_EVENT_*
_SYSTEM_EVENTS = {1: ExitReason.POWER_OFF, 2: ExitReason.RESET, 3: ExitReason.CRASH}


class KvmHypervisor(Hypervisor):
    """The CPU's own virtualization, through /dev/kvm."""

    name: ClassVar[str] = "kvm"

    def probe(self) -> Probe:
        """Measured once a boot of the host."""
        return probe_kvm()

    def create_vm(self, memory: Memory, cpus: int, cpu_model: str = "host") -> VirtualMachine:
        """A VM with the kernel's LAPICs and our IOAPIC."""
        return KvmMachine(memory, cpus, cpu_model)


class KvmMachine(VirtualMachine):
    """One guest."""

    translates = False

    def __init__(self, memory: Memory, cpus: int, cpu_model: str = "host") -> None:
        self._cpus, self._model = cpus, cpu_model
        self._made: list[KvmCpu] = []
        self._bells: dict[tuple[int, int, int], int] = {}
        try:
            self._vm = kvm.Vm(kvm.IRQCHIP_SPLIT)
        except kvm.KvmError as error:
            raise refused(error) from None
        memory.flatten()  # what the kernel maps has one layer
        try:
            self._vm.set_memory(memory)
        except OSError as error:
            self._vm.close()
            raise _failed(error) from None
        self._routes = [ioapic.NONE] * ioapic.PINS
        self._fds: list[int] = [0] * ioapic.PINS  # call fds of each pin
        self._ioapic = Ioapic(lambda message: self._vm.signal_msi(*message), self._route)
        self._cpuid = cpuid.unpack(self._vm.supported_cpuid())
        try:
            cpuid.check_model(cpu_model, self._cpuid)
        except HostError:
            self._vm.close()
            raise
        self._msrs = self._vm.msr_list()
        self._deadline = bool(self._vm.capability(_CAP_TSC_DEADLINE_TIMER))

    def _route(self, pin: int, message: ioapic.Message) -> None:
        """The kernel sends it for call fds; one that rang while there was no message is made up for."""
        unmasked = self._routes[pin] == ioapic.NONE != message
        self._routes[pin] = message
        self._vm.set_msi_routes(self._routes)
        if unmasked and self._fds[pin]:
            self._vm.signal_msi(*message)

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
            cpu = KvmCpu(vcpu, _WithIoapic(self._ioapic, mmio), ports or mmio, self._ioapic)
            cpu.identify(table, self._cpuid, self._msrs)
        except OSError as error:
            raise _failed(error) from None
        self._made.append(cpu)
        return cpu

    def set_line(self, source: int, level: bool) -> None:
        """A pin of the IOAPIC."""
        self._ioapic.set_line(source, level)

    def virtio_interrupt(self, source: int, status: int, acknowledge: int) -> VirtioInterrupt:
        """Registers in C, edges by the kernel."""
        slot = self._vm.add_slot(status, acknowledge)
        return _Interrupt(self._vm, self._ioapic, self._fds, source, slot)

    def message_interrupt(self) -> MessageInterrupt:
        """The numbers after the IOAPIC's pins."""
        self._routes.append(ioapic.NONE)
        self._fds.append(0)
        return _Message(self._vm, self._fds, self._route, len(self._routes) - 1)

    def add_doorbell(self, address: int, size: int, value: int, fd: int) -> None:
        """An ioeventfd."""
        self._vm.doorbell(address, size, value, fd)
        self._bells[address, size, value] = fd

    def remove_doorbell(self, address: int, size: int, value: int) -> None:
        """Undone."""
        fd = self._bells.pop((address, size, value))
        self._vm.doorbell(address, size, value, fd, on=False)

    @property
    def time(self) -> int:
        """The kvmclock, ns."""
        return self._vm.clock

    def set_time(self, ticks: int) -> None:
        """The kvmclock goes on from here; the TSC never stood."""
        self._vm.clock = ticks

    def settle(self) -> None:
        """What is under way is the kernel's, and each device interrupts once more when it goes on."""

    def get_controller(self) -> bytes:
        """The IOAPIC; LAPICs are their vCPUs'."""
        return self._ioapic.get_state()

    def set_controller(self, state: bytes) -> None:
        """The IOAPIC, and what its pins send."""
        self._ioapic.set_state(state)

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


class _Interrupt(VirtioInterrupt):
    """A virtio slot's pin and registers. fds: how many call fds each pin has."""

    def __init__(self, vm: kvm.Vm, controller: Ioapic, fds: list[int], pin: int, slot: int) -> None:
        self._vm, self._ioapic, self._fds = vm, controller, fds
        self._pin, self._slot = pin, slot

    def signal(self, bits: int, queue: int = -1) -> None:  # noqa: ARG002
        self._vm.slot_set(self._slot, bits)
        self._ioapic.pulse(self._pin)

    def status(self) -> int:
        return self._vm.slot_set(self._slot, 0) | 1

    def acknowledge(self, bits: int) -> None:
        self._vm.slot_clear(self._slot, bits)

    def add_call_fd(self, fd: int, queue: int = 0) -> None:  # noqa: ARG002
        self._vm.irqfd(self._pin, fd)
        self._fds[self._pin] += 1

    def remove_call_fd(self, fd: int) -> None:
        self._vm.irqfd(self._pin, fd, on=False)
        self._fds[self._pin] -= 1


class _Message(MessageInterrupt):
    """An entry of the kernel's routing table. fds: how many call fds each has."""

    def __init__(
        self, vm: kvm.Vm, fds: list[int], route: Callable[[int, ioapic.Message], None], gsi: int
    ) -> None:
        self._vm, self._fds, self._change, self._gsi = vm, fds, route, gsi
        self._message = ioapic.NONE

    def route(self, address: int, data: int) -> None:
        if (address, data) != self._message:
            self._message = address, data
            self._change(self._gsi, self._message)

    def send(self) -> None:
        if self._message != ioapic.NONE:
            self._vm.signal_msi(*self._message)

    def add_call_fd(self, fd: int) -> None:
        self._vm.irqfd(self._gsi, fd)
        self._fds[self._gsi] += 1

    def remove_call_fd(self, fd: int) -> None:
        self._vm.irqfd(self._gsi, fd, on=False)
        self._fds[self._gsi] -= 1


class KvmCpu(VirtualCPU):
    """One vCPU."""

    def __init__(
        self, vcpu: kvm.Vcpu, mmio: MmioHandler, ports: MmioHandler, controller: Ioapic
    ) -> None:
        self.index = vcpu.index
        self._vcpu = vcpu
        self._ioapic = controller
        self._mmio, self._ports = mmio, ports

    def set_entry(self, pc: int, arguments: tuple[int, ...]) -> None:
        """arguments: boot_params, page tables, GDT (boot protocol, 64-bit)."""
        boot_params, page_table, gdt = arguments
        regs, sregs = x86.kernel_entry(self._vcpu.get(kvm.SREGS), pc, boot_params, page_table, gdt)
        self._vcpu.set(kvm.SREGS, sregs)
        self._vcpu.set(kvm.REGS, regs)
        self._vcpu.set_msrs(x86.boot_msrs())

    def cancel(self) -> None:
        """Any thread."""
        self._vcpu.cancel()

    def counters(self) -> dict[str, int]:
        """Exits by kind."""
        return self._vcpu.counters()

    def identify(
        self, table: list[cpuid.CpuidEntry], supported: list[cpuid.CpuidEntry], msrs: list[int]
    ) -> None:
        """What CPUID tells the guest, of what it could; MSRs there may be."""
        self._table, self._supported, self._msrs = cpuid.pack(table), supported, msrs
        self._vcpu.set_cpuid(self._table)

    def get_state(self) -> dict[str, Any]:
        """x86_state."""
        return x86_state.get_state(self._vcpu, self._msrs, self._table)

    def set_state(self, state: dict[str, Any]) -> None:
        """x86_state."""
        x86_state.set_state(self._vcpu, state, self._supported, self._table)
        self._table = state["cpuid"]

    def run(self) -> Exit:
        """Serves register and port accesses; the rest is for the machine."""
        try:
            return self._serve()
        except GuestEnds as end:
            return end.exit

    def _serve(self) -> Exit:
        vcpu, mmio, ports = self._vcpu, self._mmio, self._ports
        answer = 0
        while True:
            stop = vcpu.run(answer)
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
                self._ioapic.end_of_interrupt(stop.data)
            else:
                return self._outcome(stop)

    def _outcome(self, stop: kvm.Exit) -> Exit:
        """What an exit means for the machine."""
        match stop.reason:
            case kvm.EXIT_CANCELED:
                return Exit(ExitReason.CANCELED)
            case kvm.EXIT_SHUTDOWN:
                return Exit(ExitReason.TRIPLE_FAULT, f"triple fault {self._where()}")
            case kvm.EXIT_SYSTEM if stop.data in _SYSTEM_EVENTS:
                return Exit(_SYSTEM_EVENTS[stop.data], "reset")
            case kvm.EXIT_EMULATION:
                code = stop.instruction.hex(" ") or "unknown"
                detail = f"KVM cannot emulate an instruction ({code})"
            case kvm.EXIT_INTERNAL:
                detail = f"KVM failed (internal error {stop.data})"
            case kvm.EXIT_ENTRY:
                detail = f"the CPU refuses the guest's state (reason {stop.data:#x})"
            case kvm.EXIT_MEMORY:
                detail = "the memory behind the guest's is gone"
            case kvm.EXIT_HALT:
                detail = "it halted, and nothing can wake it"
            case _:
                detail = f"KVM stopped it for reason {stop.data}"
        return Exit(ExitReason.CRASH, f"{detail} {self._where()}")

    def _where(self) -> str:
        try:
            registers = x86.REGS.unpack(self._vcpu.get(kvm.REGS))
        except OSError:
            return "at an unknown place"
        return f"at {registers[x86.RIP]:#x}"


def _failed(error: OSError) -> HostError:
    return HostError(
        f"KVM cannot make this VM: {error.strerror}.",
        code="vmm.hypervisor",
        hint="Free some memory on this host, or use --hv soft.",
    )
