"""A real service process, as its supervisor sees it: this test plays the supervisor."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from crumble_common import wire
from crumble_common.messages import service as messages
from crumble_common.messages.vm import ConsoleOutput
from framework.echo_service import Echo, EchoConfig

TESTS = Path(__file__).parents[2]


class Peer:
    """The supervisor's side of one service."""

    def __init__(self, where: Path) -> None:
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.beats = self.context.socket(zmq.SUB)
        self.router.bind(f"ipc://{where}/control")
        self.beats.bind(f"ipc://{where}/beats")
        self.beats.subscribe(b"")
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(TESTS),
            "CRUMBLE_CONTROL": f"ipc://{where}/control",
            "CRUMBLE_HEARTBEAT": f"ipc://{where}/beats",
            "CRUMBLE_NAME": "echo.a",
            "CRUMBLE_IDENTITY": "echo.a-1",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self, *arguments: str, fds: dict[str, int] | None = None) -> None:
        fds = fds or {}
        self.environment["CRUMBLE_FDS"] = json.dumps(fds)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "framework.echo_service", *arguments],
            env=self.environment,
            pass_fds=tuple(fds.values()),
            stderr=subprocess.PIPE,
        )

    def receive(self) -> wire.Envelope:
        assert self.router.poll(20_000), "the service says nothing"
        identity, frame = self.router.recv_multipart()
        assert identity == b"echo.a-1"
        return wire.decode(frame)

    def send(self, body: Any = None, **fields: Any) -> None:
        self.router.send_multipart([b"echo.a-1", wire.encode(wire.Envelope(body, **fields))])

    def ask(self, text: str) -> wire.Envelope:
        self.send(Echo(text), request=9)
        return self.receive()

    def configured(self, fds: dict[str, int] | None = None, **config: Any) -> None:
        """Spawns it with a configuration, as a supervisor does."""
        frame = wire.encode(wire.Envelope(EchoConfig()))
        raw = wire.msgpack.unpackb(frame)
        raw["b"] = config
        reader, writer = os.pipe()
        os.write(writer, wire.msgpack.packb(raw))
        os.close(writer)
        self.spawn(fds={**(fds or {}), "config": reader})
        os.close(reader)

    def start(self, **config: Any) -> None:
        self.configured(**config)
        assert isinstance(self.receive().body, messages.Ready)

    def ended(self) -> tuple[int, str]:
        assert self.process is not None
        _, text = self.process.communicate(timeout=20)
        return self.process.returncode, text.decode()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.context.destroy(0)


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    made = Peer(tmp_path)
    yield made
    made.close()


def test_it_starts_serves_and_stops(peer: Peer) -> None:
    peer.start()
    assert peer.ask("hello").body == Echo("hello")
    assert peer.beats.poll(20_000)
    beat = wire.decode(peer.beats.recv()).body
    assert isinstance(beat, messages.Heartbeat)
    assert beat.stats["loop.control"] >= 0
    peer.send(messages.Ping(), request=3)
    assert peer.receive() == wire.Envelope(messages.Ok(), reply_to=3)
    peer.send(messages.Stop(), request=4)
    assert peer.receive().reply_to == 4
    assert peer.ended()[0] == 0


def test_it_gets_its_fds_by_name(peer: Peer) -> None:
    reader, writer = os.pipe()
    peer.configured(fds={"out": writer}, fd="out")
    assert isinstance(peer.receive().body, messages.Ready)
    assert os.read(reader, 2) == b"hi"
    os.close(reader)
    os.close(writer)


def test_events_and_replies_keep_their_order(peer: Peer) -> None:
    peer.start()
    assert peer.ask("event first").body == ConsoleOutput("vm", b"event")
    assert peer.receive().body == Echo("event first")


def test_a_reply_may_come_from_a_thread(peer: Peer) -> None:
    peer.start()
    assert peer.ask("from a thread").body == Echo("from a thread")


