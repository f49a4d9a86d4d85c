"""Init and agent as PID 1 of a real Linux, under QEMU."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble_vmm.guest import protocol
from crumble_vmm.guest.protocol import ToHost
from framework import assets
from framework.agent_guest import APPLETS, AgentGuest
from framework.layers import Special, write_layer

pytestmark = [pytest.mark.guest, pytest.mark.slow]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The socket of an fsd that serves a small root file system; QEMU's end ends it."""
    program = Special(assets.busybox(), mode=0o755)
    links = dict.fromkeys(APPLETS.split(), "busybox")
    write_layer(tmp_path, "root", {"bin": {"busybox": program, **links}, "etc": {}})
    path = tmp_path / "fsd.sock"
    layer = f"{tmp_path}/root.index:{tmp_path}/root.contents"
    fsd = subprocess.Popen(
        [sys.executable, "-m", "crumble_fsd", "--socket-path", str(path), "--layer", layer]
    )
    deadline = time.monotonic() + 20
    while not path.exists():
        assert fsd.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield path
    fsd.kill()
    fsd.wait()


def shell(guest: AgentGuest, script: str, **fields: object) -> str:
    fields.setdefault("env", [b"PATH=/bin"])
    out, err, status = guest.host.run("sh", "-c", script, **fields)
    assert (err, status) == (b"", (0, 0)), (out, err, status)
    return out.decode()


def test_initramfs_as_root(tmp_path: Path) -> None:
    modules = {"virtio_mmio": assets.kernel().module("virtio_mmio")}
    with AgentGuest(tmp_path, modules=modules, serial="virtio-serial-device") as guest:
        phases = guest.ready()
        assert [name for name, _ in phases] == ["init", "modules", "root", "port", "agent"]
        assert sorted(start for _, start in phases) == [start for _, start in phases]
        assert "virtio_mmio" in shell(guest, "cat /proc/modules")
        mounts = dict(line.split()[1:3] for line in shell(guest, "cat /proc/mounts").splitlines())
        assert mounts == {
            "/": "rootfs", "/dev": "devtmpfs", "/proc": "proc", "/sys": "sysfs",
            "/dev/pts": "devpts", "/dev/shm": "tmpfs", "/dev/mqueue": "mqueue",
            "/sys/fs/cgroup": "cgroup2", "/run": "tmpfs",
        }  # fmt: skip
        assert shell(guest, "ifconfig lo | grep -c 127.0.0.1") == "1\n"
        assert shell(guest, "echo a > /dev/stdout; readlink /dev/fd") == "a\n/proc/self/fd\n"
        assert guest.power_off() < 20


def test_the_machine_is_set_up_by_the_host(tmp_path: Path) -> None:
    with AgentGuest(tmp_path) as guest:
        guest.ready()
        host = guest.host
        assert shell(guest, "hostname") == "crumble\n"
        host.send(protocol.encode_setup(b"guest.example", 1_700_000_000 * 10**9, bytes(64)))
        assert shell(guest, "hostname; date +%s").startswith("guest.example\n170000000")
        assert int(shell(guest, "cat /proc/sys/kernel/random/entropy_avail")) >= 256
        host.send(protocol.encode_setup(b"", 0, b""))
        assert shell(guest, "hostname; date +%s").startswith("guest.example\n170000000")
        assert not host.logs()


def test_pid_1_reaps_and_its_files_are_its_own(tmp_path: Path) -> None:
    with AgentGuest(tmp_path) as guest:
        guest.ready()
        shell(guest, "for i in 1 2 3 4 5; do (sleep 0.2 & exit) & done; wait")
        host = guest.host
        deadline = time.monotonic() + 20
        while "[sleep]" in (listed := shell(guest, "ps")) or "sleep 0.2" in listed:
            assert time.monotonic() < deadline, listed
        targets = shell(guest, "ls -l /proc/1/fd | grep -c /dev/null; ulimit -n; ulimit -Hn")
        assert targets == "4\n1024\n1048576\n"
        # Nobody but the host ends PID 1.
        shell(guest, "kill -TERM 1; kill -KILL 1")
        host.ping()
        out, _, _ = host.run("sh", "-c", "tty; stty size", tty=True, env=[b"PATH=/bin"])
        assert out == b"/dev/pts/0\r\n24 80\r\n"
        assert shell(guest, "id -u; id -g; id -G", uid=12, gid=34, groups=[56]) == "12\n34\n34 56\n"


