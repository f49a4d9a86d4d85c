"""Virtual machines by /dev/kvm. See native/include/crumble/kvm.h.

    vm = Vm(IRQCHIP_KERNEL)
    vm.set_memory(memory)
    vcpu = vm.create_vcpu(0)
    while (stop := vcpu.run(answer)).reason != EXIT_SHUTDOWN: ...

`Vcpu.run` releases the GIL and is called by one thread a vCPU; all else but the register groups may be
called by any thread. OSError is what the kernel refuses.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crumble_native._core import ffi, lib
from crumble_native.memory import Memory

STAGE_OPEN: int = lib.CRB_KVM_STAGE_OPEN
STAGE_VERSION: int = lib.CRB_KVM_STAGE_VERSION
STAGE_CAPABILITY: int = lib.CRB_KVM_STAGE_CAPABILITY
STAGE_VM: int = lib.CRB_KVM_STAGE_VM
STAGE_IRQCHIP: int = lib.CRB_KVM_STAGE_IRQCHIP

IRQCHIP_NONE: int = lib.CRB_KVM_IRQCHIP_NONE
IRQCHIP_KERNEL: int = lib.CRB_KVM_IRQCHIP_KERNEL
IRQCHIP_SPLIT: int = lib.CRB_KVM_IRQCHIP_SPLIT

EXIT_CANCELED: int = lib.CRB_KVM_EXIT_CANCELED
EXIT_MMIO_READ: int = lib.CRB_KVM_EXIT_MMIO_READ
EXIT_MMIO_WRITE: int = lib.CRB_KVM_EXIT_MMIO_WRITE
EXIT_PORT_READ: int = lib.CRB_KVM_EXIT_PORT_READ
EXIT_PORT_WRITE: int = lib.CRB_KVM_EXIT_PORT_WRITE
EXIT_HALT: int = lib.CRB_KVM_EXIT_HALT
EXIT_SHUTDOWN: int = lib.CRB_KVM_EXIT_SHUTDOWN
EXIT_SYSTEM: int = lib.CRB_KVM_EXIT_SYSTEM
EXIT_EMULATION: int = lib.CRB_KVM_EXIT_EMULATION
EXIT_INTERNAL: int = lib.CRB_KVM_EXIT_INTERNAL
EXIT_ENTRY: int = lib.CRB_KVM_EXIT_ENTRY
EXIT_MEMORY: int = lib.CRB_KVM_EXIT_MEMORY
EXIT_EOI: int = lib.CRB_KVM_EXIT_EOI
EXIT_OTHER: int = lib.CRB_KVM_EXIT_OTHER
EXIT_SBI: int = lib.CRB_KVM_EXIT_SBI

REGS: int = lib.CRB_KVM_REGS
SREGS: int = lib.CRB_KVM_SREGS
FPU: int = lib.CRB_KVM_FPU
XSAVE: int = lib.CRB_KVM_XSAVE
XCRS: int = lib.CRB_KVM_XCRS
DEBUGREGS: int = lib.CRB_KVM_DEBUGREGS
LAPIC: int = lib.CRB_KVM_LAPIC
MP_STATE: int = lib.CRB_KVM_MP_STATE
EVENTS: int = lib.CRB_KVM_EVENTS
MSRS: int = lib.CRB_KVM_MSRS
CPUID: int = lib.CRB_KVM_CPUID

# Bytes of the groups that have one size (linux/kvm.h, x86).
SIZES = {
    REGS: 144, SREGS: 312, FPU: 416, XSAVE: 4096, XCRS: 392, DEBUGREGS: 128, LAPIC: 1024,
    MP_STATE: 4, EVENTS: 64,
}  # fmt: skip
_MSR = struct.Struct("<I4xQ")
_MAX_CPUID = 256


class KvmError(OSError):
    """KVM could not be set up. stage: STAGE_*; capability: KVM_CAP_* that is missing, at that stage."""

    def __init__(self, error: int, stage: int, capability: int) -> None:
        super().__init__(error, os.strerror(error))
        self.stage = stage
        self.capability = capability


@dataclass(frozen=True, slots=True)
class Exit:
    """Why a vCPU came back: an EXIT_* reason and what kvm.h says about its other fields."""

    reason: int
    size: int = 0
    address: int = 0
    data: int = 0
    extra: int = 0
    instruction: bytes = b""
    sbi: tuple[int, ...] = ()


def _exit(stop: Any) -> Exit:
    code = bytes(stop.bytes)[: stop.size] if stop.reason == EXIT_EMULATION else b""
    call = tuple(stop.sbi) if stop.reason == EXIT_SBI else ()
    return Exit(stop.reason, stop.size, stop.address, stop.data, stop.extra, code, call)


def decode(run: bytes, error: int = 0) -> Exit:
    """What a vCPU's end is: its struct kvm_run, as far as `run` goes, and KVM_RUN's errno (0: none)."""
    made = ffi.new("crb_kvm_exit *")
    raw = ffi.from_buffer(run)
    _check(lib.crb_kvm_decode(raw, len(run), error, made), "exit")
    return _exit(made)


def _check(status: int, what: str) -> int:
    if status < 0:
        raise OSError(-status, f"{what}: {os.strerror(-status)}")
    return status


class Vm:
    """A virtual machine."""

    def __init__(self, irqchip: int = IRQCHIP_KERNEL) -> None:
        """Raises KvmError."""
        made, stage, missing = ffi.new("crb_kvm_vm **"), ffi.new("int *"), ffi.new("int *")
        status = lib.crb_kvm_create(made, irqchip, stage, missing)
        if status < 0:
            raise KvmError(-status, stage[0], missing[0])
        self.handle: Any = made[0]
        self._memory: Memory | None = None
        self._sizes: list[int] = []

    def close(self) -> None:
        """Frees it and its vCPUs, none of which is running. Once."""
        lib.crb_kvm_close(self.handle)
        self.handle = None

    def get_irqchip(self) -> bytes:
        """x86: the kernel's PICs and IOAPIC."""
        state = bytearray(lib.CRB_KVM_IRQCHIP_SIZE)
        _check(lib.crb_kvm_get_irqchip(self.handle, ffi.from_buffer(state), len(state)), "irqchip")
        return bytes(state)

    def set_irqchip(self, state: bytes) -> None:
        """What get_irqchip gave; OSError."""
        raw = ffi.from_buffer(state)
        _check(lib.crb_kvm_set_irqchip(self.handle, raw, len(state)), "irqchip")

    def capability(self, number: int) -> int:
        """What KVM_CHECK_EXTENSION says; 0: not there."""
        return max(0, int(lib.crb_kvm_capability(self.handle, number)))

    def set_memory(self, memory: Memory, *, log_dirty: bool = False) -> None:
        """Makes all of `memory` the guest's. ENOTSUP: it has a base."""
        _check(lib.crb_kvm_set_memory(self.handle, memory.handle, log_dirty), "guest memory")
        self._memory = memory
        raw = memory.handle
        self._sizes = [raw.regions[index].size for index in range(raw.n_regions)]

    def dirty_log(self, region: int) -> bytes:
        """The pages of a region that vCPUs wrote since the last call: bit n for page n."""
        pages = self._sizes[region] >> 12
        bitmap = bytearray((pages + 63) // 64 * 8)
        buffer = ffi.from_buffer(bitmap)
        status = lib.crb_kvm_dirty_log(
            self.handle, region, ffi.cast("uint8_t *", buffer), len(bitmap)
        )
        _check(status, "dirty log")
        return bytes(bitmap)

    def doorbell(
        self, address: int, size: int, value: int, fd: int, *, port: bool = False, on: bool = True
    ) -> None:
        """A guest's write of `value` writes 1 to eventfd `fd`, without an exit; or no longer."""
        status = lib.crb_kvm_doorbell(self.handle, address, size, value, fd, port, on)
        _check(status, "doorbell")

    def irqfd(self, gsi: int, fd: int, *, on: bool = True) -> None:
        """A write to eventfd `fd` is an edge of interrupt `gsi`; or no longer."""
        _check(lib.crb_kvm_irqfd(self.handle, gsi, fd, on), "irqfd")

    def set_line(self, gsi: int, level: bool) -> None:
        """Drives an input of the kernel's controllers."""
        _check(lib.crb_kvm_set_line(self.handle, gsi, level), "interrupt line")

    def signal_msi(self, address: int, data: int, device: int = 0) -> None:
        """A message-signalled interrupt. device: its requester ID, for an ITS."""
        message = ffi.new("crb_kvm_message *", (address, data, device))
        _check(lib.crb_kvm_signal_msi(self.handle, message), "MSI")

    def set_routes(self, pins: int, messages: Sequence[tuple[int, int, int]]) -> None:
        """The first `pins` interrupts are the kernel's controller's; those after them become messages,
        (address, data, device); an address of 0: none.
        """
        table = ffi.new("crb_kvm_message[]", list(messages))
        _check(lib.crb_kvm_set_routes(self.handle, pins, table, len(messages)), "MSI routes")

    @property
    def clock(self) -> int:
        """The kvmclock, ns."""
        ns = ffi.new("uint64_t *")
        _check(lib.crb_kvm_get_clock(self.handle, ns), "clock")
        return int(ns[0])

    @clock.setter
    def clock(self, ns: int) -> None:
        _check(lib.crb_kvm_set_clock(self.handle, ns), "clock")

    def add_slot(self, status: int, acknowledge: int) -> int:
        """Serves InterruptStatus and InterruptACK of a virtio-mmio slot; gives its number."""
        return _check(lib.crb_kvm_add_slot(self.handle, status, acknowledge), "virtio slot")

    def slot_set(self, slot: int, bits: int) -> int:
        """Sets bits of InterruptStatus; gives them all."""
        return int(lib.crb_kvm_slot_set(self.handle, slot, bits))

    def slot_clear(self, slot: int, bits: int) -> int:
        """Clears bits of InterruptStatus; gives what is left."""
        return int(lib.crb_kvm_slot_clear(self.handle, slot, bits))

    def supported_cpuid(self) -> bytes:
        """The entries (struct kvm_cpuid_entry2) of what a guest can have here."""
        buffer = bytearray(8 + _MAX_CPUID * lib.CRB_KVM_CPUID_SIZE)
        raw = ffi.from_buffer(buffer)
        count = _check(lib.crb_kvm_supported_cpuid(self.handle, raw, len(buffer)), "CPUID")
        return bytes(buffer[8 : 8 + count * lib.CRB_KVM_CPUID_SIZE])

    def msr_list(self) -> list[int]:
        """The MSRs that can be got or set on this host."""
        count = _check(lib.crb_kvm_msr_list(self.handle, ffi.NULL, 0), "MSR list")
        indices = ffi.new("uint32_t[]", count)
        _check(lib.crb_kvm_msr_list(self.handle, indices, count), "MSR list")
        return list(indices)

    def create_gic(
        self, distributor: int, redistributors: int, cpu_interface: int, lines: int
    ) -> int:
        """arm64's interrupt controller with `lines` shared lines, before any vCPU; gives its version."""
        handle = self.handle
        status = lib.crb_kvm_gic_create(handle, distributor, redistributors, cpu_interface, lines)
        return _check(status, "GIC")

    def create_its(self, address: int) -> None:
        """Version 3's translator of messages, before any vCPU."""
        _check(lib.crb_kvm_its_create(self.handle, address), "ITS")

    def start_gic(self) -> None:
        """After the last vCPU."""
        _check(lib.crb_kvm_gic_start(self.handle), "GIC")

    def get_gic(self, group: int, attribute: int) -> int:
        """A register of the GIC or its ITS, in a KVM_DEV_ARM_VGIC_GRP_*; no vCPU is running."""
        value = ffi.new("uint64_t *")
        _check(lib.crb_kvm_gic_get(self.handle, group, attribute, value), "GIC")
        return int(value[0])

    def set_gic(self, group: int, attribute: int, value: int) -> None:
        """Sets one; or, of CTRL, does something."""
        _check(lib.crb_kvm_gic_set(self.handle, group, attribute, value), "GIC")

    def create_plic(self, address: int) -> None:
        """riscv64's interrupt controller, ours, before any vCPU; its sources are the lines."""
        _check(lib.crb_kvm_plic_create(self.handle, address), "PLIC")

    def bind_slot(self, slot: int, source: int) -> None:
        """A virtio slot's InterruptStatus is the level of the PLIC's `source`."""
        _check(lib.crb_kvm_plic_slot(self.handle, slot, source), "PLIC")

    def get_plic(self) -> bytes:
        """The PLIC's state."""
        state = ffi.new("uint8_t[]", lib.CRB_PLIC_STATE_SIZE)
        _check(lib.crb_kvm_plic_get(self.handle, state), "PLIC")
        return bytes(ffi.buffer(state))

    def set_plic(self, state: bytes) -> None:
        """Sets what get_plic gave; OSError for what cannot be one."""
        _check(-22 if len(state) != lib.CRB_PLIC_STATE_SIZE else 0, "PLIC")
        _check(lib.crb_kvm_plic_set(self.handle, ffi.from_buffer("uint8_t[]", state)), "PLIC")

    def redrive_plic(self, index: int) -> None:
        """Tells vCPU `index` its external interrupt's level again, after its registers were set."""
        _check(lib.crb_kvm_plic_redrive(self.handle, index), "PLIC")

    def create_vcpu(self, index: int) -> Vcpu:
        """The vCPU `index`, which is its LAPIC's number as well."""
        made = ffi.new("crb_kvm_vcpu **")
        _check(lib.crb_kvm_create_vcpu(self.handle, index, made), "vCPU")
        return Vcpu(self, index, made[0])


_COUNTERS = tuple(name for name, _ in ffi.typeof("crb_kvm_counters").fields)


class Vcpu:
    """One vCPU."""

    def __init__(self, vm: Vm, index: int, handle: Any) -> None:
        self.index = index
        self._vm = vm
        self._handle = handle
        self._exit: Any = ffi.new("crb_kvm_exit *")

    def run(self, answer: int = 0, error: int = 0) -> Exit:
        """Runs the guest until there is something for the caller. answer: to a read that came last, or,
        with `error`, to a call to firmware.
        """
        stop = self._exit
        stop.data = answer & 0xFFFF_FFFF_FFFF_FFFF
        stop.extra = error & 0xFFFF_FFFF_FFFF_FFFF
        _check(lib.crb_kvm_run(self._handle, stop), "vCPU")
        return _exit(stop)

    def cancel(self) -> None:
        """Makes `run` return EXIT_CANCELED soon, also when it is called only later."""
        if self._vm.handle is not None:
            lib.crb_kvm_cancel(self._handle)

    def get(self, group: int) -> bytes:
        """A register group of SIZES, while the vCPU is not running."""
        buffer = bytearray(SIZES[group])
        raw = ffi.from_buffer(buffer)
        _check(lib.crb_kvm_get_group(self._handle, group, raw, len(buffer)), "registers")
        return bytes(buffer)

    def set(self, group: int, data: bytes) -> None:
        """Sets a register group."""
        raw = ffi.from_buffer(data)
        _check(lib.crb_kvm_set_group(self._handle, group, raw, len(data)), "registers")

    def get_register(self, number: int) -> bytes:
        """The register with this KVM_REG_*."""
        buffer = bytearray(1 << (number >> 52 & 15))
        raw = ffi.from_buffer(buffer)
        status = lib.crb_kvm_get_register(self._handle, number, raw, len(buffer))
        _check(status, f"register {number:#x}")
        return bytes(buffer)

    def set_register(self, number: int, data: bytes) -> None:
        """Sets it."""
        raw = ffi.from_buffer(data)
        status = lib.crb_kvm_set_register(self._handle, number, raw, len(data))
        _check(status, f"register {number:#x}")

    def register_list(self) -> list[int]:
        """Every KVM_REG_* it has."""
        count = _check(lib.crb_kvm_register_list(self._handle, ffi.NULL, 0), "register list")
        numbers = ffi.new("uint64_t[]", count)
        _check(lib.crb_kvm_register_list(self._handle, numbers, count), "register list")
        return list(numbers)

    def init_arm(self, *, off: bool) -> None:
        """arm64: the host's CPU; one that is off waits for PSCI's CPU_ON."""
        _check(lib.crb_kvm_arm_init(self._handle, off), "vCPU")

    def get_msrs(self, indices: Sequence[int]) -> dict[int, int]:
        """The values of those that are there, up to the first that isn't."""
        buffer = bytearray(_msrs([(index, 0) for index in indices]))
        raw = ffi.from_buffer(buffer)
        count = _check(lib.crb_kvm_get_group(self._handle, MSRS, raw, len(buffer)), "MSRs")
        found = [_MSR.unpack_from(buffer, 8 + number * _MSR.size) for number in range(count)]
        return dict(found)

    def set_msrs(self, values: dict[int, int]) -> None:
        """Sets MSRs; OSError (EINVAL) names the first that is refused."""
        count, items = self.try_msrs(values), list(values.items())
        if count < len(items):
            raise OSError(22, f"MSR {items[count][0]:#x} cannot be {items[count][1]:#x}")

    def try_msrs(self, values: dict[int, int]) -> int:
        """Sets MSRs up to the first that is refused; gives how many."""
        data = _msrs(list(values.items()))
        raw = ffi.from_buffer(data)
        return _check(lib.crb_kvm_set_group(self._handle, MSRS, raw, len(data)), "MSRs")

    @property
    def tsc_khz(self) -> int:
        """The frequency of the guest's TSC."""
        return _check(lib.crb_kvm_get_tsc_khz(self._handle), "TSC")

    @tsc_khz.setter
    def tsc_khz(self, khz: int) -> None:
        _check(lib.crb_kvm_set_tsc_khz(self._handle, khz), "TSC")

    def set_cpuid(self, entries: bytes) -> None:
        """What CPUID tells the guest: struct kvm_cpuid_entry2 entries."""
        count = len(entries) // lib.CRB_KVM_CPUID_SIZE
        self.set(CPUID, struct.pack("<II", count, 0) + entries)

    def prefault(self, address: int, size: int) -> None:
        """Maps whole pages of guest memory ahead of the guest's accesses, where KVM can."""
        _check(lib.crb_kvm_prefault(self._handle, address, size), "prefault")

    def counters(self) -> dict[str, int]:
        """Exits by kind, by the names in kvm.h."""
        raw = ffi.new("crb_kvm_counters *")
        lib.crb_kvm_get_counters(self._handle, raw)
        return {name: getattr(raw, name) for name in _COUNTERS}


def _msrs(items: Sequence[tuple[int, int]]) -> bytes:
    header = struct.pack("<II", len(items), 0)
    return header + b"".join(_MSR.pack(index, value) for index, value in items)
