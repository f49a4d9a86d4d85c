"""A built machine: its vCPU threads, and the few things that can be done with the whole.

    built ──run──► running ◄──pause/resume, hold/let_go──► paused
                      └──guest ends, or stop──► stopped

Each vCPU has a thread that sits in `VirtualCPU.run`, in C, without the GIL. The first vCPU that comes
back with something final (reset, power-off, crash) ends the machine: `on_end` is called once, in the
loop's thread, and the owner then calls `stop`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from crumble_common import log
from crumble_common.errors import InternalError
from crumble_common.guest_memory import GuestMemory
from crumble_vmm.chipset.builder import Chipset
from crumble_vmm.devices.serial import SerialPort
from crumble_vmm.devices.virtio.local import LocalDevice
from crumble_vmm.devices.virtio.transport import Transport
from crumble_vmm.devices.virtio.vhost_user_net import NetworkLink
from crumble_vmm.devices.watchdog import Watchdog
from crumble_vmm.hypervisor.base import Exit, ExitReason, VirtualCPU, VirtualMachine

# A vCPU looks at `cancel` between two blocks of guest code, so it comes back within microseconds,
# unless a device keeps its thread (a back end that does not answer: 10 s at most, twice).
_STOP_LIMIT = 30.0
# How often a vCPU that stops in lockstep is asked whether it gives a turn, s.
_MEET = 0.002


class Loop(Protocol):
    """What a machine needs of the event loop."""

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Calls in the loop's thread."""


