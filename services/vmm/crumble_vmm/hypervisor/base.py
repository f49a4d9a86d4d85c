"""Hypervisor → VirtualMachine → VirtualCPU: the three small classes every back end implements.

A back end owns what must be fast (the run loop, the interrupt controller, doorbells); the machine
owns what is the same everywhere (memory map, chipset, boot). A vCPU's `run` serves device accesses
itself, through its `MmioHandler`, and returns only for what the machine as a
whole must decide.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from crumble_common.errors import UsageError
from crumble_common.hypervisors import Probe
from crumble_native.memory import Memory


class ExitReason(enum.Enum):
    """Why a vCPU came back. Each asks something different of the machine (H8)."""

    CANCELED = "canceled"
    """`cancel` was called: look at what the machine is told to do, then maybe run again."""
    HALT = "halt"
    """This vCPU stopped itself (HSM stop, CPU_OFF); `run` again waits until another starts it."""
    RESET = "reset"
    """The guest asked for a reboot."""
    POWER_OFF = "poweroff"
    """The guest asked to be switched off."""
    CRASH = "crash"
    """The guest cannot go on: a trap inside its trap vector, or a state the CPU cannot be in."""
    DEBUG = "debug"
    """What a debugger asked for happened; `Exit.debug` says what and where."""
    MEET = "meet"
    """In lockstep: the host wants to say something; `Exit.met` says where that is."""
    TRIPLE_FAULT = "triple_fault"
    """x86's way to crash, which some kernels use to reboot."""
    STUCK = "stuck"
    """It halted, and nothing can wake it."""
    EMULATION = "emulation"
    """An instruction that the back end cannot emulate; the detail has its bytes where they are known."""
    INTERNAL = "internal"
    """The back end failed in a way of its own."""
    ENTRY = "entry"
    """The CPU refuses the guest's state."""
    MEMORY = "memory"
    """The host has lost the memory behind the guest's."""
    WATCHDOG = "watchdog"
    """The guest did not feed its watchdog."""
    FAILED = "failed"
    """We did: an error of ours while an access was served."""


@dataclass(frozen=True, slots=True)
class Exit:
    """A vCPU's exit: the reason, and what the back end knows about it in words.

    met: instructions executed, and whether it waits for an interrupt.
    """

    reason: ExitReason
    detail: str = ""
    debug: tuple[int, int] = (0, 0)
    met: tuple[int, bool] = (0, False)


class GuestEnds(Exception):  # noqa: N818  nothing is wrong
    """A device access by which the guest ends the machine; the vCPU's `run` then gives `exit`."""

    def __init__(self, stop: Exit) -> None:
        super().__init__(stop.detail)
        self.exit = stop


class MmioHandler(Protocol):
    """Who serves a guest's device accesses: the chipset's bus. Called from vCPU threads."""

    def read(self, address: int, size: int) -> int:
        """The little-endian value of `size` (1, 2, 4, 8) bytes at a guest-physical address."""

    def write(self, address: int, size: int, value: int) -> None:
        """Stores the low `size` bytes of `value`."""


class VirtualCPU(ABC):
    """One vCPU. `run` is called by one thread, its own; `cancel` by any."""

    index: int

    @abstractmethod
    def set_entry(self, pc: int, arguments: tuple[int, ...]) -> None:
        """Where it starts, and the boot protocol's arguments in order. Only while not running."""

    def prefault(self, address: int, size: int) -> None:  # noqa: B027  most can do nothing
        """Whole pages of memory that the guest will use at once: it need not exit for each. Only while not running."""

    @abstractmethod
    def run(self) -> Exit:
        """Runs the guest, GIL released, until the machine must decide something."""

    @abstractmethod
    def cancel(self) -> None:
        """Makes `run` return CANCELED soon, also when it is called only later."""

    def debug_hart(self) -> Any:
        """The soft CPU's `rv64.Hart`, for debuggers and lockstep; None where there is none."""
        return None

    @abstractmethod
    def get_state(self) -> dict[str, Any]:
        """All that it is, in plain values. Only while not running."""

    @abstractmethod
    def set_state(self, state: dict[str, Any]) -> None:
        """Sets what get_state gave; ValueError for what no vCPU can be. Only while not running."""


