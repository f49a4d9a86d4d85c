"""The host's side of the agent protocol, without I/O (frames: guest/protocol.py).

Bytes from the port go into `receive`, which gives events; commands are methods; bytes for the port
come out of `take`. A request that is answered later carries a `token` of the caller's, which comes
back in the event that answers it.

    start(ProcessStart) ── FILE_READ /etc/passwd, /etc/group ──→ SPAWN ──→ STARTED → OUTPUT* → EXITED
                                                                    └────→ FAILED

The guest is not trusted. A frame for a channel that isn't open, of a type that doesn't belong there,
or with more bytes than it has credit for raises GuestError: the session is over, the VM's other parts
are not touched. What the guest can make us keep is bounded: a process's table entry is made by the
host, output is passed on at once, and /etc/passwd is cut at MAX_LOOKUP.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from crumble_common.errors import CrumbleError, UsageError
from crumble_common.messages.vm import ProcessStart
from crumble_vmm.agent.channels import (
    Channel,
    FileReader,
    FileWriter,
    Process,
    Syncer,
    file_error,
    violation,
)
from crumble_vmm.agent.events import (
    AgentAlive,
    AgentLog,
    AgentReady,
    Event,
    FileRead,
    FileWritten,
    Moved,
    Refused,
    Synced,
)
from crumble_vmm.agent.launch import Launch
from crumble_vmm.agent.orphans import OrphanProcess, OrphanRequest
from crumble_vmm.guest import protocol
from crumble_vmm.guest.protocol import Frame, FrameReader, ToHost
from crumble_vmm.snapshot.state import AgentState, ProcessState, in_range

# The tokens of `wake`'s ping and of `move`'s.
_WAKE, _MOVE = 1, 2
# A FileRead's largest size (messages.vm).
MAX_READ = 1 << 20


class AgentSession:
    """One connection to one agent."""

    def __init__(self, hostname: str = "", network: str = "") -> None:
        self.ready = False
        self.hostname = hostname
        self.network = network
        self.whole_input = False
        """A process gets of its input all that it has room for, or the end of it; never less."""
        self._reader = FrameReader()
        self._out = bytearray()
        self._channels: dict[int, Channel] = {}
        self._last_channel = 0
        self._waking = False
        self._mover: Any = None

    @property
    def numbers(self) -> list[int]:
        """Of the channels that are open: a process runs, or a request is not answered."""
        return list(self._channels)

    @property
    def hungry(self) -> bool:
        """A process waits for input, with `whole_input`."""
        channels = self._channels.values()
        return any(isinstance(channel, Process) and channel.hungry for channel in channels)

    @property
    def talkative(self) -> bool:
        """`take` would give something."""
        return bool(self._out)

    def take(self) -> bytes:
        """Bytes for the port."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def send(self, data: bytes) -> None:
        """Appends frames to what `take` gives."""
        self._out += data

    def open(self, channel: Channel) -> int:
        """Gives a channel its number."""
        self._last_channel = self._last_channel % 0xFFFF_FFFF + 1
        while self._last_channel in self._channels:
            self._last_channel = self._last_channel % 0xFFFF_FFFF + 1
        self._channels[self._last_channel] = channel
        return self._last_channel

    def forget(self, number: int) -> None:
        """The channel is closed: nothing may come on it."""
        del self._channels[number]

    def receive(self, data: bytes) -> Iterator[Event]:
        """Events in order. Raises GuestError when the agent breaks the protocol."""
        for frame in self._reader.feed(data):
            if frame.channel == 0:
                yield from self._own(frame)
                continue
            channel = self._channels.get(frame.channel)
            if channel is None:
                raise violation(f"frame {frame.type} on channel {frame.channel}, which is not open")
            yield from channel.receive(frame)

    def power_off(self) -> list[Event]:
        """What the guest's end means to its PID 1."""
        processes = [item for item in self._channels.values() if isinstance(item, Process)]
        return [event for process in processes for event in process.power_off()]

    def close(self, error: CrumbleError) -> list[Event]:
        """The agent is gone: `Refused` for every request that waits."""
        channels, self._channels = self._channels, {}
        self.ready = False
        found = [channel.abandon(error) for channel in channels.values()]
        return [event for event in found if event is not None]

    def _own(self, frame: Frame) -> Iterator[Event]:
        if frame.type == ToHost.READY:
            if frame.argument != protocol.VERSION or self.ready:
                raise violation(f"READY of version {frame.argument}, wanted {protocol.VERSION}")
            self.ready = True
            yield AgentReady(protocol.decode_ready(frame.payload))
        elif frame.type == ToHost.LOG:
            yield AgentLog(frame.payload.decode("utf-8", "replace"))
        elif frame.type == ToHost.PONG:
            if self._waking and frame.argument == _WAKE:
                self._waking, self.ready = False, True
                yield AgentReady([])
            if self._mover is not None and frame.argument == _MOVE:
                token, self._mover = self._mover, None
                yield Moved(token)
            yield AgentAlive()
        else:
            raise violation(f"frame {frame.type} on channel 0")

    # Snapshots.

    def get_state(self) -> AgentState:
        """What a session that goes on from here must know."""
        processes = [
            ProcessState(number, channel.pid, list(channel.streams))
            for number, channel in self._channels.items()
            if isinstance(channel, Process | OrphanProcess)
        ]
        known = {process.channel for process in processes}
        return AgentState(
            ready=self.ready or self._waking,
            last_channel=self._last_channel,
            processes=processes,
            others=[number for number in self._channels if number not in known],
            received=self._reader.waiting,
            waiting=bytes(self._out),
        )

    def set_state(self, state: AgentState) -> None:
        """Goes on where another session was. Its processes run on, and nobody hears them.

        ValueError for what no session can be. `wake` follows when the agent was ready.
        """
        self._last_channel = in_range("last_channel", state.last_channel, 32)
        for number in [process.channel for process in state.processes] + state.others:
            if in_range("a channel", number, 32) == 0 or number in self._channels:
                raise ValueError(f"channel {number} cannot be")
            self._channels[number] = OrphanRequest(self, number)
        self._out += state.waiting
        self._reader.restore(state.received)
        for process in state.processes:
            self._channels[process.channel] = OrphanProcess(
                self, process.channel, process.pid, process.streams
            )

    def wake(self, time_ns: int, seed: bytes) -> None:
        """After a restore: what has changed around the guest; `AgentReady` follows when it is done."""
        self._waking = True
        self.setup(time_ns, seed)
        self.send(protocol.encode_ping(_WAKE))

    # Commands.

    def setup(self, time_ns: int, seed: bytes) -> None:
        """Hostname, clock, entropy, and the network's addresses."""
        name = self.hostname.encode()
        self.send(protocol.encode_setup(name, time_ns, seed, self.network.encode()))

    def move(self, network: str, time_ns: int, seed: bytes, token: Any) -> None:
        """It is on another network now: `Moved` follows when the guest has been told so."""
        self.network, self._mover = network, token
        self.setup(time_ns, seed)
        self.send(protocol.encode_ping(_MOVE))

    def ping(self) -> None:
        """Asks whether the agent still serves: `AgentAlive` follows."""
        self.send(protocol.encode_ping(0))

    def start(self, request: ProcessStart, token: Any) -> None:
        """Starts a process: `Started` or `Refused` follows."""
        if not any(request.argv[:1]):
            text = "The command is an empty string." if request.argv else "No command was given."
            raise UsageError(text, code="exec.not_found", hint="Name a program.")
        Launch(self, request, token)

    def input(self, number: int, data: bytes, eof: bool) -> None:
        """Bytes for a process's stdin; ignored when it has ended."""
        process = self._channels.get(number)
        if isinstance(process, Process):
            process.input(data, eof)

    def credit(self, number: int, stream: int, size: int) -> None:
        """`size` more bytes of a stream may come; ignored when the process has ended."""
        process = self._channels.get(number)
        if isinstance(process, Process) and stream in process.credits and size > 0:
            process.credit(stream, min(size, protocol.CREDIT_MASK))

    def signal(self, number: int, signal: int) -> None:
        """A signal to a process's group; raises UsageError when there is no such process."""
        self._running(number)
        if not 1 <= signal <= 64:
            raise UsageError(
                f"There is no signal {signal}.",
                code="exec.signal",
                hint="Use a number from 1 to 64.",
            )
        self.send(protocol.encode_signal(number, signal))

    def resize(self, number: int, rows: int, cols: int) -> None:
        """The size of a process's terminal; ignored when it has ended."""
        if isinstance(self._channels.get(number), Process):
            self.send(protocol.encode_resize(number, min(rows, 0xFFFF), min(cols, 0xFFFF)))

    def read_file(self, path: str, offset: int, size: int, token: Any) -> None:
        """Reads at most `size` bytes: `FileRead` or `Refused` follows."""

        def finish(data: bytes, eof: bool, number: int) -> list[Event]:
            if number:
                return [Refused(token, file_error(path, number))]
            return [FileRead(token, data, eof)]

        if offset < 0 or not 0 <= size <= MAX_READ:
            raise UsageError(
                f"{size} bytes at {offset} cannot be read at once.",
                code="file.size",
                hint=f"Read at most {MAX_READ} bytes at a time.",
            )
        FileReader(self, os.fsencode(path), offset, size, finish, self._refuser(token))

    def write_file(self, path: str, data: bytes, offset: int, mode: int, token: Any) -> None:
        """Writes bytes: `FileWritten` or `Refused` follows."""

        def finish(number: int) -> Event:
            return Refused(token, file_error(path, number)) if number else FileWritten(token)

        if offset < 0:
            raise UsageError(f"{path} has no offset {offset}.", code="file.size")
        FileWriter(self, os.fsencode(path), data, offset, mode, finish, self._refuser(token))

    def sync(self, token: Any) -> None:
        """Has written pages reach the file systems: `Synced` follows."""
        Syncer(self, Synced(token), self._refuser(token))

    @staticmethod
    def _refuser(token: Any) -> Callable[[CrumbleError], Event]:
        return lambda error: Refused(token, error)

    def shutdown(self, grace: float) -> None:
        """Signals all, syncs, powers off."""
        self.send(protocol.encode_shutdown(max(0, int(grace * 1000))))

    def _running(self, number: int) -> Process:
        process = self._channels.get(number)
        if not isinstance(process, Process) or not process.started:
            raise UsageError(f"There is no process {number}.", code="exec.gone")
        return process
