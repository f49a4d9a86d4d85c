"""PID 1 handed to a program while the agent goes on beside it, in a pid namespace of a test's own."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator

import pytest

from crumble_vmm.guest import protocol
from crumble_vmm.guest.protocol import Stage, ToHost
from framework.agent_process import AgentHost, agent
from framework.command import eventually

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="needs root to make a pid namespace")

# Says which signal it got, up to the one that asks for power off. Ends after the agent, which would end with it.
INIT = """
import os, signal, sys
asked = {1, 10, signal.SIGRTMIN + 3, signal.SIGRTMIN + 4}
signal.pthread_sigmask(signal.SIG_BLOCK, asked)
print("up", os.getpid(), os.umask(0), len(os.listdir("/proc/self/fd")), os.environ["A"], flush=True)
while (number := signal.sigwait(asked)) != signal.SIGRTMIN + 4:
    print("got", number, flush=True)
print("off", flush=True)
os.wait()
"""
PYTHON = ("python3", "-c", INIT)
ENV = [b"PATH=/usr/local/bin:/usr/bin:/bin", b"A=b"]


@pytest.fixture
def host() -> Iterator[AgentHost]:
    # Not under qemu, which has names and signals of its own.
    with agent("amd64", "unshare", "--pid", "--fork", "--mount-proc") as found:
        yield found


def start(host: AgentHost) -> int:
    channel = host.spawn(*PYTHON, init=True, env=ENV)
    assert host.wait(channel, ToHost.STARTED).argument == 1
    # 0 to 2, and what lists them: nothing of ours.
    host.until(lambda: host.output(channel).endswith(b"\n"))
    assert host.output(channel) == b"up 1 18 4 b\n"
    return channel


def end(host: AgentHost, channel: int) -> None:
    host.send(protocol.encode_shutdown(60_000))
    host.until(lambda: host.output(channel).endswith(b"off\n"))


def test_it_becomes_pid_1_and_processes_go_on(host: AgentHost) -> None:
    channel = start(host)
    show = "tr '\\0' ' ' </proc/$PPID/cmdline; readlink /proc/1/exe; cat /proc/$PPID/comm"
    output, _, status = host.run("sh", "-c", show)
    assert status == (0, 0)
    words = output.split()
    assert words[0].startswith(b"@"), "systemd kills it with what is left at shutdown"
    assert b"python" in words[-2] and words[-1] == b"crumble-agent"
    # Orphans are PID 1's; ours are still ours.
    assert host.run("sh", "-c", "(exit 3) & wait $!")[2] == (3, 0)
    host.send(protocol.encode_signal(channel, 10))
    host.until(lambda: b"got 10\n" in host.output(channel))
    assert host.failure(*PYTHON, init=True) == (Stage.SETUP, errno.EBUSY)
    end(host, channel)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE])
def test_what_ends_a_process_asks_pid_1_to_power_off(host: AgentHost, number: int) -> None:
    channel = start(host)
    host.send(protocol.encode_signal(channel, number))
    host.until(lambda: host.output(channel).endswith(b"off\n"))


def test_one_that_cannot_be_executed_changes_nothing(host: AgentHost) -> None:
    before = host.run("sh", "-c", "umask; ls /proc/$PPID/fd | wc -l")
    assert host.failure("/no/such/init", init=True) == (Stage.EXEC, errno.ENOENT)
    assert host.failure("/etc", init=True) == (Stage.EXEC, errno.EACCES)
    # Of one that failed, its last descriptor goes when it is reaped.
    eventually(
        lambda: host.run("sh", "-c", "umask; ls /proc/$PPID/fd | wc -l") == before, "it has more"
    )
    end(host, start(host))


def test_one_beside_other_processes_is_refused(host: AgentHost) -> None:
    other = host.spawn("sleep", "1000")
    host.wait(other, ToHost.STARTED)
    assert host.failure(*PYTHON, init=True) == (Stage.SETUP, errno.EBUSY)
    host.send(protocol.encode_signal(other, signal.SIGKILL))
    assert host.exit(other) == (0, signal.SIGKILL)
    end(host, start(host))


def test_an_agent_that_is_not_pid_1_has_nothing_to_hand_over() -> None:
    with agent("amd64") as host:
        assert host.failure(*PYTHON, init=True) == (Stage.SETUP, errno.EBUSY)
