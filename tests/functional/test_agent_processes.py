"""The agent's processes: started, fed, signalled and ended, as the host sees them.

The agent is the guests' program, run as an ordinary process: natively, and as riscv64 under qemu-user.
"""

from __future__ import annotations

import errno
import hashlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble_vmm.guest import protocol
from crumble_vmm.guest.protocol import Stage, ToGuest, ToHost
from framework.agent_process import AgentHost, agent


@pytest.fixture(params=["amd64", "arm64", "riscv64"])
def host(request: pytest.FixtureRequest) -> Iterator[AgentHost]:
    with agent(request.param) as found:
        yield found


@pytest.fixture
def native() -> Iterator[AgentHost]:
    with agent("amd64") as found:
        yield found


# -- output and exits -------------------------------------------------------------------------


def test_output_and_status(host: AgentHost) -> None:
    assert host.run("sh", "-c", "echo out; echo err >&2; exit 3") == (b"out\n", b"err\n", (3, 0))
    assert host.run("true") == (b"", b"", (0, 0))
    assert host.run("sh", "-c", "kill -SEGV $$") == (b"", b"", (0, signal.SIGSEGV))
    first = host.of(1)
    assert first[0].type == ToHost.STARTED
    assert first[0].argument > 1


def test_large_output_stays_within_credit(host: AgentHost) -> None:
    size, credit = 3_000_000, 100_000
    script = f"seq 1 2000000 | head -c {size}"
    channel = host.spawn("sh", "-c", script, credit=credit)
    host.until(lambda: len(host.output(channel)) == credit)
    host.pump(0.3)
    assert len(host.output(channel)) == credit
    got = credit
    while got < size:
        host.send(protocol.encode_credit(channel, 1, 70_001))
        target = min(got + 70_001, size)
        host.until(lambda target=target: len(host.output(channel)) >= target)  # type: ignore[misc]  # bound now
        got = target
        assert len(host.output(channel)) == got
    assert host.exit(channel) == (0, 0)
    expected = "".join(f"{n}\n" for n in range(1, 600_000))[:size].encode()
    assert host.output(channel) == expected


def test_a_stream_without_credit_does_not_stop_the_other(host: AgentHost) -> None:
    script = "head -c 200000 /dev/zero >&2; echo done"
    channel = host.spawn("sh", "-c", script, credit=1000)
    host.until(lambda: len(host.output(channel, 2)) == 1000)
    other = host.spawn("echo", "meanwhile")
    assert host.exit(other) == (0, 0)
    host.send(protocol.encode_credit(channel, 2, 1 << 20))
    assert host.exit(channel) == (0, 0)
    assert (host.output(channel), len(host.output(channel, 2))) == (b"done\n", 200_000)


def test_exit_waits_for_output_that_has_no_credit(host: AgentHost) -> None:
    channel = host.spawn("sh", "-c", "printf 0123456789", credit=4)
    host.until(lambda: host.output(channel) == b"0123")
    host.pump(0.5)
    assert not host.of(channel, ToHost.EXITED)
    host.send(protocol.encode_credit(channel, 1, 100))
    assert host.exit(channel) == (0, 0)
    assert host.output(channel) == b"0123456789"


def test_a_host_that_does_not_read_loses_nothing(native: AgentHost) -> None:
    size = 400_000
    channels = [
        native.spawn("sh", "-c", f"yes {n} | head -c {size}; echo end >&2") for n in range(10)
    ]
    time.sleep(0.5)  # everything between the agent and us fills up
    for number, channel in enumerate(channels):
        assert native.exit(channel) == (0, 0)
        assert native.output(channel) == (f"{number}\n".encode() * size)[:size]
        assert native.output(channel, 2) == b"end\n"


