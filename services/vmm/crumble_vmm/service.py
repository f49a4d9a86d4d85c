"""`vmm` as a service: one machine, its console, and the agent in it, on the control plane.

The loop's thread serves control messages and the virtio devices of this process; each vCPU has a
thread of its own. What goes on inside the guest comes out as events: the agent's answers, the
console's bytes, and one VmEvent that says how it ended.

Everything a VM needs is imported with this module: a forkserver that has it starts a VM at once.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import socket
import sys
import time
from typing import Any

from crumble_common import log
from crumble_common.errors import CrumbleError, GuestError
from crumble_common.eventloop import Timer
from crumble_common.memory_base import MemoryBase
from crumble_common.messages import debug
from crumble_common.messages import vm as messages
from crumble_common.messages.service import Ok
from crumble_common.messages.vm import VmConfig, VmEvent
from crumble_common.sandbox import Profile
from crumble_common.service import Context, Reply, Service
from crumble_common.wire import Message
from crumble_vmm import guest, recording
from crumble_vmm.agent import events
from crumble_vmm.agent.requests import ask_agent
from crumble_vmm.agent.session import AgentSession
from crumble_vmm.boards.base import Ends
from crumble_vmm.builder import build_machine
from crumble_vmm.config import MachineConfig
from crumble_vmm.console_log import ConsoleLog
from crumble_vmm.debug.requests import Debugging
from crumble_vmm.devices.virtio.console import Port
from crumble_vmm.endings import PanicDoubt, agent_ended, ending, no_agent, panic
from crumble_vmm.guest.protocol import PORT_NAME
from crumble_vmm.hypervisor.base import Exit
from crumble_vmm.lockstep import Lockstep
from crumble_vmm.machine import Machine
from crumble_vmm.moving import move, moved
from crumble_vmm.snapshot import restore
from crumble_vmm.snapshot.capture import Captures, collect
from crumble_vmm.snapshot.holds import Holds
from crumble_vmm.snapshot.state import VmState, corrupt
from crumble_vmm.timeline import Timeline
from crumble_vmm.turns import Turns, digest

# A guest that powers off closes the agent's port a moment before, s.
_PORT_GRACE = 3.0
# What a guest may take beyond the grace it was given, to sync and power off, s.
_SHUTDOWN_MARGIN = 5.0
_LAST_LINES = 12
_SEED_SIZE = 64
# Of the console's output, what a snapshot keeps.
_KEPT_CONSOLE = 8 << 10
# vCPU threads need the interpreter for a few µs at a time, and should not wait 5 ms for it.
_SWITCH_INTERVAL = 0.0002


class VmmService(Service[VmConfig]):
    """One VM, from its configuration to its end."""

    name = "vmm"
    config_type = VmConfig

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.timeline = Timeline()
        self.session = AgentSession()
        self.console = ConsoleLog(context.loop, self._console_output)
        self.console.on_stand = self._kernel_stands
        self._panic = PanicDoubt(context.loop, self._panicked)
        self.agent_port = Port(PORT_NAME, self._from_agent, self._agent_opened)
        self._machine: Machine | None = None
        self._holds: Holds | None = None
        self._debugging: Debugging | None = None
        self._turns: Turns | None = None
        self._restored: VmState | None = None
        self._boot_timer: Timer | None = None
        self._ended = False

    def open(self, config: VmConfig) -> None:
        """Builds the machine; everything wrong with its parts is said here."""
        self.timeline.step("vmm start")
        self.config = MachineConfig.from_message(config)
        network = self.config.network
        self.session = AgentSession(self.config.hostname, network.told() if network else "")
        context = self.context
        names = [item.socket_fd for item in self.config.filesystems]
        if network is not None:
            names.append(network.socket_fd)
        sockets = {name: socket.socket(fileno=context.fd(name)) for name in names}
        ends = Ends(
            loop=context.loop,
            memory=(context.fd("memory"), context.fd("page_state")),
            sockets=sockets,
            console=self.console.write,
            ports=(Port("", self.console.write), self.agent_port),
            init=guest.build,
            lost=self._device_lost,
            base=MemoryBase.given(context.fds) if self.config.restore else None,
            lockstep=Lockstep(context.loop, self.config.seed) if self.config.seed else None,
            wanted=lambda: self.emit(messages.FsWanted()),
        )
        self._ends = ends
        if self.config.restore:
            self._restored = VmState.decode(self.config.restore)
            restore.check(self._restored, self.config)
        machine = self._machine = build_machine(self.config, ends, self.timeline)
        if self._restored is not None:
            with self.timeline.phase("restore"):
                self._take_over(self._restored)
        machine.on_end = self._guest_ended
        if ends.lockstep is not None:
            self._turns = Turns(ends.lockstep, machine, self.session, self._pump, self._handle)
            later = context.loop.call_soon_threadsafe  # when the turn is over
            self._turns.failed = lambda error: later(lambda: self._device_lost(error))
            if self.config.recording:
                fd = context.fd("recording")
                self._turns.log = recording.opened(fd, self.config)
        resumed = self._restored is not None
        captures = Captures(machine, context.loop, self._captured, restored=resumed)
        self._holds = Holds(machine, captures, context.take_fd, self._collect)
        self._debugging = Debugging(machine, context.loop, context.take_fd)
        self.timeline.skip()
        # However this process ends: no vCPU may run while the interpreter takes itself apart.
        atexit.register(self._machine.stop)

    def _take_over(self, state: VmState) -> None:
        """The machine and the agent's session go on from `state`; raises UsageError."""
        self.timeline.resumed = True
        restore.apply(state, self.machine)
        try:
            self.session.set_state(state.agent)
        except ValueError as error:
            raise corrupt(str(error)) from None
        self.console.restore(state.console)

    def sandbox(self) -> Profile:
        """Everything is open; a VM needs no path and no network."""
        return Profile()

    def start(self) -> None:
        """Lets the guest run."""
        self.timeline.step("sandbox")
        sys.setswitchinterval(_SWITCH_INTERVAL)
        if self.config.boot_limit:
            later = self.context.loop.call_later
            self._boot_timer = later(self.config.boot_limit, self._no_agent)
        self.emit(VmEvent(self.config.name, "booting", self.machine.hypervisor))
        self.timeline.enter_guest()
        self.machine.run()
        if self._restored is not None:
            self._wake(self._restored.agent.ready)

    def _wake(self, was_ready: bool) -> None:
        """Tells a restored guest's agent what is different now."""
        if was_ready:
            self.session.wake(time.time_ns(), os.urandom(_SEED_SIZE))
            self._pump()
        elif self.agent_port.is_open:
            self._agent_opened(True)

    @property
    def machine(self) -> Machine:
        """The machine, once it is built."""
        assert self._machine is not None
        return self._machine

    def emit(self, event: Message) -> None:
        """Tells the supervisor. Any thread."""
        self.context.send(event)

    def idle(self, standing: int = 0) -> None:
        """As any service; the guest stands still for a moment."""
        if self._turns is None and not self._ended:
            idle, standing = super().idle, standing + len(self.machine.cpus)
            self.machine.aside(lambda: idle(standing))

    def stats(self) -> dict[str, int]:
        """Counters of the vCPUs."""
        return {} if self._machine is None or self._ended else self._machine.vm.counters()

    def stop(self, grace: float) -> None:  # noqa: ARG002  nothing here takes long
        """Ends the VM as it is: who wants it orderly asks for Shutdown first."""
        self._halt()

    # Requests.

    def handle(self, message: Any, reply: Reply) -> None:
        """A control message; those about processes and files are answered by the agent later."""
        if self._turns is None:
            self._handle(message, reply)
            self._pump()
        else:
            self._turns.handle(message, reply)

    def _handle(self, message: Any, reply: Reply) -> None:
        session = self.session
        match message:
            case messages.ProcessInput(process, data, eof):
                session.input(process, data, eof)
            case messages.ProcessCredit(process, stream, size):
                self._credit(process, stream, size)
            case messages.ProcessResize(process, rows, cols):
                session.resize(process, rows, cols)
            case messages.ProcessSignal(process, signal):
                session.signal(process, signal)
                reply.ok()
            case messages.Rename():
                self._rename(message)
                reply.ok()
            case messages.Timeline() | messages.Digest():
                reply.ok(self._report(message))
            case messages.Shutdown(grace):
                self._shut_down(grace)
                reply.ok()
            case messages.Pause() | messages.Resume() | messages.Freeze() | messages.Thaw():
                self._hold(message, reply)
            case messages.NetReconnect() | messages.NetDisconnect() | messages.NetRest():
                move(message, self.machine, self.session, self.context, reply)
            case debug.DebugStart() | debug.DebugTrace() | debug.DebugCount() if (
                self._debugging is not None
            ):
                self._debugging.handle(message, reply)
            case _:
                if not ask_agent(session, message, reply):
                    super().handle(message, reply)

    def _report(self, wanted: messages.Timeline | messages.Digest) -> Message:
        if isinstance(wanted, messages.Digest):
            return digest(self._turns)
        return messages.TimelineSlices(self.timeline.slices(), self.stats())

    def _rename(self, wanted: messages.Rename) -> None:
        self.config = dataclasses.replace(self.config, name=wanted.vm, hostname=wanted.hostname)
        self.session.hostname = wanted.hostname
        self.session.setup(time.time_ns(), os.urandom(_SEED_SIZE))

    def _hold(self, message: Any, reply: Reply) -> None:
        """What stops the guest, and lets it go on."""
        assert self._holds is not None
        if self._ended:
            raise GuestError(f"The VM {self.config.name} ended.", code="vm.ended")
        reply.ok(self._holds.handle(message))
        if isinstance(message, messages.Resume) and self.session.ready and self._turns is None:
            self.session.setup(time.time_ns(), os.urandom(_SEED_SIZE))

    def _collect(self) -> VmState:
        console = self.console.tail()[-_KEPT_CONSOLE:]
        return collect(self.machine, self.session.get_state(), console)

    def _captured(self, pages: int, error: str) -> None:
        self.emit(messages.Captured(self.config.name, pages, error))

    def _credit(self, process: int, stream: int, size: int) -> None:
        if self._turns is None:
            self.session.credit(process, stream, size)
        else:
            self._turns.read(process, size)

    def _pump(self) -> None:
        """Gives the agent's port what the session wants to say."""
        if data := self.session.take():
            self.agent_port.send(data)

    def _shut_down(self, grace: float) -> None:
        if not self.session.ready:
            self._end(VmEvent(self.config.name, "poweroff", "It had not finished booting."))
            return
        self.session.shutdown(grace)
        self.context.loop.call_later(max(grace, 0) + _SHUTDOWN_MARGIN, self._not_off)

    def _not_off(self) -> None:
        self._end(VmEvent(self.config.name, "poweroff", "It was cut off: it did not end in time."))

    # The agent.

    def _agent_opened(self, is_open: bool) -> None:
        if is_open:
            self.session.setup(self._ends.clock(), self._ends.entropy(_SEED_SIZE))
            self._pump()
        elif self.session.ready:
            self.context.loop.call_later(_PORT_GRACE, self._agent_gone)

    def _agent_gone(self) -> None:
        if not self._ended:
            self._agent_failed(agent_ended())

    def _from_agent(self, data: bytes) -> None:
        if self._turns is not None and not self._turns.said(data):
            return
        try:
            for event in self.session.receive(data):
                self._agent_event(event)
        except GuestError as error:
            self._agent_failed(error)
            return
        self._pump()

    def _agent_failed(self, error: GuestError) -> None:
        for event in self.session.close(error):
            self._agent_event(event)
        self._end(VmEvent(self.config.name, "failed", str(error)))

    def _agent_event(self, event: events.Event) -> None:
        match event:
            case events.Output(process, stream, data):
                self.emit(messages.ProcessOutput(process, stream, data))
                self._printed(process, stream, len(data))
            case events.InputTaken(process, size):
                self.emit(messages.ProcessCredit(process, 0, size))
            case events.Exited(process, status, signal):
                self.emit(messages.ProcessExit(process, status, signal))
            case events.Started(token, process, pid):
                token.ok(messages.ProcessStarted(process, pid))
            case events.Refused(token, error):
                token.error(error)
            case events.FileRead(token, data, eof):
                token.ok(messages.FileData(data, eof))
            case events.FileWritten(token) | events.Synced(token):
                token.ok(Ok())
            case events.Moved(token):
                moved(self.machine, token)
            case events.AgentLog(text):
                log.info("agent", text=text)
            case events.AgentReady(phases):
                self._agent_ready(phases)
            case events.AgentAlive():
                self._panic.end()

    def _printed(self, process: int, stream: int, size: int) -> None:
        if self._turns is not None:
            self._turns.output(process, stream, size)

    def _agent_ready(self, phases: list[tuple[str, int]]) -> None:
        self.timeline.guest_ready(phases)
        if self._boot_timer is not None:
            self._boot_timer.cancel()
        self.emit(VmEvent(self.config.name, "agent_ready"))

    def _no_agent(self) -> None:
        self._end(no_agent(self.config.name, self.config.boot_limit))

    # The machine.

    def _console_output(self, data: bytes) -> None:
        if self.config.dmesg:
            self.emit(messages.ConsoleOutput(self.config.name, data))

    def _kernel_stands(self) -> None:
        if not self.session.ready:
            self._panicked()
        elif self._panic.begin():
            self.session.ping()
            self._pump()

    def _panicked(self) -> None:
        self._end(panic(self.config.name, self.console))

    def _device_lost(self, error: CrumbleError) -> None:
        self._end(VmEvent(self.config.name, "failed", str(error), error.code))

    def _guest_ended(self, stop: Exit) -> None:
        """A vCPU came back for good."""
        self.machine.finish()
        self.console.flush()
        event = ending(self.config.name, stop, self.console)
        if event.kind in ("poweroff", "reset"):
            for last in self.session.power_off():
                self._agent_event(last)
        self._end(event)

    def _end(self, event: VmEvent) -> None:
        """The VM is over: says so, once, and ends this process."""
        if self._ended:
            return
        self._halt()
        printed = self.console.last_lines(_LAST_LINES)
        log.info("vm ended", kind=event.kind, detail=event.detail, console=printed)
        self.emit(event)
        self.context.finish()

    def _halt(self) -> None:
        """Stops the machine; what still waits for the agent is refused."""
        if self._ended:
            return
        self._ended = True
        gone = GuestError(f"The VM {self.config.name} ended.", code="vm.ended")
        for event in self.session.close(gone):
            self._agent_event(event)
        if self._holds is not None:
            self._holds.close()
        if self._debugging is not None:
            self._debugging.close()
        if self._machine is not None:
            self._machine.stop()
