"""Service processes as the supervisor sees them: real ones, forked; the clock is a fake one."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from crumble.supervisor import services as module
from crumble.supervisor.services import ServiceProcess, Services
from crumble.supervisor.spawner import Spawner
from crumble.supervisor.table import Row
from crumble_common.errors import CrumbleError, GuestError, InternalError, UsageError
from crumble_common.eventloop import EventLoop
from crumble_common.messages.vm import ConsoleOutput
from framework.echo_service import Echo, EchoConfig

ROW = Row("echo", "framework.echo_service:EchoService", "vm")


class Host:
    """What of a supervisor a service needs."""

    def __init__(self, where: Path) -> None:
        self.now = 1000.0
        self.events: list[Any] = []
        self.runtime = where / "run"
        (self.runtime / "logs").mkdir(parents=True)
        self.loop = EventLoop(lambda: self.now)
        self.spawner = Spawner(self.runtime, where / "fork.log", ("framework.echo_service",))
        self.spawner.attach(self.loop, lambda: None)
        self.context: zmq.Context[Any] = zmq.Context()
        self.services = Services(self.loop, self.context, self.runtime, lambda: self.spawner)

    def start(self, **config: Any) -> ServiceProcess:
        return self.services.start(ROW, "echo.a", EchoConfig(**config), self.events.append)

    def running(self) -> ServiceProcess:
        process = self.start()
        self.until(lambda: process.state == "running")
        return process

    def until(self, condition: Callable[[], object], tick: float = 0.0) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            self.loop.step(0.02)
            self.now += tick

    def ended(self, process: ServiceProcess) -> CrumbleError:
        self.until(lambda: process.ended.done, tick=0.1)
        return process.ended.result()

    def close(self) -> None:
        self.spawner.close()
        self.services.close()
        self.loop.close()
        self.context.destroy(0)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.close()


def test_it_is_handed_fds_while_it_runs_in_its_sandbox(host: Host) -> None:
    process = host.running()
    assert process.info().sandbox["seccomp"] == "on"
    fd = os.memfd_create("given")
    os.write(fd, b"from the supervisor")
    os.lseek(fd, 0, os.SEEK_SET)
    process.give("capture", fd)
    os.close(fd)
    answers = [process.request(Echo(f"take {name}")) for name in ("capture", "capture")]
    host.until(lambda: all(answer.done for answer in answers))
    assert answers[0].result() == Echo("from the supervisor")
    with pytest.raises(InternalError, match="was not handed over"):
        answers[1].result()
    process.kill()
    host.ended(process)
    with pytest.raises(InternalError):
        process.give("late", 0)


def test_requests_are_answered_and_events_come(host: Host) -> None:
    process = host.running()
    assert process.info().state == "running"
    answers = [process.request(Echo(text)) for text in ("a", "event first", "usage error")]
    host.until(lambda: all(answer.done for answer in answers))
    assert answers[0].result() == Echo("a")
    assert host.events == [ConsoleOutput("vm", b"event")]
    with pytest.raises(UsageError, match="Not that"):
        answers[2].result()


def test_what_is_asked_before_it_is_ready_is_answered_then(host: Host) -> None:
    process = host.start()
    answers = [process.request(Echo(text)) for text in ("first", "second")]
    assert process.state == "starting"
    host.until(lambda: all(answer.done for answer in answers))
    assert [answer.result().text for answer in answers] == ["first", "second"]


def test_a_failure_at_start_is_why_it_ended(host: Host) -> None:
    process = host.start(fail="open")
    asked = process.request(Echo("never"))
    error = host.ended(process)
    with pytest.raises(CrumbleError):
        asked.result()
    assert isinstance(error, UsageError)
    assert (error.code, error.hint) == ("test.told", "Do not.")
    with pytest.raises(UsageError):
        process.ready.result()


def test_a_failure_later_is_what_waiting_requests_get(host: Host) -> None:
    process = host.running()
    first = process.request(Echo("fail"))
    assert isinstance(host.ended(process), GuestError)
    assert first.result() == Echo("fail")
    with pytest.raises(GuestError, match="panicked"):
        process.request(Echo("late")).result()


def test_a_killed_service_fails_what_waits_for_it(host: Host) -> None:
    process = host.running()
    os.kill(process.pid, signal.SIGSTOP)
    answer = process.request(Echo("never"))
    os.kill(process.pid, signal.SIGKILL)
    error = host.ended(process)
    assert error.message == "echo.a was killed by signal 9 (SIGKILL)."
    with pytest.raises(InternalError):
        answer.result()


def test_a_service_whose_memory_is_gone_is_told_from_one_that_was_killed(host: Host) -> None:
    process = host.running()
    os.kill(process.pid, signal.SIGBUS)
    error = host.ended(process)
    assert (error.code, error.fault) == ("host.memory", "host")
    assert error.message.startswith("echo.a touched memory")


def test_a_bug_is_told_with_the_end_of_the_log(host: Host) -> None:
    process = host.start(fail="bug in start")
    error = host.ended(process)
    assert (error.fault, error.code) == ("crumble", "service.bug")


def test_stop_is_polite_and_then_is_not(host: Host) -> None:
    process = host.running()
    process.stop(5)
    host.ended(process)
    assert process.child is not None
    assert process.child.status == 0
    process = host.running()
    os.kill(process.pid, signal.SIGSTOP)
    process.stop(5)
    host.ended(process)
    assert process.child is not None
    assert process.child.status == -signal.SIGKILL


def test_a_service_that_is_silent_too_long_is_killed(host: Host) -> None:
    process = host.running()
    os.kill(process.pid, signal.SIGSTOP)
    host.until(lambda: process.child and process.child.status is not None, tick=1)
    assert host.ended(process).code == "service.stuck"


def test_after_a_pause_of_our_own_nobody_is_blamed(host: Host) -> None:
    process = host.running()
    host.now += 10_000
    for _ in range(10):
        host.loop.step(0.02)
    assert process.state == "running"
    answer = process.request(Echo("still there"))
    host.until(lambda: answer.done)


def test_a_service_that_does_not_become_ready_is_killed(host: Host) -> None:
    process = host.start()
    host.until(lambda: process.pid)
    os.kill(process.pid, signal.SIGSTOP)
    host.until(lambda: process.ready.done, tick=1)
    with pytest.raises(InternalError, match="did not start within 60 s"):
        process.ready.result()
    host.ended(process)


def test_a_log_that_grows_too_long_is_cut_while_it_is_written(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOG_LIMIT", 1000)
    process = host.running()
    path = host.services.log_path(process.name)
    with path.open("ab", buffering=0) as log:
        log.write(b"old" * 1000)
        host.until(lambda: path.stat().st_size < 1000, tick=1)
        log.write(b"new")
    assert path.read_bytes().endswith(b"new")
    assert path.with_suffix(".log.1").stat().st_size == 500
