"""The one start order of every service.

    namespaces → read config → open → sandbox → connect control → start → Ready → loop → stop

Everything up to the sandbox happens in one thread: only such a process may enter a user namespace,
and Landlock confines a thread and those it starts later. ZeroMQ has threads, so it comes after.

`service_main` runs it, in a child forked by the supervisor's forkserver (config in an inherited fd) or
in a process of its own (config from that service's command line). A failure anywhere is reported once, as
`Failed` to the supervisor or a sentence on stderr, and by exit status 1.

Environment, under the supervisor:
  CRUMBLE_CONTROL    ipc:// address of its ROUTER, where requests come from
  CRUMBLE_HEARTBEAT  ipc:// address of its SUB, where heartbeats go
  CRUMBLE_NAME       this service's name, "fsd.vm1"
  CRUMBLE_IDENTITY   this service's address on the ROUTER; known to nobody else
  CRUMBLE_FDS        inherited fds by name, JSON: {"memory": 5}; "config" holds one wire frame,
                     "inbox" brings more fds while the service runs (`Context.take_fd`)
  CRUMBLE_BEGUN      when it was asked for, ns of CLOCK_MONOTONIC
  CRUMBLE_LIFELINE   an fd that reads EOF when this service has nobody left to serve
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar, cast

from crumble_common import log, sandbox, wire
from crumble_common.errors import CrumbleError, HostError, InternalError, UsageError
from crumble_common.eventloop import EventLoop
from crumble_common.inbox import Inbox
from crumble_common.messages import service as messages
from crumble_common.service_link import LateLink, Link, NoLink, Sender
from crumble_native import forked

C = TypeVar("C")

_HEARTBEAT, _STOP_GRACE = 1.0, 5.0
# Heartbeats without anything else, after which a service is idle.
_IDLE = 4


class Context:
    """What a service has from its surroundings.

    fds: inherited, by name. `send`, `fail` and `finish` may be called from any thread.
    """

    def __init__(self, name: str, fds: Mapping[str, int], loop: EventLoop, link: Sender) -> None:
        self.name = name
        self.fds = dict(fds)
        self.loop = loop
        self.failure: CrumbleError | None = None
        self._link = link
        self._inbox = Inbox(self.fds.pop("inbox")) if "inbox" in self.fds else None

    def fd(self, name: str) -> int:
        """An inherited fd; InternalError when it was not given."""
        if name not in self.fds:
            raise InternalError(f"{self.name} was started without the fd {name!r}.")
        return self.fds[name]

    def take_fd(self, name: str) -> int:
        """An fd handed over since then, now the caller's; InternalError "service.fd". Never waits."""
        if self._inbox is None:
            raise InternalError(f"{self.name} was started without an inbox.", code="service.fd")
        return self._inbox.take(name)

    def send(self, event: wire.Message) -> None:
        """Sends an event to the supervisor, in order with replies."""
        self.in_loop(lambda: self._link.send(wire.Envelope(event)))

    def fail(self, error: CrumbleError) -> None:
        """Ends this service, with `error` as the reason."""

        def note() -> None:
            self.failure = self.failure or error
            self.loop.stop()

        self.in_loop(note)

    def finish(self) -> None:
        """Ends this service: its work is done."""
        self.in_loop(self.loop.stop)

    def in_loop(self, call: Callable[[], None]) -> None:
        """Runs `call` in the loop's thread: now, when this is it."""
        if self.loop.in_loop_thread():
            call()
        else:
            self.loop.call_soon_threadsafe(call)


class Reply:
    """The answer to one request; may be kept and given later, from any thread, once.

    wanted: False for an event, whose answer goes nowhere (an error is logged).
    deadline: on the loop's clock; 0 when there is none.
    """

    def __init__(self, context: Context, link: Sender, request: int, deadline: float) -> None:
        self.wanted = request > 0
        self.deadline = deadline
        self._context = context
        self._link = link
        self._request = request

    def ok(self, body: wire.Message | None = None) -> None:
        """Answers with `body`, `Ok` by default."""
        self._answer(wire.Envelope(messages.Ok() if body is None else body, reply_to=self._request))

    def error(self, error: CrumbleError) -> None:
        """Answers that it could not be done."""
        if not self.wanted:
            log.warning("event refused", error=error)
        self._answer(wire.Envelope(reply_to=self._request, error=error))

    def _answer(self, envelope: wire.Envelope) -> None:
        if self.wanted:
            self.wanted = False
            self._context.in_loop(lambda: self._link.send(envelope))


