"""The machine as a debugger's target: stops, steps, registers, memory. Everything in the loop's thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crumble_common.errors import UsageError
from crumble_native import rv64
from crumble_vmm.debug import memory
from crumble_vmm.debug.session import SIGINT, SIGTRAP
from crumble_vmm.hypervisor.base import Exit
from crumble_vmm.machine import Machine

# (vCPU, signal, watched address or None)
OnStop = Callable[[int, int, int | None], None]


def need_soft(machine: Machine) -> None:
    """Raises UsageError when the back end cannot be debugged."""
    if any(cpu.debug_hart() is None for cpu in machine.cpus):
        raise UsageError(
            f"VMs on {machine.hypervisor} cannot be debugged.",
            code="debug.backend",
            hint="Start the VM with --hv soft.",
        )


class MachineTarget:
    """For one debugger. While it is there and nothing runs, the guest's clock stands."""

    def __init__(self, machine: Machine, on_stop: OnStop) -> None:
        need_soft(machine)
        self._machine = machine
        self._on_stop = on_stop
        self._harts: list[rv64.Hart] = [cpu.debug_hart() for cpu in machine.cpus]
        self._waiting: list[tuple[int, Exit]] = []  # stops that came while it stood still
        self.cpus = len(machine.cpus)
        self._running = False
        machine.on_debug = self._hart_stopped
        machine.pause()

    # ---- Registers and memory

    def state(self, cpu: int) -> dict[str, Any]:
        return self._machine.cpus[cpu].get_state()

    def set_state(self, cpu: int, state: dict[str, Any]) -> None:
        self._machine.cpus[cpu].set_state(state)

    def read(self, cpu: int, address: int, length: int, *, physical: bool) -> bytes:
        ram = self._machine.memory.memory
        found = bytearray()
        for at, size in self._pieces(cpu, address, length, physical):
            if not ram.has(at, size):
                break
            found += ram.read(at, size)
        return bytes(found)

    def write(self, cpu: int, address: int, data: bytes, *, physical: bool) -> None:
        ram = self._machine.memory.memory
        places = self._pieces(cpu, address, len(data), physical)
        if sum(size for _, size in places) != len(data):
            raise ValueError("nothing is mapped there")
        done = 0
        for at, size in places:
            ram.write(at, data[done : done + size])
            done += size

    def _pieces(self, cpu: int, address: int, length: int, physical: bool) -> list[tuple[int, int]]:
        if physical:
            return [(address, length)]
        return memory.pieces(self.state(cpu), address, length, self._machine.memory.memory.read)

    # ---- Running

    def go(
        self, step: int | None, breakpoints: set[int], watchpoints: set[tuple[int, int, int]]
    ) -> None:
        wanted = rv64.Debug(False, tuple(sorted(breakpoints)), tuple(sorted(watchpoints)))
        for index, hart in enumerate(self._harts):
            alone = index == step
            hart.set_debug(
                rv64.Debug(step=True, watchpoints=wanted.watchpoints) if alone else wanted
            )
        self._running = True
        if step is None and self._waiting:
            self._tell(*self._waiting.pop(0))
            return
        self._machine.resume(only=step)

    def interrupt(self) -> None:
        if self._running:
            self._machine.pause()
            self._running = False
            self._on_stop(0, SIGINT, None)

    def leave(self) -> None:
        self._machine.pause()
        for hart in self._harts:
            hart.set_debug(rv64.Debug())
        self._machine.on_debug = lambda _cpu, _stop: None
        self._machine.resume()

    def _hart_stopped(self, cpu: int, stop: Exit) -> None:
        self._machine.pause()
        if self._running:
            self._tell(cpu, stop)
        else:
            self._waiting.append((cpu, stop))

    def _tell(self, cpu: int, stop: Exit) -> None:
        self._running = False
        why, address = stop.debug
        self._on_stop(cpu, SIGTRAP, address if why == rv64.STOP_WATCH else None)
