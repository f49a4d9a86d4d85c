"""The `vmm` service in this process, with its loop in a thread and a supervisor that only listens.

with GuestVm(config, fds) as vm:
    vm.wait(VmEvent)
    started = vm.ask(ProcessStart(["sh"]))
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from crumble_common.errors import CrumbleError
from crumble_common.eventloop import EventLoop
from crumble_common.guest_memory import GuestMemory
from crumble_common.messages.vm import VmConfig, VmEvent
from crumble_common.service import Context, Reply
from crumble_common.wire import Envelope
from crumble_vmm.service import VmmService

T = TypeVar("T")
TIMEOUT = 120.0


class _Link:
    """What the service says."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.events: list[Any] = []
        self.replies: dict[int, Envelope] = {}

    def send(self, envelope: Envelope) -> None:
        with self.changed:
            if envelope.reply_to:
                assert envelope.reply_to not in self.replies
                self.replies[envelope.reply_to] = envelope
            else:
                self.events.append(envelope.body)
            self.changed.notify_all()

    def heartbeat(self, beat: object) -> None:
        pass

    def close(self) -> None:
        pass


class GuestVm:
    """A running VM. `events` is everything it said, oldest first. memory: 0 is what the config says."""

    def __init__(
        self,
        config: VmConfig,
        fds: dict[str, int] | None = None,
        service: Callable[[Context], VmmService] = VmmService,
        memory: int = 0,
    ) -> None:
        self.loop = EventLoop()
        self._link = _Link()
        given = {**GuestMemory.create(memory or config.memory).detach(), **(fds or {})}
        self.context = Context("vmm.test", given, self.loop, self._link)
        self.service = service(self.context)
        try:
            self.service.open(config)
        except CrumbleError:
            self.loop.close()
            raise
        self._numbers = itertools.count(1)
        self._thread = threading.Thread(target=self._run, name="vmm loop")

    def _run(self) -> None:
        self.service.start()
        self.loop.run()

    @property
    def events(self) -> list[Any]:
        """A copy."""
        with self._link.changed:
            return list(self._link.events)

    @property
    def events_now(self) -> list[Any]:
        """Itself, for conditions of `wait`."""
        return self._link.events

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.loop.call_soon_threadsafe(lambda: self.service.stop(0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive(), "the VM does not stop"
        self.loop.close()

    def wait(self, kind: type[T], true: Callable[[T], object] = lambda _event: True) -> T:
        """The first event of a type that fits, past or to come."""
        found: list[T] = []

        def look() -> bool:
            found[:] = [e for e in self._link.events if isinstance(e, kind) and true(e)]
            return bool(found)

        with self._link.changed:
            assert self._link.changed.wait_for(look, TIMEOUT), self._link.events[-20:]
        return found[0]

    def wait_end(self) -> VmEvent:
        """How the VM ended; its loop has too."""
        event = self.wait(VmEvent, lambda event: event.kind not in ("booting", "agent_ready"))
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        return event

    def tell(self, message: Any) -> None:
        """An event for the service."""
        reply = Reply(self.context, self._link, 0, 0)
        self.loop.call_soon_threadsafe(lambda: self._handle(message, reply))

    def ask(self, message: Any) -> Any:
        """A request: its answer; raises the CrumbleError it is refused with."""
        number = next(self._numbers)
        reply = Reply(self.context, self._link, number, 0)
        self.loop.call_soon_threadsafe(lambda: self._handle(message, reply))
        with self._link.changed:
            assert self._link.changed.wait_for(lambda: number in self._link.replies, TIMEOUT)
        answer = self._link.replies[number]
        if answer.error is not None:
            raise answer.error
        return answer.body

    def _handle(self, message: Any, reply: Reply) -> None:
        try:
            self.service.handle(message, reply)
        except CrumbleError as error:
            reply.error(error)
