"""The agent's terminals: size, keys, end of input, hanging up."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from crumble_vmm.guest import protocol
from framework.agent_process import AgentHost, agent


@pytest.fixture(params=["amd64", "arm64", "riscv64"])
def host(request: pytest.FixtureRequest) -> Iterator[AgentHost]:
    with agent(request.param) as found:
        yield found


def test_terminal(host: AgentHost) -> None:
    channel = host.spawn(
        "sh", "-c", "tty; stty size; stty -echo; cat; stty size", tty=True, rows=30, cols=100
    )
    host.until(lambda: b"30 100" in host.output(channel))
    host.send(protocol.encode_resize(channel, 40, 120))
    host.send(protocol.encode_stdin(channel, b"line\nhalf", eof=True))
    assert host.exit(channel) == (0, 0)
    lines = host.output(channel).decode().replace("\r", "").split("\n")
    assert lines[0].startswith("/dev/pts/")
    assert lines[-2].endswith("40 120")
    assert "line" in lines and any(line.startswith("half") for line in lines)
    assert not host.output(channel, 2)


def test_terminal_keys_send_signals(host: AgentHost) -> None:
    channel = host.spawn(
        "sh",
        "-c",
        "trap 'echo interrupted; exit 7' INT; echo up; while :; do sleep 0.1; done",
        tty=True,
    )
    host.until(lambda: b"up" in host.output(channel))
    host.send(protocol.encode_stdin(channel, b"\x03"))
    assert host.exit(channel) == (7, 0)
    assert b"interrupted" in host.output(channel)


def test_terminal_end_of_input_after_a_whole_line(host: AgentHost) -> None:
    channel = host.spawn("sh", "-c", "stty -echo; echo up; cat", tty=True)
    host.until(lambda: b"up" in host.output(channel))
    host.send(protocol.encode_stdin(channel, b"whole\n", eof=True))
    assert host.exit(channel) == (0, 0)
    assert host.output(channel) == b"up\r\nwhole\r\n"
    assert host.taken(channel) == len(b"whole\n")


def test_terminal_size_change_is_signalled(host: AgentHost) -> None:
    script = "trap 'stty size; exit 0' WINCH; echo up; while :; do sleep 0.1; done"
    channel = host.spawn("sh", "-c", script, tty=True)
    host.until(lambda: b"up" in host.output(channel))
    host.send(protocol.encode_resize(channel, 11, 22))
    assert host.exit(channel) == (0, 0)
    assert b"11 22" in host.output(channel)


def test_terminal_is_hung_up_when_its_leader_ends(host: AgentHost) -> None:
    begin = time.monotonic()
    channel = host.spawn("sh", "-c", "trap '' HUP; sleep 5 & echo bye", tty=True)
    assert host.exit(channel) == (0, 0)
    assert time.monotonic() - begin < 4
    assert host.output(channel) == b"bye\r\n"


def test_large_terminal_output(host: AgentHost) -> None:
    channel = host.spawn("sh", "-c", "stty -opost; seq 1 100000", tty=True)
    assert host.exit(channel) == (0, 0)
    assert host.output(channel).decode().split("\n")[:-1] == [str(n) for n in range(1, 100_001)]
