"""systemd as PID 1 of a real guest, of an image made of Debian's packages, with the agent beside it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.command import World, eventually, read_until
from framework.real_crumble import COMMAND, RealWorld, real_world

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]

# libkmod2: without it systemd-modules-load fails, and the system is "degraded".
IMAGE = "deb:trixie/systemd-sysv,dbus,libkmod2"
NAME = "sys"
UNIT = """\
[Service]
ExecStart=/bin/sh -c 'echo it writes; exec sleep 1000'
ExecStop=/bin/sh -c 'echo stopped in order >/dev/console'
"""
# Who is who, as a process of the agent's sees it.
WHO = "readlink /proc/1/exe; head -c1 /proc/$PPID/cmdline; readlink /proc/$PPID/exe; id -u"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[RealWorld]:
    done = subprocess.run([COMMAND, "pull", IMAGE], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no {IMAGE}: {done.stderr.strip()}")
    with real_world(tmp_path / "world") as made:
        made.up()
        yield made
        made.run("down", "-t", "0")


def execute(world: World, name: str, *words: str) -> str:
    done = world.run("exec", name, *words)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def systemd_is_up(world: World) -> bool:
    """Before systemd listens, its tools cannot wait."""
    state = world.run("exec", NAME, "systemctl", "is-system-running", "--wait").stdout.strip()
    if state in ("", "offline"):
        return False
    failed = world.run("exec", NAME, "systemctl", "--failed", "--no-pager").stdout
    assert state == "running", f"{state}: {failed}"
    return True


def test_an_init_that_cannot_power_off_is_cut_off(world: RealWorld) -> None:
    done = world.run("run", "-d", "--name", NAME, "--systemd=always", IMAGE, "sleep", "1000")
    assert done.returncode == 0, done
    assert execute(world, NAME, "cat", "/proc/1/comm") == "sleep\n"
    begin = time.monotonic()
    assert world.run("stop", "-t", "2", NAME).returncode == 0
    assert 2 <= time.monotonic() - begin < 2 + 5, "by the agent, before the host's patience ends"


def test_systemd_is_pid_1(world: RealWorld) -> None:
    """Its whole life: boot, a unit, its journal, a copy of the VM, and the end by a signal to `run`."""
    run = world.start("run", "-t", "--name", NAME, IMAGE, "/sbin/init", "--show-status=true")
    read_until(run.stdout, b"Welcome to ")
    eventually(lambda: systemd_is_up(world), "systemd does not come up")

    who = execute(world, NAME, "sh", "-c", WHO)
    assert who == "/usr/lib/systemd/systemd\n@/init (deleted)\n0\n", "the agent lives beside it"
    route = execute(world, NAME, "cat", "/proc/net/route")
    assert "eth0\t00000000\t" in route, "the network is as we made it"

    create = "cat >/etc/systemd/system/ours.service"
    done = world.run("exec", "-i", NAME, "sh", "-c", create, data=UNIT.encode())
    assert done.returncode == 0, done
    execute(world, NAME, "systemctl", "start", "ours")
    assert execute(world, NAME, "systemctl", "is-active", "ours") == "active\n"
    assert "it writes" in execute(world, NAME, "journalctl", "--no-pager", "-u", "ours")
    status = world.run("exec", NAME, "systemctl", "is-active", "none").returncode
    assert status == 4, "exit statuses are told: there is no such unit"
    done = world.run("run", "--systemd=never", IMAGE, "/sbin/init")
    assert done.returncode == 1 and "init" in done.stderr, "it knows that it is not PID 1"
    assert "Welcome to " in world.run("logs", NAME).stdout, "what goes to /dev/console"

    assert world.run("fork", "--name", "copy", NAME).returncode == 0
    assert execute(world, "copy", "systemctl", "is-active", "ours") == "active\n"
    begin = time.monotonic()
    assert world.run("stop", "-t", "60", "copy").returncode == 0
    assert time.monotonic() - begin < 60, "it was asked, and ended by itself"

    run.send_signal(signal.SIGTERM)
    output, errors = run.communicate(timeout=60)
    assert (run.returncode, errors) == (0, b"")
    assert b"stopped in order" in output and b"poweroff.target" in output