class Service(ABC, Generic[C]):
    """One service. The methods are called in the order they are written here.

    isolated: gets namespaces of its own. network: but not a net namespace. keep_ids: but not a user
    namespace, where that is possible (it serves files of other users).
    """

    name: ClassVar[str]
    config_type: ClassVar[type[Any]]
    isolated: ClassVar[bool] = True
    network: ClassVar[bool] = False
    keep_ids: ClassVar[bool] = False

    @classmethod
    def isolate(cls) -> dict[str, str]:
        """Enters its namespaces, while there is one thread."""
        return sandbox.isolate(network=cls.network, keep_ids=cls.keep_ids) if cls.isolated else {}

    def __init_subclass__(cls) -> None:
        """Once for all that are forked off a process that has imported the service."""
        if hasattr(cls, "config_type"):
            wire.prepare(cls.config_type)

    def __init__(self, context: Context) -> None:
        self.context = context

    @abstractmethod
    def open(self, config: C) -> None:
        """Opens files and maps memory, while all rights are still there."""

    def sandbox(self) -> sandbox.Profile | None:
        """What the service may still touch from now on; nothing, by default. None: no sandbox."""
        return sandbox.Profile()

    @abstractmethod
    def start(self) -> None:
        """Registers fds, sockets and timers on `context.loop`; rights are narrow now."""

    def handle(self, message: Any, reply: Reply) -> None:
        """Serves a request or an event. A CrumbleError raised here is the reply."""
        reply.error(UsageError(f"{self.name} does not know {message.wire_type}."))

    def idle(self, standing: int = 0) -> None:
        """Nothing has happened for a while: gives memory back. standing: threads beside this one, which all wait for it."""
        if threading.active_count() == 1 + standing:
            forked.give_back()

    def stats(self) -> dict[str, int]:
        """Counters that go out with each heartbeat."""
        return {}

    def stop(self, grace: float) -> None:
        """Ends the work, within `grace` seconds; the process ends when this returns."""


class _Runner(Generic[C]):
    """One service's life in this process."""

    def __init__(
        self, kind: type[Service[C]], context: Context, link: LateLink, layers: dict[str, str]
    ) -> None:
        self.context = context
        self.link = link
        self.layers = layers
        self.service = kind(context)
        self._seen = -1
        self._quiet, self._idle_at = 0, _IDLE  # heartbeats since something else happened

    def live(self, config: C) -> None:
        """From open to the end of the loop; raises CrumbleError."""
        context, service = self.context, self.service
        log.debug("configured")
        service.open(config)
        log.debug("opened")
        profile = service.sandbox()
        if profile is not None:
            self.layers.update(sandbox.apply(profile))
        log.debug("confined")
        self.connect()
        if profile is not None:
            self.layers.update(sandbox.seal(profile))
        service.start()
        log.info("ready", **{f"sandbox_{layer}": state for layer, state in self.layers.items()})
        context.send(messages.Ready(context.name, self.layers))
        self.beat()
        context.loop.run()
        if context.failure is not None:
            raise context.failure

    def connect(self) -> None:
        """From here on control messages are served, and the end of all who need us is noticed."""
        link, loop = self.link.connect(), self.context.loop
        link.attach(loop, self.serve)
        if lifeline := os.environ.get("CRUMBLE_LIFELINE"):
            loop.add_fd(int(lifeline), "lifeline", lambda: self.stop(0))

    def beat(self) -> None:
        """Sends a heartbeat, and another one in a second."""
        loop = self.context.loop
        stats = {f"loop.{kind}": count for kind, count in loop.counts.items()}
        stats.update(self.service.stats())
        self.link.heartbeat(messages.Heartbeat(self.context.name, time.monotonic(), stats))
        loop.call_later(_HEARTBEAT, self.beat)
        self.look()

    def look(self) -> None:
        """Whether it is idle; one that stays so is told seldom."""
        counts = self.context.loop.counts
        before, self._seen = self._seen, counts.total() - counts["timer"]
        self._quiet += 1
        if self._seen != before:
            self._quiet, self._idle_at = 0, _IDLE
        elif self._quiet == self._idle_at:
            self._idle_at *= 4
            self.service.idle()

    def serve(self, envelope: wire.Envelope) -> None:
        """One control message."""
        deadline = self.context.loop.now() + envelope.deadline if envelope.deadline else 0.0
        reply = Reply(self.context, self.link, envelope.request, deadline)
        body = envelope.body
        try:
            if isinstance(body, messages.Ping):
                reply.ok()
            elif isinstance(body, messages.Stop):
                reply.ok()
                self.stop(body.grace)
            elif body is not None:
                self.service.handle(body, reply)
        except CrumbleError as error:
            reply.error(error)
        except Exception as error:  # noqa: BLE001  one bad request must not end a VM
            log.exception("request failed", error, request=body.wire_type)
            reply.error(
                InternalError(f"{self.context.name} failed: {error!r}.", code="service.bug")
            )

    def stop(self, grace: float) -> None:
        """Ends the loop in an orderly way."""
        try:
            self.service.stop(grace)
        finally:
            self.context.loop.stop()


