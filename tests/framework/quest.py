"""Tiny guests for conformance tests of the hypervisor layer, the same for every back end.

    quest = Quest(SOFT)
    guest = quest.guest().write(MMIO, 4, 7).end()
    quest.run(guest)
    assert quest.accesses == [Access("write", MMIO, 4, 7)]

What guests can do is in quest_guests.py.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import pytest

from crumble_native.memory import STATE_HEADER_SIZE, Memory
from crumble_vmm.boards.riscv64 import SOFT_HART
from crumble_vmm.boot.kernel_x86 import page_tables
from crumble_vmm.hypervisor.base import Exit, ExitReason, GuestEnds, VirtualCPU, VirtualMachine
from crumble_vmm.hypervisor.kvm.x86 import GDT
from crumble_vmm.hypervisor.soft import SoftHypervisor
from framework.quest_guests import CODE, END, RESULTS, Arm64Guest, Guest, RiscvGuest, X86Guest

RAM_SIZE = 8 << 20
# CRB_PAGE_DIRTY
PAGE_DIRTY = 0x10
# Within so long anything happens that is to happen at all, s.
SOON = 20.0
DONE = Exit(ExitReason.POWER_OFF, "end")


@dataclass(frozen=True)
class Access:
    """One that came to the bus."""

    kind: str
    address: int
    size: int
    value: int = 0


@dataclass(frozen=True)
class Backend:
    """What tests are run on. line: an input that works alone."""

    name: str
    ram: int
    guest: type[Guest]
    create: Callable[[Memory, int], VirtualMachine]
    line: int


def _kvm(memory: Memory, cpus: int, irqchip: str = "split") -> VirtualMachine:
    from crumble_vmm.hypervisor.kvm import KvmHypervisor

    if os.uname().machine not in _KVM or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("this host has no /dev/kvm that this user may use, or no KVM back end")
    return KvmHypervisor().create_vm(memory, cpus, irqchip=irqchip)


def _kernel_irqchip(memory: Memory, cpus: int) -> VirtualMachine:
    if os.uname().machine != "x86_64":
        pytest.skip("only x86_64 has a choice of interrupt controllers")
    return _kvm(memory, cpus, "kernel")


SOFT = Backend("soft", 0x8000_0000, RiscvGuest, SoftHypervisor().create_vm, 5)
_KVM: dict[str, tuple[int, type[Guest]]] = {
    "x86_64": (0, X86Guest),
    "aarch64": (0x4000_0000, Arm64Guest),
    "riscv64": (0x8000_0000, RiscvGuest),
}
KVM = Backend("kvm", *_KVM.get(os.uname().machine, (0, X86Guest)), _kvm, 17)
KERNEL_IRQCHIP = Backend("kvm-irqchip", 0, X86Guest, _kernel_irqchip, 17)
BACKENDS = (SOFT, KVM, KERNEL_IRQCHIP)


class Quest:
    """A machine of one back end, with RAM and a bus that writes down what comes."""

    def __init__(self, backend: Backend, cpus: int = 1) -> None:
        self.backend = backend
        self.accesses: list[Access] = []
        self.ports: list[Access] = []
        self.answers: dict[int, int] = {}
        self.mapping = mmap.mmap(-1, RAM_SIZE)
        self._state = mmap.mmap(-1, STATE_HEADER_SIZE + (RAM_SIZE >> 12))
        self.memory = Memory(self._state)
        self.memory.add(backend.ram, self.mapping)
        self.vm = backend.create(self.memory, cpus)
        self.cpus = [
            self.vm.create_cpu(index, _Bus(self, self.accesses), lambda _: None, _Bus(self, self.ports))
            for index in range(cpus)
        ]  # fmt: skip

    def close(self) -> None:
        self.vm.close()

    @property
    def cpu(self) -> VirtualCPU:
        return self.cpus[0]

    @property
    def results(self) -> int:
        """Where guests put what the test reads."""
        return self.backend.ram + RESULTS

    def guest(self) -> Guest:
        return self.backend.guest(self.backend.ram)

    def load(self, guest: Guest) -> None:
        """The first CPU will run it."""
        base = self.backend.ram
        self.memory.write(base + CODE, bytes(guest.code))
        if self.backend.guest is X86Guest:
            self.memory.write(0x500, GDT)
            self.memory.write(0x9000, page_tables(0x9000))
            self.cpu.set_entry(CODE, (0x7000, 0x9000, 0x500))
        else:
            self.cpu.set_entry(base + CODE, (0, 0))

    def run(self, guest: Guest) -> Exit:
        """Loads, and runs until the end or an exit; canceled after SOON."""
        self.load(guest)
        return self.go_on()

    def go_on(self) -> Exit:
        timer = threading.Timer(SOON, self.cpu.cancel)
        timer.start()
        try:
            stop = self.cpu.run()
            if stop == DONE:  # KVM finishes the access, and moves the pc, only when it runs again
                self.cpu.cancel()
                self.cpu.run()
            return stop
        finally:
            timer.cancel()

    @property
    def vcpu(self) -> Any:
        """KVM's own, crumble_native's: only where the back end is KVM."""
        cpu: Any = self.cpu
        return cpu.vcpu

    @property
    def mmio(self) -> Any:
        """Who serves the first CPU's accesses."""
        cpu: Any = self.cpu
        return cpu._mmio

    @property
    def _kvm(self) -> Any:
        vm: Any = self.vm
        return vm._vm

    @property
    def frequency(self) -> int:
        """Of the clock that guests read, Hz."""
        if self.backend.guest is X86Guest:
            return int(self.vcpu.tsc_khz) * 1000
        if self.backend.guest is Arm64Guest:
            guest = self.guest()
            assert isinstance(guest, Arm64Guest)
            assert self.run(guest.frequency(self.results).end()) == DONE
            return self.value()
        return int(getattr(self.vm, "hart", SOFT_HART).timebase)

    def log_dirty(self) -> None:
        """From now on it is known which pages the guest writes."""
        if self.backend is SOFT:
            self.written()
        else:
            self._kvm.set_memory(self.memory, log_dirty=True)

    def written(self) -> set[int]:
        """Addresses of the pages that were since the last call."""
        if self.backend is SOFT:
            states = self._state[STATE_HEADER_SIZE:]
            found = [number for number, state in enumerate(states) if state & PAGE_DIRTY]
            self.memory.freeze()
            self.memory.release()
            self.vm.settle()
        else:
            found = pages(self._kvm.dirty_log(0))
        return {self.backend.ram + (number << 12) for number in found}

    def value(self, index: int = 0) -> int:
        """The 64-bit result `index`."""
        return int.from_bytes(self.memory.read(self.results + 8 * index, 8), "little")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Bus:
    """Answers with what the test set, and ends the guest that asks for it."""

    def __init__(self, quest: Quest, log: list[Access]) -> None:
        self._quest, self._log = quest, log

    def read(self, address: int, size: int) -> int:
        self._log.append(Access("read", address, size))
        return self._quest.answers.get(address, 0)

    def write(self, address: int, size: int, value: int) -> None:
        if address == END:
            raise GuestEnds(DONE)
        self._log.append(Access("write", address, size, value))


def pages(bitmap: bytes) -> list[int]:
    """The numbers of the bits that are set."""
    value: Any = int.from_bytes(bitmap, "little")
    return [index for index in range(8 * len(bitmap)) if value >> index & 1]
