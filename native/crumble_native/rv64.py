"""The soft CPU: a riscv64 machine's harts, PLIC and interrupt wiring. See native/include/crumble/rv64.h.

    machine = Machine(memory, harts=1)
    hart = machine.hart(0)
    hart.set_state(dataclasses.replace(hart.get_state(), pc=entry))
    while (stop := hart.run()).reason != EXIT_RESET: ...

`Hart.run` releases the GIL and is called by one thread a hart. `Hart.cancel`, `Machine.set_line` and
`Machine.virtio_raise` may be called by any thread.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, fields
from typing import Any

from crumble_native._core import ffi, lib
from crumble_native.memory import Memory

SYSTEM: int = lib.CRB_MODE_SYSTEM
USER: int = lib.CRB_MODE_USER
MAX_HARTS: int = lib.CRB_MAX_HARTS
PLIC_SOURCES: int = lib.CRB_PLIC_SOURCES

EXIT_CANCELED: int = lib.CRB_EXIT_CANCELED
EXIT_MMIO_READ: int = lib.CRB_EXIT_MMIO_READ
EXIT_MMIO_WRITE: int = lib.CRB_EXIT_MMIO_WRITE
EXIT_CONSOLE: int = lib.CRB_EXIT_CONSOLE
EXIT_RESET: int = lib.CRB_EXIT_RESET
EXIT_STOPPED: int = lib.CRB_EXIT_STOPPED
EXIT_TRAP: int = lib.CRB_EXIT_TRAP
EXIT_CRASH: int = lib.CRB_EXIT_CRASH
EXIT_DEBUG: int = lib.CRB_EXIT_DEBUG
EXIT_MEET: int = lib.CRB_EXIT_MEET

STOP_STEP: int = lib.CRB_STOP_STEP
STOP_BREAK: int = lib.CRB_STOP_BREAK
STOP_WATCH: int = lib.CRB_STOP_WATCH
WATCH_WRITE: int = lib.CRB_WATCH_WRITE
WATCH_READ: int = lib.CRB_WATCH_READ
MAX_BREAKPOINTS: int = lib.CRB_MAX_BREAKPOINTS
MAX_WATCHPOINTS: int = lib.CRB_MAX_WATCHPOINTS
MAX_TRACE: int = lib.CRB_MAX_TRACE

TRANSLATOR_ON: int = lib.CRB_TRANSLATOR_ON
TRANSLATOR_OFF: int = lib.CRB_TRANSLATOR_OFF
TRANSLATOR_CPU: int = lib.CRB_TRANSLATOR_CPU
TRANSLATOR_FORBIDDEN: int = lib.CRB_TRANSLATOR_FORBIDDEN

_ANY = -1


@dataclass(frozen=True, slots=True)
class Exit:
    """Why a hart came back: an EXIT_* reason and what rv64.h says about its other fields."""

    reason: int
    size: int = 0
    gpa: int = 0
    data: int = 0
    extra: int = 0


@dataclass(slots=True)
class HartState:
    """Everything a hart is: `x` and `f` hold 32 registers each; the rest is named as in rv64.h."""

    x: list[int]
    f: list[int]
    pc: int = 0
    fcsr: int = 0
    privilege: int = 1
    sstatus: int = 0
    sie: int = 0
    sip: int = 0
    stvec: int = 0
    sscratch: int = 0
    sepc: int = 0
    scause: int = 0
    stval: int = 0
    satp: int = 0
    scounteren: int = 0
    senvcfg: int = 0
    stimecmp: int = 0
    instret: int = 0
    reservation: int = 0
    hsm: int = 0
    waiting: int = 0
    vtype: int = 0
    vl: int = 0
    vstart: int = 0
    vcsr: int = 0
    vlenb: int = 0
    v: bytes = b""


@dataclass(frozen=True, slots=True)
class Debug:
    """What a debugger wants of a hart. step: stop behind one instruction. watchpoints: address, size, WATCH_*
    bits. trace: how many instructions to remember.
    """

    step: bool = False
    breakpoints: tuple[int, ...] = ()
    watchpoints: tuple[tuple[int, int, int], ...] = ()
    trace: int = 0


_SCALARS = tuple(field.name for field in fields(HartState) if field.name not in ("x", "f", "v"))
_COUNTERS = tuple(name for name, _ in ffi.typeof("crb_hart_counters").fields)


def _check(status: int, what: str) -> None:
    if status < 0:
        raise OSError(-status, f"{what}: {os.strerror(-status)}")


class Hart:
    """One hart of a machine."""

    def __init__(self, machine: Machine, index: int) -> None:
        self.index = index
        self._machine = machine
        self._exit: Any = ffi.new("crb_exit *")

    def run(self, answer: int = 0) -> Exit:
        """Runs the guest until there is something for the caller.

        answer: for the last exit: what was read (MMIO_READ) or the bytes written (CONSOLE).
        """
        self._exit.data = answer & 0xFFFF_FFFF_FFFF_FFFF
        _check(lib.crb_hart_run(self._machine.handle, self.index, self._exit), "hart")
        done = self._exit
        return Exit(done.reason, done.size, done.gpa, done.data, done.extra)

    def cancel(self) -> None:
        """Makes `run` return EXIT_CANCELED soon, also when it is called only later."""
        lib.crb_hart_cancel(self._machine.handle, self.index)

    def meet(self, instret: int) -> None:
        """Of a deterministic machine: makes `run` return EXIT_MEET at the first end of a time slice with so many
        instructions executed (`extra` says how many), or before, with `data` 1, in a WFI that nothing would end.
        """
        lib.crb_hart_meet(self._machine.handle, self.index, instret)

    @property
    def instret(self) -> int:
        """Instructions executed, while the hart is not running."""
        count: int = lib.crb_hart_instret(self._machine.handle, self.index)
        return count

    def get_state(self) -> HartState:
        """The registers, while the hart is not running."""
        state = ffi.new("crb_hart_state *")
        _check(lib.crb_hart_get_state(self._machine.handle, self.index, state), "hart state")
        found = {name: getattr(state, name) for name in _SCALARS}
        registers = bytes(ffi.buffer(state.v))[: 32 * state.vlenb]
        return HartState(x=list(state.x), f=list(state.f), v=registers, **found)

    def set_state(self, state: HartState) -> None:
        """Sets the registers, while the hart is not running.

        Raises ValueError when a value is one the hart could never hold.
        """
        raw = ffi.new("crb_hart_state *")
        if len(state.v) > ffi.sizeof(raw.v):
            raise ValueError("not a hart state: its vector registers are too long")
        try:
            raw.x, raw.f = state.x, state.f
            ffi.memmove(raw.v, state.v, len(state.v))
            for name in _SCALARS:
                setattr(raw, name, getattr(state, name))
        except (OverflowError, IndexError) as error:
            raise ValueError(f"not a hart state: {error}") from None
        if lib.crb_hart_set_state(self._machine.handle, self.index, raw) != 0:
            raise ValueError("not a hart state: a register holds a value it cannot hold")

    def set_debug(self, wanted: Debug) -> None:
        """What stops it from now on; `Debug()` ends debugging. While the hart is not running.

        Raises ValueError for more than there is room for.
        """
        if len(wanted.breakpoints) > MAX_BREAKPOINTS or len(wanted.watchpoints) > MAX_WATCHPOINTS:
            raise ValueError("too many breakpoints or watchpoints")
        raw = ffi.new("crb_debug *")
        raw.step, raw.trace = wanted.step, wanted.trace
        raw.n_breakpoints, raw.n_watchpoints = len(wanted.breakpoints), len(wanted.watchpoints)
        for at, address in enumerate(wanted.breakpoints):
            raw.breakpoints[at] = address
        for at, (address, size, kind) in enumerate(wanted.watchpoints):
            watch = raw.watchpoints[at]
            watch.va, watch.size, watch.kind = address, size, kind
        if lib.crb_hart_set_debug(self._machine.handle, self.index, raw) != 0:
            raise ValueError("not what a hart can be debugged with")

    def trace(self) -> list[tuple[int, int, int]]:
        """The last instructions, the oldest first: pc, the instruction's bytes, privilege."""
        raw = ffi.new("crb_trace_entry[]", MAX_TRACE)
        count = lib.crb_hart_get_trace(self._machine.handle, self.index, raw, MAX_TRACE)
        return [(raw[i].pc, raw[i].insn, raw[i].privilege) for i in range(count)]

    def counters(self) -> dict[str, int]:
        """What the hart counted so far, by the names in rv64.h."""
        raw = ffi.new("crb_hart_counters *")
        lib.crb_hart_get_counters(self._machine.handle, self.index, raw)
        return {name: getattr(raw, name) for name in _COUNTERS}

    def fallbacks(self) -> dict[str, tuple[int, int]]:
        """What translated code did not do itself, by operation: done by a function and back, and left to the
        interpreter for the rest of the block. Operations that never were are left out. Any thread.
        """
        called, left = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        found: dict[str, tuple[int, int]] = {}
        kind = 0
        while True:
            name = lib.crb_hart_fallback(self._machine.handle, self.index, kind, called, left)
            if name == ffi.NULL:
                return found
            if called[0] or left[0]:
                found[ffi.string(name).decode()] = (called[0], left[0])
            kind += 1