class VirtioInterrupt(ABC):
    """One virtio-mmio transport's interrupt: InterruptStatus, InterruptACK and its line."""

    @abstractmethod
    def signal(self, bits: int, queue: int = -1) -> None:
        """Sets bits of InterruptStatus (1 used buffer, 2 configuration change). Any thread.

        queue: whose buffer it was, for those who tell them apart; -1: all.
        """

    @abstractmethod
    def status(self) -> int:
        """InterruptStatus."""

    @abstractmethod
    def acknowledge(self, bits: int) -> None:
        """Clears bits, as a guest's write to InterruptACK does."""

    @abstractmethod
    def add_call_fd(self, fd: int, queue: int = 0) -> None:
        """From now on a write to eventfd `fd` sets bit 0, for `queue`, without any thread of ours (an irqfd)."""

    @abstractmethod
    def remove_call_fd(self, fd: int) -> None:
        """Undoes add_call_fd; nothing of ours touches `fd` afterwards."""


class MessageInterrupt(ABC):
    """A message-signalled interrupt: a store to an address that an interrupt controller takes."""

    @abstractmethod
    def route(self, address: int, data: int) -> None:
        """What it sends; (0, 0): nothing. One more is sent when an eventfd may have rung meanwhile."""

    @abstractmethod
    def send(self) -> None:
        """Sends it. Any thread."""

    @abstractmethod
    def add_call_fd(self, fd: int) -> None:
        """From now on a write to eventfd `fd` sends it, without any thread of ours."""

    @abstractmethod
    def remove_call_fd(self, fd: int) -> None:
        """Undoes add_call_fd."""


class VirtualMachine(ABC):
    """A guest's vCPUs and interrupt controller over its memory.

    translates: vCPUs find memory by `crb_translate`, so it may have a base, and a page that is frozen is
    saved before they write it. Others stand still while their memory is saved.
    """

    translates: ClassVar[bool] = True

    @abstractmethod
    def create_cpu(
        self,
        index: int,
        mmio: MmioHandler,
        console: Callable[[bytes], None],
        ports: MmioHandler | None = None,
    ) -> VirtualCPU:
        """The vCPU `index`; each is created once.

        ports: takes accesses to x86's I/O ports.
        console: takes what the guest prints by a call to firmware, in the vCPU's thread.
        """

    @abstractmethod
    def set_line(self, source: int, level: bool) -> None:
        """Drives the interrupt controller's input `source`. Any thread."""

    @abstractmethod
    def virtio_interrupt(self, source: int, status: int, acknowledge: int) -> VirtioInterrupt:
        """An interrupt on `source` whose registers are at these guest-physical addresses.

        Loads and stores there may be served by the back end and never reach the bus.
        """

    def message_interrupt(self, device: int) -> MessageInterrupt | None:  # noqa: ARG002
        """One of its own for a function, before any vCPU; None where nothing takes messages.

        device: the function's requester ID (PCI Express Base 4.0, §2.2.6.2).
        """
        return None

    @abstractmethod
    def add_doorbell(self, address: int, size: int, value: int, fd: int) -> None:
        """A store of `value` at `address` writes 1 to eventfd `fd` and causes no exit."""

    @abstractmethod
    def remove_doorbell(self, address: int, size: int, value: int) -> None:
        """Undoes add_doorbell."""

    @property
    @abstractmethod
    def time(self) -> int:
        """The guest's clock, in ticks."""

    @abstractmethod
    def set_time(self, ticks: int) -> None:
        """The guest's clock goes on from here. No vCPU is running."""

    @abstractmethod
    def settle(self) -> None:
        """Before a capture, no vCPU running: takes interrupts that are under way, and forgets which
        pages of memory may be written.
        """

    @abstractmethod
    def get_controller(self) -> bytes:
        """The interrupt controller's state."""

    @abstractmethod
    def set_controller(self, state: bytes) -> None:
        """Sets what get_controller gave, before any line is driven; ValueError."""

    @abstractmethod
    def counters(self) -> dict[str, int]:
        """What the vCPUs counted so far, by name."""

    @abstractmethod
    def close(self) -> None:
        """Frees everything. No vCPU is running."""


class Hypervisor(ABC):
    """A back end."""

    name: ClassVar[str]

    @abstractmethod
    def probe(self) -> Probe:
        """What it can do here. Cheap after the first call."""

    @abstractmethod
    def create_vm(
        self, memory: Memory, cpus: int, cpu_model: str = "host", irqchip: str = "split"
    ) -> VirtualMachine:
        """A new virtual machine over all of `memory`, its CPUs of hypervisors.CPU_MODELS.

        irqchip: of KVM on x86_64, "split" (the IOAPIC is ours) or "kernel".
        Raises HostError when the host refuses, UsageError for what this back end has not.
        """


def no_choice() -> UsageError:
    """For who asks a back end for interrupt controllers in the kernel that has none."""
    return UsageError(
        "Only KVM on x86_64 has all interrupt controllers in the kernel as an option.",
        code="vmm.irqchip",
        hint="Leave --irqchip away.",
    )
