"""Service processes as the supervisor sees them: start, requests, heartbeats, end."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import zmq

from crumble.supervisor.spawner import Child, Spawner
from crumble.supervisor.table import Row
from crumble.supervisor.tasks import Future, limited
from crumble_common import log, wire
from crumble_common.errors import BY_FAULT, CrumbleError, InternalError
from crumble_common.eventloop import EventLoop
from crumble_common.inbox import Outbox
from crumble_common.messages import service as messages
from crumble_common.messages.client import ServiceInfo
from crumble_common.vm_faults import memory_lost

# A service's failure is a message and its end is a report from elsewhere: which may come first, s.
_FAILED_MAY_FOLLOW = 0.5
# From spawn to Ready, s; a cold import on a loaded machine is slow.
_START_LIMIT = 60.0
# Without a heartbeat for this long a service is stuck, s.
_SILENCE = 45.0
_WATCH = 5.0
# What a service's log may grow to, bytes; the older part is dropped.
_LOG_LIMIT = 4 << 20

Event = Callable[[Any], None]


class ServiceProcess:
    """One process of a service. Everything is called in the supervisor's loop.

    ready: its Ready, or the error. ended: why it ended. state: "starting", "running", "ended". called: what it calls itself.
    """

    def __init__(self, owner: Services, row: Row, name: str, on_event: Event) -> None:
        self.row = row
        self.name = self.called = name
        self.identity = f"{name}-{secrets.token_hex(4)}".encode()
        self.state = "starting"
        self.ready: Future[messages.Ready] = Future()
        self.ended: Future[CrumbleError] = Future()
        self.sandbox: dict[str, str] = {}
        self.last_beat = owner.loop.now()
        self.child: Child | None = None
        self.outbox = Outbox()
        self._owner = owner
        self._on_event = on_event
        self._failure: CrumbleError | None = None
        self._expected = False
        self._numbers = itertools.count(1)
        self._requests: dict[int, Future[Any]] = {}
        # What is said to one that is not connected yet would be lost.
        self._early: list[wire.Envelope] = []

    @property
    def pid(self) -> int:
        """0 before it is known."""
        return self.child.pid if self.child else 0

    @property
    def busy(self) -> bool:
        """It runs, and something waits for its answer."""
        return self.state == "running" and bool(self._requests)

    def info(self) -> ServiceInfo:
        """This process, for `ps` and `doctor`."""
        return ServiceInfo(self.name, self.pid, self.state, sandbox=self.sandbox)

    def request(self, body: wire.Message, deadline: float = 0.0) -> Future[Any]:
        """Asks, as soon as it is ready; the future holds the reply's body, or the error."""
        answer: Future[Any] = Future()
        if self.state == "ended":
            answer.fail(self.ended.result())
            return answer
        number = next(self._numbers)
        self._requests[number] = answer
        self._post(wire.Envelope(body, request=number, deadline=deadline))
        return answer

    def send(self, event: wire.Message) -> None:
        """Sends an event; one that has ended does not get it."""
        if self.state != "ended":
            self._post(wire.Envelope(event))

    def _post(self, envelope: wire.Envelope) -> None:
        if self.state == "starting":
            self._early.append(envelope)
        else:
            self._owner.send(self.identity, envelope)

    def give(self, name: str, fd: int) -> None:
        """Hands an fd over, before the message that names it; it stays the caller's too."""
        if self.state == "ended":
            raise self.ended.result()
        self.outbox.send(name, fd)

    def rename(self, name: str, on_event: Event) -> None:
        """It is another VM's from now on."""
        with contextlib.suppress(OSError):
            self._owner.log_path(self.name).rename(self._owner.log_path(name))
        self.name, self._on_event = name, on_event

    def stop(self, grace: float) -> None:
        """Asks it to end; by force when it has not after `grace` seconds."""
        self._expected = True
        if self.state == "ended":
            return
        if self.state == "running" and grace > 0:
            self._owner.send(self.identity, wire.Envelope(messages.Stop(grace), request=1 << 30))
            self._owner.loop.call_later(grace, self.kill)
        else:
            self.kill()

    def may_end(self) -> None:
        """It will end by itself, soon: then nothing has gone wrong."""
        self._expected = True

    def kill(self) -> None:
        """Ends it at once."""
        if self.child is not None and self.state != "ended":
            self._expected = True
            self.child.signal(signal.SIGKILL)

    def fail(self, error: CrumbleError) -> None:
        """Ends it at once, with `error` as the reason."""
        self._failure = self._failure or error
        self.kill()

    def received(self, envelope: wire.Envelope) -> None:
        """One message of this service."""
        body = envelope.body
        if envelope.reply_to:
            self._replied(envelope)
        elif isinstance(body, messages.Ready):
            self.state, self.sandbox = "running", body.sandbox
            early, self._early = self._early, []
            for waiting in early:
                self._post(waiting)
            self.ready.set(body)
        elif isinstance(body, messages.Failed):
            kind = BY_FAULT.get(body.fault, InternalError)
            self._failure = kind(body.message, code=body.code, hint=body.hint)
        elif body is not None and not envelope.request:
            self._on_event(body)

    def exited(self, status: int) -> None:
        """The process is gone; `status` as subprocess.Popen.returncode."""
        known = self._failure is not None or self._expected or status < 0
        wait = 0.0 if known else _FAILED_MAY_FOLLOW
        self._owner.loop.call_later(wait, lambda: self._end(status))

    def _end(self, status: int) -> None:
        self.state = "ended"
        self.outbox.close()
        self._owner.forget(self)
        error = self._failure or self._describe(status)
        log.info("service ended", service=self.name, status=status, error=error)
        self.ready.fail(error)
        self.ended.set(error)
        requests, self._requests = self._requests, {}
        for answer in requests.values():
            answer.fail(error)

    def _describe(self, status: int) -> CrumbleError:
        number = max(0, -status)
        if number == signal.SIGBUS:
            return memory_lost(self.name, guest=self.row.name == "vmm")
        if number:
            how = f"was killed by signal {number} ({signal.Signals(number).name})"
        else:
            how = f"ended with status {status}"
        hint = "" if self._expected else self._owner.log_hint(self.name)
        return InternalError(
            f"{self.name} {how}.", code="service.died", hint=hint, service=self.name, signal=number
        )

    def _replied(self, envelope: wire.Envelope) -> None:
        answer = self._requests.pop(envelope.reply_to, None)
        if answer is None:
            return
        if envelope.error is not None:
            answer.fail(envelope.error)
        else:
            answer.set(envelope.body)