@pytest.mark.parametrize(
    ("text", "fault", "code"),
    [("usage error", "caller", "test.that"), ("bug", "crumble", "service.bug")],
)
def test_a_failed_request_is_answered_and_the_service_goes_on(
    peer: Peer, text: str, fault: str, code: str
) -> None:
    peer.start()
    error = peer.ask(text).error
    assert error is not None
    assert (error.fault, error.code) == (fault, code)
    assert peer.ask("hello").body == Echo("hello")


def test_a_malformed_request_is_answered_and_changes_nothing(peer: Peer) -> None:
    peer.start()
    peer.router.send_multipart([b"echo.a-1", b"\xc1 nonsense"])
    frame = wire.msgpack.packb({"t": "test.echo", "id": 5, "b": {"text": 1}})
    peer.router.send_multipart([b"echo.a-1", frame])
    answer = peer.receive()
    assert answer.reply_to == 5
    assert answer.error is not None
    assert answer.error.code == "wire.malformed"
    assert peer.ask("hello").body == Echo("hello")


@pytest.mark.parametrize("stage", ["open", "start"])
def test_a_failure_at_start_is_reported_once_and_by_exit_status(peer: Peer, stage: str) -> None:
    peer.configured(fail=stage)
    failed = peer.receive().body
    assert failed == messages.Failed(
        "echo.a", "caller", "test.told", f"Told to fail in {stage}.", "Do not."
    )
    status, text = peer.ended()
    assert status == 1
    assert "Traceback" not in text


def test_a_bug_at_start_is_an_internal_error_and_its_stack_goes_to_the_log(peer: Peer) -> None:
    peer.configured(fail="bug in open")
    failed = peer.receive().body
    assert isinstance(failed, messages.Failed)
    assert (failed.fault, failed.code) == ("crumble", "service.bug")
    status, text = peer.ended()
    assert status == 1
    assert "KeyError" in text


def test_a_bad_configuration_is_reported(peer: Peer) -> None:
    peer.configured(nonsense=1)
    failed = peer.receive().body
    assert isinstance(failed, messages.Failed)
    assert "unknown fields" in failed.message


def test_without_a_configuration_it_says_so(peer: Peer) -> None:
    peer.spawn()
    failed = peer.receive().body
    assert isinstance(failed, messages.Failed)
    assert "without a configuration" in failed.message


def test_every_thread_of_a_service_is_confined(peer: Peer) -> None:
    """ZeroMQ's threads too: they must not have been started before Landlock."""
    peer.start()
    assert peer.process is not None
    threads = list(Path(f"/proc/{peer.process.pid}/task").iterdir())
    assert len(threads) > 1
    for thread in threads:
        status = dict(
            line.split(":\t", 1)
            for line in (thread / "status").read_text().splitlines()
            if ":\t" in line
        )
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert peer.ask("thread reads /etc/passwd").body == Echo("EACCES")


def test_it_may_fail_later_and_it_may_finish(peer: Peer) -> None:
    peer.start()
    assert peer.ask("fail").body == Echo("fail")
    failed = peer.receive().body
    assert isinstance(failed, messages.Failed)
    assert failed.code == "guest.panic"
    assert peer.ended()[0] == 1
    peer.environment["CRUMBLE_IDENTITY"] = "echo.a-1"
    peer.start()
    peer.send(Echo("finish"), request=2)
    assert peer.ended()[0] == 0


def test_sigterm_stops_it_and_sigint_does_not(peer: Peer) -> None:
    peer.start()
    assert peer.process is not None
    peer.process.send_signal(signal.SIGINT)
    assert peer.ask("hello").body == Echo("hello")
    peer.process.send_signal(signal.SIGTERM)
    assert peer.ended()[0] == 0


def test_alone_it_takes_its_configuration_from_its_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "framework.echo_service", "open"],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert "Told to fail in open. Do not." in done.stderr