def test_much_data_both_ways(tmp_path: Path) -> None:
    with AgentGuest(tmp_path) as guest:
        guest.ready()
        host = guest.host
        data = bytes(range(256)) * 4000
        channel = host.spawn("sha256sum", stdin=True, env=[b"PATH=/bin"])
        host.feed(channel, data)
        assert host.exit(channel) == (0, 0)
        assert host.output(channel).split()[0].decode() == hashlib.sha256(data).hexdigest()
        channels = [
            host.spawn("sh", "-c", f"seq {n} {n + 30000}", env=[b"PATH=/bin"]) for n in range(8)
        ]
        for n, channel in enumerate(channels):
            assert host.exit(channel, 60) == (0, 0)
            expected = "".join(f"{value}\n" for value in range(n, n + 30001))
            assert host.output(channel).decode() == expected


def test_virtiofs_root(tmp_path: Path, root: Path) -> None:
    with AgentGuest(tmp_path, root=root, cmdline="crumble.root=root") as guest:
        guest.ready()
        mounts = shell(guest, "cat /proc/mounts").splitlines()
        kinds = [line.split()[1:3] for line in mounts]
        assert ["/", "virtiofs"] in kinds
        assert {"/dev", "/proc", "/sys", "/run", "/dev/pts"} <= {mount for mount, _ in kinds}
        assert shell(guest, "stat -c '%a' /tmp /run/lock /run /dev") == "1777\n1777\n755\n755\n"
        assert shell(guest, "ls /") == "bin\ndev\netc\nproc\nrun\nsys\ntmp\n"
        assert guest.host.write_file(b"/etc/file", b"written\n", mode=0o600) == 0
        assert shell(guest, "cat /etc/file; stat -c %a /etc/file; pwd") == "written\n600\n/\n"
        shell(guest, "echo more >> /etc/file; touch /tmp/x; ls /dev/shm")
        assert guest.host.read_file(b"/etc/file").payload == b"written\nmore\n"
        assert guest.power_off() < 20


def test_power_off_waits_for_processes_but_not_forever(tmp_path: Path) -> None:
    with AgentGuest(tmp_path) as guest:
        guest.ready()
        host = guest.host
        env = [b"PATH=/bin"]
        stubborn = "trap '' TERM; echo up; while :; do sleep 0.1; done"
        gentle = "trap 'echo leaving; exit 3' TERM; echo up; while :; do sleep 0.1; done"
        channels = [host.spawn("sh", "-c", text, env=env) for text in (stubborn, gentle)]
        for channel in channels:
            host.until(lambda channel=channel: host.output(channel))  # type: ignore[misc]  # bound now
        begin = time.monotonic()
        host.send(protocol.encode_shutdown(1500))
        host.until(lambda: host.closed, 60)
        assert 1 < time.monotonic() - begin < 30
        assert host.exit(channels[1]) == (3, 0)
        assert host.output(channels[1]) == b"up\nleaving\n"
        assert host.exit(channels[0]) == (0, signal.SIGKILL)


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with AgentGuest(tmp_path, cmdline="crumble.root=missing") as guest:
        host = guest.host
        host.until(lambda: host.closed, 120)
        console = guest.ended()
        expected = f"{protocol.INIT_FAILED}cannot mount the root, virtio-fs tag missing (error 22)."
        assert expected in console
        assert not host.of(0, ToHost.READY)


def test_a_port_that_is_not_there(tmp_path: Path) -> None:
    modules = {"broken": b"this is no module"}
    with AgentGuest(tmp_path, port_name="other", modules=modules) as guest:
        console = guest.ended()
        expected = f"{protocol.INIT_FAILED}there is no virtio-console port crumble.agent."
        assert expected in console