class Machine:
    """One VM, ready to run, and the name of its back end. `run`, `pause`, `resume` and `stop` belong to the loop's thread."""

    def __init__(
        self,
        vm: VirtualMachine,
        cpus: Sequence[VirtualCPU],
        chipset: Chipset,
        memory: GuestMemory,
        loop: Loop,
        hypervisor: str,
        architecture: str,
    ) -> None:
        self.vm = vm
        self.hypervisor, self.architecture = hypervisor, architecture
        self.memory = memory
        self.cpus = tuple(cpus)
        self.chipset = chipset
        self.on_end: Callable[[Exit], None] = lambda _exit: None
        self._loop = loop
        self._threads: list[threading.Thread] = []
        self._turn = threading.Condition()
        self.paused = False
        self.still = False
        """It waits for the host, in lockstep."""
        self.meet: Callable[[], None] | None = None
        """In lockstep: takes the turn that a vCPU waits to give."""
        self.on_meet: Callable[[Exit], None] = lambda _exit: None
        """In lockstep, in the vCPU's thread: it is where the host wanted to meet it."""
        self._held = self._stopping = self._ended = False
        self._only: int | None = None  # of the vCPUs, a debugger lets this one run
        self.on_debug: Callable[[int, Exit], None] = lambda _cpu, _exit: None
        self._parked = 0
        self._time = 0  # of the guest, while it is paused
        watchdog = chipset.devices.get(Watchdog.name)
        if isinstance(watchdog, Watchdog):
            watchdog.on_fire = self._end

    def run(self) -> None:
        """Starts devices, then vCPUs."""
        self.chipset.start()
        for cpu in self.cpus:
            thread = threading.Thread(
                target=self._run_cpu, args=(cpu,), name=f"vcpu{cpu.index}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    @property
    def serial(self) -> SerialPort:
        """Its serial console; what it is sent and has no room for is lost, as on a real one."""
        uart = self.chipset.devices["serial"]
        assert isinstance(uart, SerialPort)
        return uart

    @property
    def link(self) -> NetworkLink:
        """Its network device's."""
        return NetworkLink(self.chipset.devices.values())

    def finish(self) -> None:
        """The guest is off: what it said last is heard, before its end is."""
        for device in self.chipset.devices.values():
            if isinstance(device, Transport) and isinstance(device.device, LocalDevice):
                device.device.finish()

    @property
    def stopping(self) -> bool:
        """`stop` was called."""
        return self._stopping

    @property
    def time(self) -> int:
        """The guest's clock, in ticks: it stands while the guest is paused."""
        return self._time if self.paused else self.vm.time

    def pause(self) -> None:
        """Returns when no vCPU runs any more; the guest's clock stands."""
        self._park(paused=True)
        self._time = self.vm.time

    def resume(self, only: int | None = None) -> None:
        """Lets the vCPUs run again, or one of them."""
        if self.meet is None:  # else the clock stood by itself, to the nanosecond
            self.vm.set_time(self._time)
        with self._turn:
            self._only = only
            self.paused = False
            self._tell_devices()
            self._turn.notify_all()

    def hold(self) -> None:
        """As pause, beside it, for a moment: the clock goes on."""
        self._park(held=True)

    def let_go(self) -> None:
        """Ends `hold`."""
        with self._turn:
            self._held = False
            self._tell_devices()
            self._turn.notify_all()

    def aside(self, call: Callable[[], None]) -> None:
        """Calls it while the guest stands still for a moment; not at all when somebody else has it stand."""
        if self.paused or self._held:
            return
        try:
            self.hold()
            call()
        finally:
            self.let_go()

    def _tell_devices(self) -> None:
        """Whether the guest stands. With `_turn` held."""
        self.chipset.stand(self.paused or self._held)

    def _park(self, *, paused: bool = False, held: bool = False) -> None:
        with self._turn:
            self.paused = self.paused or paused
            self._held = self._held or held
            self._tell_devices()
            self._cancel_all()
            done = self._wait_parked()
        if not done:
            raise InternalError("A vCPU does not stop.", code="vmm.stuck")

    def _wait_parked(self) -> bool:
        """False when a vCPU does not stop. With `_turn` held."""
        if self.meet is None:
            return self._turn.wait_for(self._is_parked, _STOP_LIMIT)
        end = time.monotonic() + _STOP_LIMIT
        while not (done := self._turn.wait_for(self._is_parked, _MEET)) and time.monotonic() < end:
            self.meet()
        return done

    def _is_parked(self) -> bool:
        return self._parked == len(self._threads) or self._ended

    def stand(self, still: bool) -> None:
        """In lockstep, while the vCPU waits: whether it goes on afterwards."""
        with self._turn:
            self.still = still
            if still:
                self._cancel_all()
            self._turn.notify_all()

    def stop(self) -> None:
        """Ends the vCPUs, then the devices, then frees the VM. Once, in whatever state."""
        with self._turn:
            if self._stopping:
                return
            self._stopping = True
            self._cancel_all()
            self._turn.notify_all()
        self.memory.memory.abandon()
        for thread in self._threads:
            thread.join(_STOP_LIMIT)
        if any(thread.is_alive() for thread in self._threads):
            raise InternalError("A vCPU does not stop.", code="vmm.stuck")
        self.chipset.stop()
        self.vm.close()
        self.memory.close()

    def _cancel_all(self) -> None:
        for cpu in self.cpus:
            cpu.cancel()

    def _run_cpu(self, cpu: VirtualCPU) -> None:
        """A vCPU's thread."""
        try:
            while self._may_run(cpu.index):
                stop = cpu.run()
                if stop.reason is ExitReason.MEET:
                    self.on_meet(stop)
                elif stop.reason is ExitReason.DEBUG:
                    self._debug(cpu.index, stop)
                elif stop.reason not in (ExitReason.CANCELED, ExitReason.HALT):
                    self._end(stop)
                    break
        except Exception as error:  # noqa: BLE001  a bug here must end the VM, with a report
            log.exception("vcpu failed", error, vcpu=cpu.index)
            self._end(Exit(ExitReason.FAILED, repr(error)))
        with self._turn:
            self._parked += 1
            self._turn.notify_all()

    def _debug(self, cpu: int, stop: Exit) -> None:
        """Nothing runs any more when the debugger hears of it."""
        with self._turn:
            self.paused = True
            self._tell_devices()
            self._cancel_all()
        self._loop.call_soon_threadsafe(lambda: self.on_debug(cpu, stop))

    def _may_run(self, cpu: int) -> bool:
        """Waits while paused; False when it is time to end."""
        with self._turn:
            self._parked += 1
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._may_go(cpu))
            self._parked -= 1
            return not (self._stopping or self._ended)

    def _may_go(self, cpu: int) -> bool:
        stands = self.paused or self.still or self._held or self._only not in (None, cpu)
        return not stands or self._stopping or self._ended

    def _end(self, stop: Exit) -> None:
        """The guest is over; the first reason counts."""
        with self._turn:
            if self._ended:
                return
            self._ended = True
            self._cancel_all()
            self._turn.notify_all()
        self._loop.call_soon_threadsafe(lambda: self.on_end(stop))