class Services:
    """All service processes, and the sockets they speak to."""

    def __init__(
        self,
        loop: EventLoop,
        context: zmq.Context[Any],
        where: Path,
        spawner: Callable[[], Spawner],
    ) -> None:
        self.loop = loop
        self._spawner = spawner
        self._where = where
        self._by_identity: dict[bytes, ServiceProcess] = {}
        self._router = context.socket(zmq.ROUTER)
        self._beats = context.socket(zmq.SUB)
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            self._router.setsockopt(option, 0)
        self._router.bind(f"ipc://{where}/services")
        self._beats.bind(f"ipc://{where}/heartbeats")
        self._beats.subscribe(b"")
        loop.add_socket(self._router, "service", self._serve)
        loop.add_socket(self._beats, "heartbeat", self._beat)
        self._watched = loop.now()
        self._timer = loop.call_later(_WATCH, self._watch)

    def __iter__(self) -> Any:
        return iter(tuple(self._by_identity.values()))

    def start(
        self,
        row: Row,
        name: str,
        config: wire.Message,
        on_event: Event,
        fds: Mapping[str, int] | None = None,
    ) -> ServiceProcess:
        """Spawns a service; wait for its `ready`. The fds stay the caller's."""
        config_fd = _config_fd(config)
        process = ServiceProcess(self, row, name, on_event)
        self._by_identity[process.identity] = process
        environment = {
            "CRUMBLE_CONTROL": f"ipc://{self._where}/services",
            "CRUMBLE_HEARTBEAT": f"ipc://{self._where}/heartbeats",
            "CRUMBLE_NAME": name,
            "CRUMBLE_IDENTITY": process.identity.decode(),
        }
        log_fd = os.open(self.log_path(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        given = {**(fds or {}), "config": config_fd, "inbox": process.outbox.theirs}
        try:
            process.child = self._spawner().spawn(
                name, row.entry, environment, given, log_fd, process.exited
            )
        except CrumbleError:
            process.outbox.close()
            self.forget(process)
            raise
        finally:
            process.outbox.handed_over()
            os.close(log_fd)
            os.close(config_fd)
        self._limit_start(process)
        return process

    def _limit_start(self, process: ServiceProcess) -> None:
        def late() -> CrumbleError:
            process.kill()
            return InternalError(
                f"{process.name} did not start within {_START_LIMIT:.0f} s.", code="service.late"
            )

        limited(self.loop, process.ready, _START_LIMIT, late).then(
            lambda outcome: _pass_error(outcome, process.ready)
        )

    def send(self, identity: bytes, envelope: wire.Envelope) -> None:
        """Queues a message for a service; one that has gone does not get it."""
        self._router.send_multipart([identity, wire.encode(envelope)])

    def forget(self, process: ServiceProcess) -> None:
        """Nothing is taken from it any more."""
        self._by_identity.pop(process.identity, None)

    def log_path(self, name: str) -> Path:
        """What a service has logged."""
        return self._where / "logs" / f"{name}.log"

    def log_hint(self, name: str) -> str:
        """What to tell a person about a service that died; its log would be gone otherwise."""
        return f"The end of its log: {tail}" if (tail := _complaint(self.log_path(name))) else ""

    def close(self) -> None:
        """Frees the sockets; every process must have ended."""
        self._timer.cancel()
        for socket in (self._router, self._beats):
            self.loop.remove_socket(socket)
            socket.close(0)

    def _serve(self) -> None:
        identity, *frames = self._router.recv_multipart(zmq.NOBLOCK)
        process = self._by_identity.get(identity)
        if process is None or len(frames) != 1:
            return
        try:
            process.received(wire.decode(frames[0]))
        except wire.WireError as error:
            log.warning("malformed message", service=process.name, problem=error)

    def _beat(self) -> None:
        try:
            beat = wire.decode(self._beats.recv(zmq.NOBLOCK)).body
        except wire.WireError as error:
            log.warning("malformed heartbeat", problem=error)
            return
        for process in self:
            if isinstance(beat, messages.Heartbeat) and process.called == beat.name:
                process.last_beat = self.loop.now()

    def _watch(self) -> None:
        """Kills what is stuck, cuts logs; after a pause of our own (^Z) everybody starts anew."""
        now = self.loop.now()
        paused = now - self._watched > 2 * _WATCH
        self._watched = now
        for process in self:
            if paused:
                process.last_beat = now
            elif process.state == "running" and now - process.last_beat > _SILENCE:
                log.error("service is stuck", service=process.name)
                process.fail(
                    InternalError(f"{process.name} stopped answering.", code="service.stuck")
                )
            _cut_log(self.log_path(process.name))
        self._timer = self.loop.call_later(_WATCH, self._watch)


def _config_fd(config: wire.Message) -> int:
    """A file in memory with the service's configuration, as one wire frame."""
    fd = os.memfd_create("config", os.MFD_CLOEXEC)
    os.write(fd, wire.encode(wire.Envelope(config)))
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _pass_error(outcome: Future[Any], target: Future[Any]) -> None:
    try:
        outcome.result()
    except CrumbleError as error:
        target.fail(error)


def _complaint(path: Path) -> str:
    """The last line of a log that says what is wrong, if one does."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4000))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    kept = [line for line in lines if line.strip()]
    if not any(line.startswith("Traceback") for line in kept):
        kept = [line for line in kept if line.split()[1:2] in (["error"], ["warning"])]
    return "".join(mark if mark.isprintable() else "?" for mark in kept[-1])[-300:] if kept else ""


def _cut_log(path: Path) -> None:
    """Keeps the younger half of a log that grew too long; its writer appends, and goes on."""
    try:
        if path.stat().st_size <= _LOG_LIMIT:
            return
        with path.open("r+b") as file:
            file.seek(-_LOG_LIMIT // 2, os.SEEK_END)
            path.with_suffix(".log.1").write_bytes(file.read())
            file.truncate(0)
    except OSError as error:
        log.warning("cannot cut log", path=path, error=error)
