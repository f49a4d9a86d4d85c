"""Hypervisor, VirtualMachine and VirtualCPU over `crumble_native.rv64`.

Doorbells, virtio interrupts, the PLIC, the timer and SBI are served in C with the GIL released; a
vCPU's thread comes here for device registers and for what ends or stops a hart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from crumble_common.errors import HostError, UsageError
from crumble_common.hypervisors import Probe
from crumble_common.wire import WireError, validate
from crumble_native import rv64
from crumble_native.memory import Memory
from crumble_vmm.hypervisor.base import (
    Exit,
    ExitReason,
    GuestEnds,
    Hypervisor,
    MmioHandler,
    VirtioInterrupt,
    VirtualCPU,
    VirtualMachine,
    no_choice,
)

# SBI v2.0, chapter 10 (SRST): reset types and reasons.
_SHUTDOWN = 0
_RESET_TYPES = {0: "shutdown", 1: "cold reboot", 2: "warm reboot"}
_SYSTEM_FAILURE = 1
# DBCN: the most a guest prints by one call that is taken at once; it goes on with the rest.
_MAX_PRINT = 4096

_TRANSLATORS = {
    rv64.TRANSLATOR_ON: "translates hot code",
    rv64.TRANSLATOR_OFF: "only interprets, as CRUMBLE_SOFT_JIT=0 asks for",
    rv64.TRANSLATOR_CPU: "only interprets: it translates on x86-64 CPUs with AVX2, BMI and FMA",
    rv64.TRANSLATOR_FORBIDDEN: "only interprets, up to 25 times slower: this host forbids executable memory",
}


class SoftHypervisor(Hypervisor):
    """The back end that works everywhere. deterministic: of its machines (native/src/rv64/README.md)."""

    name: ClassVar[str] = "soft"

    def __init__(self, *, deterministic: bool = False) -> None:
        self._deterministic = deterministic

    def probe(self) -> Probe:
        """Always usable: the CPU is ours."""
        reason = f"Crumble's own RISC-V CPU; {_TRANSLATORS[rv64.translator_state()]}."
        return Probe("soft", True, True, reason, ("riscv64",))

    def create_vm(
        self, memory: Memory, cpus: int, cpu_model: str = "host", irqchip: str = "split"
    ) -> VirtualMachine:
        """A machine with `cpus` harts, all of the one model."""
        if irqchip != "split":
            raise no_choice()
        if cpu_model != "host":
            raise UsageError(
                f"The soft back end's CPU is not {cpu_model}.",
                code="vmm.cpu_model",
                hint="CPU models are for KVM: use --hv kvm, or leave --cpu-model away.",
            )
        return SoftMachine(memory, cpus, self._deterministic)


class SoftMachine(VirtualMachine):
    """One guest: harts and PLIC in C."""

    def __init__(self, memory: Memory, cpus: int, deterministic: bool) -> None:
        self._memory = memory
        self._cpus = cpus
        try:
            self._machine = rv64.Machine(memory, cpus, deterministic=deterministic)
        except OSError as error:
            raise HostError(
                f"Cannot create a virtual machine: {error.strerror}.",
                code="vmm.memory",
                hint="Free some memory on this host.",
            ) from None

    def create_cpu(
        self,
        index: int,
        mmio: MmioHandler,
        console: Callable[[bytes], None],
        ports: MmioHandler | None = None,  # noqa: ARG002  RISC-V has none
    ) -> VirtualCPU:
        """Hart `index`; those after the first wait for the guest to start them (HSM)."""
        return SoftCpu(self._machine.hart(index), self._memory, mmio, console)

    def set_line(self, source: int, level: bool) -> None:
        """A PLIC source."""
        self._machine.set_line(source, level)

    def virtio_interrupt(self, source: int, status: int, acknowledge: int) -> VirtioInterrupt:
        """Served in the run loop."""
        self._machine.add_virtio_irq(source, status, acknowledge)
        return _Interrupt(self._machine, source)

    def add_doorbell(self, address: int, size: int, value: int, fd: int) -> None:
        """Rung in the run loop."""
        self._machine.add_doorbell(address, size, fd, value)

    def remove_doorbell(self, address: int, size: int, value: int) -> None:  # noqa: ARG002  the rest says which
        """Undone in the run loop."""
        self._machine.remove_doorbell(address, value)

    @property
    def time(self) -> int:
        """`time` in ticks of the timebase."""
        return self._machine.time

    def set_time(self, ticks: int) -> None:
        """`time` goes on from here."""
        self._machine.time = ticks

    def settle(self) -> None:
        """Call eventfds, and the write TLBs."""
        self._machine.settle()

    def get_controller(self) -> bytes:
        """The PLIC."""
        return self._machine.get_plic()

    def set_controller(self, state: bytes) -> None:
        """The PLIC."""
        self._machine.set_plic(state)

    def counters(self) -> dict[str, int]:
        """Sums over all harts."""
        total: dict[str, int] = {}
        for index in range(self._cpus):
            for name, count in self._machine.hart(index).counters().items():
                total[name] = total.get(name, 0) + count
        return total

    def close(self) -> None:
        """Frees the harts."""
        self._machine.close()


class _Interrupt(VirtioInterrupt):
    """A virtio source of the PLIC."""

    def __init__(self, machine: rv64.Machine, source: int) -> None:
        self._machine = machine
        self._source = source

    def signal(self, bits: int, queue: int = -1) -> None:  # noqa: ARG002  a source is one line
        self._machine.virtio_raise(self._source, bits)

    def status(self) -> int:
        return self._machine.virtio_status(self._source)

    def acknowledge(self, bits: int) -> None:
        self._machine.virtio_acknowledge(self._source, bits)

    def add_call_fd(self, fd: int, queue: int = 0) -> None:  # noqa: ARG002  a source is one line
        self._machine.add_call_fd(self._source, fd)

    def remove_call_fd(self, fd: int) -> None:
        self._machine.remove_call_fd(self._source, fd)


class SoftCpu(VirtualCPU):
    """One hart."""

    def __init__(
        self,
        hart: rv64.Hart,
        memory: Memory,
        mmio: MmioHandler,
        console: Callable[[bytes], None],
    ) -> None:
        self.index = hart.index
        self._hart = hart
        self._memory = memory
        self._mmio = mmio
        self._console = console

    def set_entry(self, pc: int, arguments: tuple[int, ...]) -> None:
        """arguments: a0, a1, … (Linux, Documentation/arch/riscv/boot.rst)."""
        state = self._hart.get_state()
        registers = list(state.x)
        registers[10 : 10 + len(arguments)] = arguments
        self._hart.set_state(dataclasses.replace(state, pc=pc, x=registers, hsm=0))

    def cancel(self) -> None:
        """Any thread, also from a signal handler."""
        self._hart.cancel()

    def debug_hart(self) -> rv64.Hart:
        """For debuggers and lockstep."""
        return self._hart

    def get_state(self) -> dict[str, Any]:
        """rv64.HartState."""
        return dataclasses.asdict(self._hart.get_state())

    def set_state(self, state: dict[str, Any]) -> None:
        """rv64.HartState."""
        try:
            self._hart.set_state(validate(rv64.HartState, state, "hart"))
        except WireError as error:
            raise ValueError(str(error)) from None

    def run(self) -> Exit:
        """Serves register accesses and DBCN; the rest is for the machine."""
        try:
            return self._serve()
        except GuestEnds as end:
            return end.exit

    def _serve(self) -> Exit:
        hart, mmio = self._hart, self._mmio
        answer = 0
        while True:
            stop = hart.run(answer)
            reason = stop.reason
            if reason == rv64.EXIT_MMIO_READ:
                answer = mmio.read(stop.gpa, stop.size)
            elif reason == rv64.EXIT_MMIO_WRITE:
                mmio.write(stop.gpa, stop.size, stop.data)
            elif reason == rv64.EXIT_CONSOLE:
                answer = self._print(stop.gpa, stop.size)
            else:
                return _outcome(stop)

    def _print(self, gpa: int, size: int) -> int:
        size = min(size, _MAX_PRINT)
        if size and self._memory.has(gpa, size):
            self._console(self._memory.read(gpa, size))
        return size


def _outcome(stop: rv64.Exit) -> Exit:
    """What a hart's exit means for the machine."""
    if stop.reason == rv64.EXIT_CANCELED:
        return Exit(ExitReason.CANCELED)
    if stop.reason == rv64.EXIT_DEBUG:
        return Exit(ExitReason.DEBUG, debug=(stop.data, stop.extra))
    if stop.reason == rv64.EXIT_MEET:
        return Exit(ExitReason.MEET, met=(stop.extra, bool(stop.data)))
    if stop.reason == rv64.EXIT_STOPPED:
        return Exit(ExitReason.HALT)
    if stop.reason == rv64.EXIT_RESET:
        failed = " after a system failure" if stop.extra == _SYSTEM_FAILURE else ""
        detail = _RESET_TYPES.get(stop.data, f"reset of type {stop.data:#x}") + failed
        return Exit(ExitReason.POWER_OFF if stop.data == _SHUTDOWN else ExitReason.RESET, detail)
    detail = f"trap {stop.data:#x} (value {stop.extra:#x}) inside the trap vector"
    return Exit(ExitReason.CRASH, detail)