def translator_state() -> int:
    """Whether harts made now translate hot code, or why they only interpret: a TRANSLATOR_* value."""
    state: int = lib.crb_translator_state()
    return state


class Machine:
    """Harts over guest memory. Every region must have been added to `memory` before."""

    def __init__(
        self,
        memory: Memory,
        harts: int = 1,
        *,
        mode: int = SYSTEM,
        timebase: int = 10_000_000,
        plic: int = 0x0C00_0000,
        deterministic: bool = False,
        vlen: int = 128,
    ) -> None:
        """timebase: ticks of `time` a second. plic: guest-physical base of its registers. deterministic: one
        hart, whose clock counts instructions. vlen: bits of a vector register, 128 or 256.

        Raises ValueError for a configuration there is no machine for, OSError when memory is short.
        """
        if not 1 <= harts <= MAX_HARTS or not 1 <= timebase <= 10**9:
            raise ValueError(
                f"{harts} harts with a timebase of {timebase} Hz: there is no such machine"
            )
        config = ffi.new(
            "crb_machine_config *",
            {
                "harts": harts,
                "mode": mode,
                "timebase_hz": timebase,
                "plic_gpa": plic,
                "deterministic": deterministic,
                "vlen": vlen,
            },
        )
        made = lib.crb_machine_new(memory.handle, config)
        if made == ffi.NULL and ffi.errno == errno.ENOMEM:
            raise OSError(errno.ENOMEM, "no memory for a machine")
        if made == ffi.NULL:
            raise ValueError("guest memory or the mode is not what a machine can be made of")
        self.handle: Any = ffi.gc(made, lib.crb_machine_free)
        self._memory = memory
        self._harts = [Hart(self, index) for index in range(harts)]

    def hart(self, index: int) -> Hart:
        """The hart of that number."""
        return self._harts[index]

    def close(self) -> None:
        """Frees the machine; no hart is running, and nothing of it may be used afterwards."""
        ffi.release(self.handle)

    # ---- Wiring

    def add_doorbell(self, gpa: int, size: int, fd: int, match: int | None = None) -> None:
        """From now on a store of `size` bytes at `gpa` (of `match`, when given) writes 1 to eventfd `fd`."""
        want = _ANY if match is None else match
        _check(lib.crb_machine_add_doorbell(self.handle, gpa, size, want, fd), "doorbell")

    def remove_doorbell(self, gpa: int, match: int | None = None) -> None:
        """Undoes add_doorbell. Raises OSError (ENOENT) when there is none."""
        want = _ANY if match is None else match
        _check(lib.crb_machine_remove_doorbell(self.handle, gpa, want), "doorbell")

    def add_virtio_irq(self, source: int, status_gpa: int, ack_gpa: int) -> None:
        """Makes PLIC source `source` a virtio-mmio transport's, whose two registers are served here."""
        _check(
            lib.crb_machine_add_virtio_irq(self.handle, source, status_gpa, ack_gpa), "interrupt"
        )

    def add_call_fd(self, source: int, fd: int) -> None:
        """From now on a write to eventfd `fd` is a used-buffer interrupt of a virtio source."""
        _check(lib.crb_machine_add_call_fd(self.handle, source, fd), "call eventfd")

    def remove_call_fd(self, source: int, fd: int) -> None:
        """Undoes add_call_fd. Raises OSError (ENOENT) when there is none."""
        _check(lib.crb_machine_remove_call_fd(self.handle, source, fd), "call eventfd")

    # ---- Interrupts

    def virtio_raise(self, source: int, bits: int) -> None:
        """Sets bits of a virtio source's InterruptStatus (1 used buffer, 2 configuration)."""
        lib.crb_machine_virtio_raise(self.handle, source, bits)

    def virtio_acknowledge(self, source: int, bits: int) -> None:
        """Clears bits of InterruptStatus."""
        lib.crb_machine_virtio_acknowledge(self.handle, source, bits)

    def virtio_status(self, source: int) -> int:
        """InterruptStatus of a virtio source."""
        found: int = lib.crb_machine_virtio_status(self.handle, source)
        return found

    def set_line(self, source: int, level: bool) -> None:
        """Drives a plain level-sensitive source."""
        lib.crb_machine_set_line(self.handle, source, level)

    # ---- Snapshots

    def settle(self) -> None:
        """Before a capture, no hart running: takes waiting interrupts, forgets what may be written."""
        lib.crb_machine_settle(self.handle)

    def get_plic(self) -> bytes:
        """The PLIC's state, opaque."""
        state = ffi.new("uint8_t[]", lib.CRB_PLIC_STATE_SIZE)
        _check(lib.crb_machine_get_plic(self.handle, state), "PLIC state")
        return bytes(ffi.buffer(state))

    def set_plic(self, state: bytes) -> None:
        """Sets what get_plic gave. Raises ValueError when it is nothing of the kind."""
        if len(state) != lib.CRB_PLIC_STATE_SIZE:
            raise ValueError(f"a PLIC state has {lib.CRB_PLIC_STATE_SIZE} bytes, not {len(state)}")
        if lib.crb_machine_set_plic(self.handle, state) != 0:
            raise ValueError("not a PLIC state")

    @property
    def time(self) -> int:
        """`time` in ticks: 0 when the machine was made."""
        ticks: int = lib.crb_machine_get_time(self.handle)
        return ticks

    @time.setter
    def time(self, ticks: int) -> None:
        lib.crb_machine_set_time(self.handle, ticks)
