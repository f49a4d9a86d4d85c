"""What the agent's processes start with: environment, directory, user, limits, arguments; what cannot start.

The agent is the guests' program, run as an ordinary process: natively, and as riscv64 under qemu-user.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble_vmm.guest.protocol import Stage
from framework.agent_process import AgentHost, agent

root_only = pytest.mark.skipif(os.getuid() != 0, reason="needs root to change users")


@pytest.fixture(params=["amd64", "arm64", "riscv64"])
def host(request: pytest.FixtureRequest) -> Iterator[AgentHost]:
    with agent(request.param) as found:
        yield found


def test_environment_and_directory(host: AgentHost, tmp_path: Path) -> None:
    env = [b"PATH=/usr/bin:/bin", b"NAME=value with space", b"EMPTY="]
    out, _, status = host.run(
        "sh",
        "-c",
        "pwd; env | sort; umask; echo $0 $@",
        "zero",
        "a b",
        env=env,
        cwd=str(tmp_path).encode(),
    )
    lines = out.decode().splitlines()
    assert status == (0, 0)
    assert lines[0] == str(tmp_path)
    assert [line for line in lines[1:-2] if not line.startswith(("PWD", "_", "OLDPWD", "SHLVL"))] == [
        "EMPTY=", "NAME=value with space", "PATH=/usr/bin:/bin"
    ]  # fmt: skip
    assert lines[-2:] == ["0022", "zero a b"]


def test_a_clean_slate(host: AgentHost) -> None:
    out, _, _ = host.run(
        "sh",
        "-c",
        "ls /proc/self/fd; grep -E 'Sig(Blk|Ign)' /proc/self/status; cat /proc/$$/stat",
    )
    words = out.decode().split()
    assert words[:4] == ["0", "1", "2", "3"]  # 3 is ls's own
    # The agent under test is not PID 1: what whoever runs the tests ignores stays ignored.
    status = Path("/proc/self/status").read_text()
    (mine,) = [int(line[7:], 16) for line in status.splitlines() if line.startswith("SigIgn:")]
    for restored in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGQUIT):  # by who started it
        mine &= ~(1 << restored - 1)
    assert words[4:8] == ["SigBlk:", "0" * 16, "SigIgn:", f"{mine:016x}"]
    pid, _, _, _, group, session = words[8:14]  # proc(5): pid comm state ppid pgrp session
    assert pid == group == session


@root_only
def test_limits(host: AgentHost) -> None:
    out, _, _ = host.run("sh", "-c", "ulimit -Sn; ulimit -Hn")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert out.split() in ([b"1024", b"1048576"], [b"1024", str(hard).encode()])


@root_only
def test_user_and_groups(host: AgentHost, tmp_path: Path) -> None:
    out, _, _ = host.run("id", uid=1234, gid=567, groups=[8, 9])
    assert b"uid=1234" in out and b"gid=567" in out
    assert out.split(b"groups=")[1].replace(b"\n", b"").split(b",")[0].startswith(b"567")
    out, _, _ = host.run("id", "-G", uid=1234, gid=567, groups=list(range(1000, 1100)))
    assert out.split() == [b"567", *(str(n).encode() for n in range(1000, 1100))]
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    out, _, status = host.run("pwd", uid=1234, cwd=str(private).encode())
    assert status == (0, 0)
    out, _, _ = host.run("sh", "-c", "tty; test -w $(tty) && echo mine", uid=1234, tty=True)
    assert b"mine" in out


def test_where_programs_are_looked_for(host: AgentHost, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, text in ((one, "one"), (two, "two")):
        folder.mkdir()
        (folder / "tool").write_text(f"#!/bin/sh\necho {text}\n")
        (folder / "tool").chmod(0o755)
    (one / "tool").chmod(0o644)
    path = f"PATH=/nowhere:{one}:{two}".encode()
    # Found but not executable: the search goes on.
    assert host.run("tool", env=[path])[0] == b"two\n"
    assert host.failure("tool", env=[f"PATH={one}".encode()]) == (Stage.EXEC, errno.EACCES)
    assert host.failure("tool", env=[b"PATH=/nowhere"]) == (Stage.EXEC, errno.ENOENT)
    assert host.run("./tool", cwd=str(two).encode())[0] == b"two\n"
    assert host.run("tool", env=[b"PATH=/nowhere:"], cwd=str(two).encode())[0] == b"two\n"
    assert host.run("true", env=[])[2] == (0, 0)


def test_what_cannot_be_executed(host: AgentHost, tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("#!/no/such/interpreter\n")
    (tmp_path / "bad").chmod(0o755)
    assert host.failure(str(tmp_path / "bad")) == (Stage.EXEC, errno.ENOENT)
    (tmp_path / "foreign").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(100))
    (tmp_path / "foreign").chmod(0o755)
    assert host.failure(str(tmp_path / "foreign")) == (Stage.EXEC, errno.ENOEXEC)
    assert host.failure(str(tmp_path)) == (Stage.EXEC, errno.EACCES)
    assert host.failure("/etc/passwd") == (Stage.EXEC, errno.EACCES)
    assert host.failure("/etc/passwd/x") == (Stage.EXEC, errno.ENOTDIR)
    assert host.failure("no-such-program") == (Stage.EXEC, errno.ENOENT)
    assert host.failure("") == (Stage.EXEC, errno.ENOENT)
    assert host.failure("true", cwd=b"/no/such") == (Stage.CHDIR, errno.ENOENT)
    assert host.failure("true", cwd=b"/etc/passwd") == (Stage.CHDIR, errno.ENOTDIR)
    assert host.failure("x" * 5000) == (Stage.EXEC, errno.ENOENT)


def test_a_script_without_interpreter_line_is_given_to_the_shell(
    host: AgentHost, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("echo shell $1 $2\n")
    script.chmod(0o755)
    assert host.run(str(script), "a", "b c")[0] == b"shell a b c\n"


def test_many_arguments(host: AgentHost) -> None:
    """More than a frame holds: SPAWN in pieces."""
    words = [f"word-{n:05d}" for n in range(7000)]
    out, _, status = host.run("sh", "-c", "echo $# $7000", *words)
    assert (out.split()[0], status) == (b"6999", (0, 0))
    large = "x" * 120_000
    assert host.run("sh", "-c", "echo ${#1} ${#2}", "sh", large, large)[0] == b"120000 120000\n"
