"""When a deterministic guest goes on, and when it waits for the host (docs/decisions/0013).

It goes on while it boots, and afterwards while something that the host asked of it is not done: a process
runs, a file is read. Otherwise it stands still and its clock with it, so that the next request finds it at
the same instruction whenever it comes. So it does while a process's stdin has room and has not ended, and
while its output is not read. What comes in between all the same (signals, a second request) is heard at the end of
a time slice. Which one that is depends on the host: `disturbed` says so from then on, or a recording (recording.py)
tells it, and a replay has it heard there again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from crumble_common import wire
from crumble_common.errors import CrumbleError, UsageError
from crumble_common.messages import vm as messages
from crumble_vmm.agent.session import AgentSession
from crumble_vmm.hypervisor.base import Exit
from crumble_vmm.lockstep import Lockstep
from crumble_vmm.machine import Machine
from crumble_vmm.recording import Input, Item, Player, Recorder, Said, Where, diverged, said

# Of a process's output, what its reader may be behind.
_UNREAD = 1 << 20
_NS_PER_TICK = 100  # boards/riscv64.py, TIMEBASE
_PAGE = 4096
# What the guest comes to hear of.
_INPUTS = (
    *messages.AGENT_REQUESTS,
    messages.ProcessInput,
    messages.ProcessSignal,
    messages.ProcessResize,
    messages.Shutdown,
)


class Turns:
    """Of one machine. pump: gives the guest what the session wants to say. serve: a message's handler. log: of
    the inputs, when there is one. failed: told, in a turn, why it cannot go on. All in the loop's thread.
    """

    def __init__(
        self,
        lockstep: Lockstep,
        machine: Machine,
        session: AgentSession,
        pump: Callable[[], None],
        serve: Callable[[Any, Any], None],
    ) -> None:
        self._lockstep, self._machine, self._session = lockstep, machine, session
        self._pump, self._serve = pump, serve
        self.log: Recorder | Player | None = None
        self.failed: Callable[[CrumbleError], None] = lambda _error: None
        self._hart = machine.cpus[0].debug_hart()
        self._waiting: list[tuple[Any, Any]] = []
        self._main: tuple[Any, Any] | None = None  # of a replay
        self._began = False
        self._unread: dict[int, int] = {}
        self._ending = self._broken = False
        self.disturbed = False
        session.whole_input = True
        lockstep.uptime = lambda: machine.vm.time * _NS_PER_TICK
        lockstep.over = lambda: machine.stopping
        lockstep.settled = self._settle
        machine.meet = lockstep.take_turn
        machine.on_meet = self._meet

    # What the host asks.

    def handle(self, message: Any, reply: Any) -> None:
        """A message: now, where the guest is when it has gone on, or, in a replay, as it was recorded."""
        _check(message)
        if isinstance(message, messages.Shutdown):
            self._ending, self.log = True, None
        if not isinstance(message, _INPUTS) or self._machine.stopping:
            self._serve(message, reply)
        elif isinstance(self.log, Player):
            self._claim(message, reply)
        elif isinstance(message, messages.ProcessInput):
            self._deliver("any", message, reply)
        elif self._machine.still and self._idle:
            self._deliver("still", message, reply)
        else:
            self._waiting.append((message, reply))
            self._hart.meet(0)
        if self._machine.still and not self._machine.stopping:
            self._settle()

    def output(self, process: int, stream: int, size: int) -> None:
        """The guest may print as much again, at once: how fast it is read is no matter of its."""
        self._unread[process] = self._unread.get(process, 0) + size
        self._session.credit(process, stream, size)

    def read(self, process: int, size: int) -> None:
        """The client has read some."""
        self._unread[process] = self._unread.get(process, 0) - size

    def said(self, data: bytes) -> bool:
        """The guest's agent sent this. False when it is not to be heard."""
        with self._guarded():
            item = said(self._hart.instret, data)
            if isinstance(self.log, Recorder):
                self.log.write(item)
            elif isinstance(self.log, Player) and (known := self._next(self.log)) is not None:
                _compare(item, known)
                self.log.take()
        return not self._broken

    # Turns.

    def _deliver(self, where: Where, message: Any, reply: Any) -> None:
        """The guest is to hear of it here."""
        if isinstance(self.log, Recorder):
            frame = wire.encode(wire.Envelope(message))
            self.log.write(Input(0 if where == "any" else self._hart.instret, where, frame))
        try:
            self._serve(message, reply)
        except CrumbleError as error:
            reply.error(error)
        if where in ("slice", "wait") and self.log is None:
            self.disturbed = self.disturbed or self._session.talkative

    def _meet(self, stop: Exit) -> None:
        """In the vCPU's thread: it waits until what it was wanted for is done."""
        instructions, waiting = stop.met
        where: Where = "wait" if waiting else "slice"
        self._lockstep.call_soon_threadsafe(lambda: self._met(instructions, where))
        self._lockstep.give_turn()

    def _met(self, instructions: int, where: Where) -> None:
        with self._guarded():
            if isinstance(self.log, Player):
                self._replay(self.log, instructions, where)
            waiting, self._waiting = self._waiting, []
            for message, reply in waiting:
                self._deliver(where, message, reply)

    def _settle(self) -> None:
        """The guest hears what there is to say, and goes on or does not."""
        with self._guarded():
            self._say()
            if isinstance(self.log, Player):
                self._follow(self.log)
        self._machine.stand(not self._goes_on())

    def _say(self) -> None:
        self._pump()
        self._lockstep.drain()

    @property
    def _idle(self) -> bool:
        """It waits for the host, however fast its output is read."""
        session = self._session
        return session.ready and not self._ending and (not session.numbers or session.hungry)

    def _goes_on(self) -> bool:
        if self._broken:
            return False
        if self._waiting or not self._session.ready or self._ending:
            return True
        if isinstance(self.log, Player):
            item = self.log.peek()
            if isinstance(item, Input) and item.where != "still":
                return True
        numbers = self._session.numbers
        late = any(self._unread.get(number, 0) >= _UNREAD for number in numbers)
        return not self._idle and not late

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """What is wrong with the recording ends the guest."""
        try:
            yield
        except CrumbleError as error:
            self.log, self._broken = None, True
            self.failed(error)

    # Replays.

    def _claim(self, message: Any, reply: Any) -> None:
        """Who asks for the main process gets its answers; nothing else is heard."""
        if isinstance(message, messages.ProcessStart) and self._main is None:
            self._main = message, reply
        elif not isinstance(message, messages.ProcessInput):
            raise UsageError(
                "A replay hears only what was recorded.",
                code="vm.replay",
                hint="Wait for its end, or stop it.",
            )

    def _next(self, log: Player) -> Item | None:
        """What the guest is to come by next. Input for a process is given before it is wanted."""
        while isinstance(item := log.peek(), Input) and item.where == "any":
            self._play(log, item)
        return item

    def _follow(self, log: Player) -> None:
        """Gives what was recorded for where the guest stands, and says where it is to be met next."""
        while (item := self._next(log)) is not None and self._idle:
            if isinstance(item, Input) and item.where != "still":
                break
            at = self._hart.instret
            if not isinstance(item, Input) or item.instructions != at:
                raise diverged(at, f"the guest waits, and in the recording {_told(item)}")
            if not self._play(log, item):
                return
            self._say()
        self._say()
        if item is not None:
            here = isinstance(item, Input) and item.where == "slice"
            self._hart.meet(item.instructions + (not here))

    def _replay(self, log: Player, instructions: int, where: Where) -> None:
        """The guest was met: for an input, or because it went on where it had not."""
        here, played = (instructions, where), False
        while (
            isinstance(item := self._next(log), Input) and (item.instructions, item.where) == here
        ):
            if not self._play(log, item):
                break
            played = True
        if item is not None and not played:
            state = "waits for an interrupt" if where == "wait" else "goes on"
            raise diverged(instructions, f"the guest {state}, and in the recording {_told(item)}")

    def _play(self, log: Player, item: Input) -> bool:
        """Delivers it; False while nobody has asked for the main process."""
        message, reply = item.message(), _NOBODY
        if isinstance(message, messages.ProcessStart) and not self._began:
            if self._main is None:
                return False
            wanted, reply = self._main
            if wanted != message:
                raise UsageError(
                    f"The recording is of {' '.join(message.argv)!r:.200}, started another way.",
                    code="recording.other",
                    hint="Replay it with the command and the options that it was recorded with.",
                )
            self._began = True
        log.take()
        self._deliver(item.where, message, reply)
        return True

    def digest(self) -> messages.Digested:
        """What the guest is now."""
        machine = self._machine
        machine.hold()
        try:
            state = machine.cpus[0].get_state()
            digest = hashlib.sha256(repr(sorted(state.items())).encode())
            digest.update(machine.vm.get_controller())
            digest.update(machine.vm.time.to_bytes(8, "little"))
            _hash_memory(digest, machine.memory.fd)
        finally:
            machine.let_go()
        return messages.Digested(state["instret"], digest.hexdigest(), self.disturbed)