def test_a_descendant_that_keeps_the_output_open(host: AgentHost, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    script = f"(sleep 0.1; echo early; sleep 1; echo late && echo alive > {mark}) & echo first"
    begin = time.monotonic()
    channel = host.spawn("sh", "-c", script)
    assert host.exit(channel) == (0, 0)
    assert time.monotonic() - begin < 1
    assert host.output(channel) == b"first\nearly\n"
    # It goes on, and writing hurts it neither with SIGPIPE nor by blocking.
    deadline = time.monotonic() + 10
    while not (mark.exists() and mark.read_text()):
        assert time.monotonic() < deadline
        host.pump(0.05)
    assert host.of(channel)[-1].type == ToHost.EXITED


# -- input ------------------------------------------------------------------------------------


def test_input(host: AgentHost) -> None:
    channel = host.spawn("cat", stdin=True)
    host.feed(channel, b"one ", eof=False)
    host.until(lambda: host.output(channel) == b"one ")
    host.feed(channel, b"two")
    assert host.exit(channel) == (0, 0)
    assert host.output(channel) == b"one two"


def test_large_input_stays_within_credit(host: AgentHost) -> None:
    data = bytes(range(256)) * 8000
    channel = host.spawn("sha256sum", stdin=True)
    host.feed(channel, data)
    assert host.exit(channel) == (0, 0)
    assert host.output(channel).split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert host.taken(channel) <= len(data)


def test_a_process_that_does_not_read_holds_only_the_window(host: AgentHost) -> None:
    channel = host.spawn("sleep", "1000", stdin=True)
    # A pipe takes 64 KiB, the agent's ring as much again: then there is no more credit.
    for _ in range(2):
        host.send(protocol.encode_stdin(channel, bytes(protocol.STDIN_WINDOW)))
        host.ping()
        host.pump(0.2)
    assert host.taken(channel) == 65536
    host.send(protocol.encode_stdin(channel, b"beyond"))
    host.ping()
    assert any("beyond its credit" in line for line in host.logs())
    host.send(protocol.encode_signal(channel, signal.SIGKILL))
    assert host.exit(channel) == (0, signal.SIGKILL)


def test_input_nobody_reads_is_credited(host: AgentHost) -> None:
    channel = host.spawn("sh", "-c", "exec <&-; echo closed; read x <&1; sleep 1000", stdin=True)
    host.until(lambda: host.output(channel) == b"closed\n")
    host.feed(channel, bytes(300_000))
    host.until(lambda: host.taken(channel) == 300_000)
    host.send(protocol.encode_signal(channel, signal.SIGTERM))
    host.exit(channel)


def test_without_input_stdin_is_empty(host: AgentHost) -> None:
    assert host.run("cat") == (b"", b"", (0, 0))
    channel = host.spawn("sleep", "0.3")
    host.send(protocol.encode_stdin(channel, b"ignored"))
    assert host.exit(channel) == (0, 0)


def test_empty_input_ends(host: AgentHost) -> None:
    channel = host.spawn("cat", stdin=True)
    host.feed(channel, b"")
    assert host.exit(channel) == (0, 0)


# -- signals ----------------------------------------------------------------------------------


def test_signals_reach_the_whole_group(host: AgentHost, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    script = (
        f"(trap 'echo child > {mark}; exit' TERM; echo up; while :; do sleep 0.05; done) & wait"
    )
    channel = host.spawn("sh", "-c", script)
    host.until(lambda: host.output(channel))
    host.send(protocol.encode_signal(channel, signal.SIGTERM))
    assert host.exit(channel) == (0, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while not mark.exists():
        assert time.monotonic() < deadline
        host.pump(0.05)


def test_signals_that_cannot_be_sent(host: AgentHost) -> None:
    channel = host.spawn("sleep", "1000")
    host.wait(channel, ToHost.STARTED)
    for number in (0, 65, 1 << 31):
        host.send(protocol.encode_signal(channel, number))
    host.send(protocol.encode_signal(99, signal.SIGKILL))
    host.ping()
    assert host.logs() == [f"there is no signal {number}" for number in (0, 65, 1 << 31)]
    host.send(protocol.encode_signal(channel, signal.SIGHUP))
    assert host.exit(channel) == (0, signal.SIGHUP)


def test_a_signal_right_after_the_start(host: AgentHost) -> None:
    channel = host.spawn("sleep", "1000")
    host.send(protocol.encode_signal(channel, signal.SIGKILL))
    assert host.exit(channel) == (0, signal.SIGKILL)
    assert [frame.type for frame in host.of(channel)] == [ToHost.STARTED, ToHost.EXITED]


# -- many -------------------------------------------------------------------------------------


def test_a_hundred_at_once(host: AgentHost) -> None:
    channels = {}
    for n in range(100):
        script = f"read line; echo $line {n}; head -c {n * 1000} /dev/zero; exit {n}"
        channels[host.spawn("sh", "-c", script, stdin=True)] = n
    for channel in channels:
        host.send(protocol.encode_stdin(channel, b"hello\n", eof=True))
    for channel, n in channels.items():
        assert host.exit(channel) == (n, 0)
        assert host.output(channel) == f"hello {n}\n".encode() + bytes(n * 1000)


def test_a_full_table_is_refused_and_recovers(native: AgentHost) -> None:
    channels = [native.spawn("cat", stdin=True) for _ in range(protocol.MAX_PROCESSES)]
    for channel in channels:
        native.wait(channel, ToHost.STARTED)
    assert native.failure("true") == (Stage.SETUP, errno.EAGAIN)
    for channel in channels:
        native.send(protocol.encode_stdin(channel, b"x", eof=True))
    for channel in channels:
        assert native.exit(channel) == (0, 0)
    assert native.run("echo", "again")[0] == b"again\n"


def test_slots_kept_by_descendants_are_given_up(native: AgentHost) -> None:
    for _ in range(protocol.MAX_PROCESSES // 64 + 1):
        batch = [native.spawn("sh", "-c", "sleep 6 & exit 0") for _ in range(64)]
        for channel in batch:
            assert native.exit(channel) == (0, 0)
    assert native.run("echo", "still")[0] == b"still\n"


# -- the end ----------------------------------------------------------------------------------


def test_shutdown_lets_processes_end(host: AgentHost) -> None:
    script = "trap 'echo leaving; exit 5' TERM; echo up; while :; do sleep 0.05; done"
    gentle = host.spawn("sh", "-c", script)
    host.until(lambda: host.output(gentle))
    stubborn = host.spawn("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    host.until(lambda: host.output(stubborn))
    host.send(protocol.encode_shutdown(700))
    assert host.exit(gentle) == (5, 0)
    assert host.output(gentle) == b"up\nleaving\n"
    assert host.failure("true") == (Stage.SETUP, errno.ESHUTDOWN)
    assert host.exit(stubborn) == (0, signal.SIGKILL)
    host.until(lambda: host.closed)


def test_shutdown_of_nothing_is_immediate(host: AgentHost) -> None:
    begin = time.monotonic()
    host.send(protocol.encode_shutdown(60_000))
    host.until(lambda: host.closed)
    assert time.monotonic() - begin < 10


def test_when_the_host_leaves_processes_end(tmp_path: Path) -> None:
    with agent("amd64") as host:
        channel = host.spawn("sh", "-c", "echo $$; exec sleep 1000")
        host.until(lambda: host.output(channel))
        pid = int(host.output(channel))
        host.spawn("cat", stdin=True)
    assert not Path(f"/proc/{pid}").exists()


def test_ready_and_ping(host: AgentHost) -> None:
    ready = host.frames[0]
    assert (ready.type, ready.argument) == (ToHost.READY, protocol.VERSION)
    assert [name for name, _ in protocol.decode_ready(ready.payload)] == ["agent"]
    frame = protocol.Frame(ToGuest.PING, argument=7, payload=b"p" * protocol.MAX_PAYLOAD)
    for _ in range(5):
        host.send(frame.encode())
    host.until(lambda: len(host.of(0, ToHost.PONG)) == 5)
    pong = host.of(0, ToHost.PONG)[-1]
    assert (pong.argument, pong.payload) == (7, frame.payload)