def service_main(
    kind: type[Service[C]],
    config: C | None = None,
    *,
    name: str = "",
    fds: Mapping[str, int] | None = None,
    layers: dict[str, str] | None = None,
) -> int:
    """Runs a service to its end; returns the process's exit status.

    Without `config`: under the supervisor, by the environment in this module's head. layers: what `isolate` gave.
    """
    loop = EventLoop()
    supervised = config is None
    name = (os.environ.get("CRUMBLE_NAME", "") if supervised else name) or kind.name
    log.setup(name)
    log.debug("begun")
    layers = kind.isolate() if layers is None else layers
    link = LateLink(_connect if supervised else NoLink)
    status = 0
    try:
        context = Context(name, _inherited_fds() if supervised else fds or {}, loop, link)
        if supervised:
            importlib.import_module("crumble_common.link")  # while files can be read
        runner = _Runner(kind, context, link, layers)
        _stop_on_signals(loop, runner, supervised)
        runner.live(_read_config(kind, context) if config is None else config)
    except CrumbleError as error:
        status = _report(error, link, name)
    except OSError as error:
        problem = HostError(
            f"{name} failed: {error}.",
            code="host.os",
            hint="Free what it says is lacking, and try again.",
        )
        log.exception("failed", error)
        status = _report(problem, link, name)
    except Exception as error:  # noqa: BLE001  the last resort: reported, never shown as a stack
        log.exception("failed", error)
        status = _report(
            InternalError(f"{name} failed: {error!r}.", code="service.bug"), link, name
        )
    finally:
        link.close()
        loop.close()
    return status


def _connect() -> Link:
    from crumble_common.link import ControlLink

    return ControlLink(*(os.environ.get(f"CRUMBLE_{key}", "") for key in ControlLink.FROM))


def _inherited_fds() -> dict[str, int]:
    given = json.loads(os.environ.get("CRUMBLE_FDS", "{}"))
    return {str(key): int(value) for key, value in given.items()}


def _read_config(kind: type[Service[C]], context: Context) -> C:
    """What the supervisor wants: the message in the inherited fd "config"."""
    if "config" not in context.fds:
        raise UsageError(
            f"{context.name} was started without a configuration.",
            hint="See its --help for its options.",
        )
    with open(context.fds.pop("config"), "rb") as file:
        try:
            config = wire.decode(file.read(wire.MAX_FRAME + 1)).body
        except wire.WireError as error:
            raise InternalError(f"{context.name} got a bad configuration: {error}.") from None
    if not isinstance(config, kind.config_type):
        raise InternalError(f"{context.name} got the configuration of another service.")
    return cast(C, config)


def _stop_on_signals(loop: EventLoop, runner: _Runner[C], supervised: bool) -> None:
    def stop(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
        loop.call_soon_threadsafe(lambda: runner.stop(_STOP_GRACE))

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
        # Under the supervisor ^C is the client's business.
        signal.signal(signal.SIGINT, signal.SIG_IGN if supervised else stop)


def _report(error: CrumbleError, link: LateLink, name: str) -> int:
    log.error("failed", fault=error.fault, code=error.code, message=error)
    failed = messages.Failed(name, error.fault, error.code, error.message, error.hint)
    link.send(wire.Envelope(failed))
    link.connect()
    return 1