class _Nobody:
    """Who asked, of an input that comes from a recording."""

    def ok(self, body: Any = None) -> None:
        """Does not hear of it."""

    def error(self, error: CrumbleError) -> None:
        """Does not hear of it."""


_NOBODY = _Nobody()


def _check(message: Any) -> None:
    """Raises UsageError for what cannot be the same twice."""
    if isinstance(message, messages.Freeze):
        what, hint = "be captured", "Run the same command again instead."
    elif isinstance(message, messages.ProcessStart) and message.tty:
        what, hint = "have a terminal", "Give it a file or a pipe as stdin."
    else:
        return
    raise UsageError(f"A deterministic VM cannot {what}.", code="vm.deterministic", hint=hint)


def _told(item: Item) -> str:
    """What the recording has, for people."""
    if isinstance(item, Said):
        return f"its agent said something at {item.instructions}"
    kind = type(item.message()).__name__
    return f"there came a {kind} at {item.instructions}"


def _compare(item: Said, known: Item) -> None:
    """Raises GuestError when the agent does not say what it had said."""
    if isinstance(known, Input) or known.instructions != item.instructions:
        why = f"its agent says something, and in the recording {_told(known)}"
    elif known != item:
        why = "its agent says something else than in the recording"
    else:
        return
    raise diverged(item.instructions, why)


def digest(turns: Turns | None) -> messages.Digested:
    """Answers a Digest; UsageError when the guest is not deterministic."""
    if turns is None:
        raise UsageError(
            "The VM is not deterministic.",
            code="vm.not_deterministic",
            hint="Run it with --deterministic.",
        )
    return turns.digest()


def _hash_memory(digest: Any, fd: int) -> None:
    """All pages that are not zeroes. By reading, which makes no pages where there are none."""
    zeroes, at, end = bytes(_PAGE), 0, os.lseek(fd, 0, os.SEEK_END)
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # nothing follows
            return
        hole = os.lseek(fd, at, os.SEEK_HOLE)
        while at < hole:
            data = os.pread(fd, min(hole - at, 1 << 20), at)
            for start in range(0, len(data), _PAGE):
                page = data[start : start + _PAGE]
                if page != zeroes:
                    digest.update((at + start).to_bytes(8, "little") + page)
            at += len(data)
