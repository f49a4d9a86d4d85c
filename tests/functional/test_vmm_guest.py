"""A stock Linux kernel on the soft CPU, its root on virtio-fs, commands through the agent."""

import hashlib
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crumble_common.errors import CrumbleError, UsageError
from crumble_common.messages import vm as messages
from crumble_common.messages.vm import (
    ConsoleOutput,
    ProcessCredit,
    ProcessExit,
    ProcessOutput,
    ProcessStart,
    ProcessStarted,
    VirtioFs,
    VmConfig,
    VmEvent,
)
from framework.assets import kernel
from framework.guest_root import VIRTIOFSD, fsd, make_root, virtiofsd
from framework.guest_vm import GuestVm

pytestmark = [pytest.mark.guest, pytest.mark.slow]
MIB = 1 << 20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("root"))


def config(**fields: Any) -> VmConfig:
    files = kernel()
    made = VmConfig(
        vm="vm1",
        kernel=str(files.image),
        memory=256 * MIB,
        modules=[str(path) for path in files.modules],
        hostname="box",
        filesystems=[VirtioFs("root", "root_fs")],
    )
    return replace(made, **fields)


@pytest.fixture(scope="module")
def vm(root: Path) -> Iterator[GuestVm]:
    """One VM with two CPUs for all tests that leave it as it was."""
    with fsd(root) as (sock, _), GuestVm(config(cpus=2), {"root_fs": sock}) as made:
        made.wait(VmEvent, lambda event: event.kind == "agent_ready")
        yield made


class Run:
    """A process in the guest, and what it did."""

    def __init__(self, vm: GuestVm, *argv: str, **fields: Any) -> None:
        self.vm = vm
        answer = vm.ask(ProcessStart(list(argv), **fields))
        assert isinstance(answer, ProcessStarted)
        self.process, self.pid = answer.process, answer.pid

    def output(self, stream: int = 1) -> bytes:
        """Everything so far."""
        return b"".join(
            event.data
            for event in self.vm.events
            if isinstance(event, ProcessOutput)
            and (event.process, event.stream) == (self.process, stream)
        )

    def until(self, text: bytes) -> None:
        """Waits for something it prints."""
        self.vm.wait(ProcessOutput, lambda _event: text in self.output())

    def wait(self) -> int:
        """Its exit status."""
        return self.vm.wait(ProcessExit, lambda event: event.process == self.process).status

    def type(self, data: bytes, *, eof: bool = False) -> None:
        self.vm.tell(messages.ProcessInput(self.process, data, eof))


def run(vm: GuestVm, *argv: str, **fields: Any) -> str:
    process = Run(vm, *argv, **fields)
    assert process.wait() == 0, (process.output(1), process.output(2))
    return process.output().decode()


def test_both_streams_and_the_exit_status(vm: GuestVm) -> None:
    process = Run(vm, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert process.wait() == 7
    assert (process.output(1), process.output(2)) == (b"out\n", b"err\n")


def test_a_real_linux_with_its_name_clock_and_cpus(vm: GuestVm) -> None:
    assert run(vm, "uname", "-sm") == "Linux riscv64\n"
    assert run(vm, "hostname") == "box\n"
    assert run(vm, "nproc") == "2\n"
    assert abs(int(run(vm, "date", "+%s")) - time.time()) < 5


def test_the_root_is_the_hosts_directory(vm: GuestVm, root: Path) -> None:
    (root / "tmp/from-host").write_text("hello")
    assert run(vm, "cat", "/tmp/from-host") == "hello"
    run(vm, "sh", "-c", "echo hi > /tmp/from-guest")
    assert (root / "tmp/from-guest").read_text() == "hi\n"


def test_users_environment_and_directory(vm: GuestVm) -> None:
    assert run(vm, "id", user="web") == "uid=33(web) gid=34 groups=50(extra)\n"
    assert run(vm, "id", "-u", user="77:88") == "77\n"
    script = "echo $HOME $A $PWD $HOSTNAME; id -g"
    done = run(vm, "sh", "-c", script, user="web:extra", env={"A": "b c"}, cwd="/tmp")
    assert done == "/srv b c /tmp box\n50\n"
    with pytest.raises(UsageError) as caught:
        vm.ask(ProcessStart(["id"], user="nobody"))
    assert caught.value.code == "exec.user"


@pytest.mark.parametrize(
    ("argv", "cwd", "code"),
    [
        (["no-such"], "", "exec.not_found"),
        (["/etc/passwd"], "", "exec.not_executable"),
        (["/etc"], "", "exec.not_executable"),
        (["true"], "/nowhere", "exec.failed"),
    ],
)
def test_commands_that_cannot_start(vm: GuestVm, argv: list[str], cwd: str, code: str) -> None:
    with pytest.raises(CrumbleError) as caught:
        vm.ask(ProcessStart(argv, cwd=cwd))
    assert caught.value.code == code


def test_much_data_both_ways_within_credit(vm: GuestVm) -> None:
    """4 MiB through `cat` with windows of 64 KiB: nothing is lost, nothing comes beyond its credit."""
    data, window = os.urandom(4 * MIB), 64 << 10
    process = Run(vm, "cat", stdin=True, credit=window)
    sent = taken = acknowledged = 0
    while acknowledged < len(data):
        while sent < len(data) and sent - taken < window:
            piece = data[sent : sent + window // 2]
            process.type(piece)
            sent += len(piece)
        taken_before, got_before = taken, acknowledged

        def moved(_event: object, taken: int = taken_before, got: int = got_before) -> bool:
            return _taken(vm, process) > taken or len(process.output()) > got

        vm.wait(object, moved)
        taken = _taken(vm, process)
        got = len(process.output())
        assert got - acknowledged <= window
        vm.tell(ProcessCredit(process.process, 1, got - acknowledged))
        acknowledged = got
    process.type(b"", eof=True)
    assert process.wait() == 0
    assert hashlib.sha256(process.output()).digest() == hashlib.sha256(data).digest()


def _taken(vm: GuestVm, process: Run) -> int:
    return sum(
        event.size
        for event in vm.events
        if isinstance(event, ProcessCredit) and event.process == process.process
    )


def test_a_terminal(vm: GuestVm) -> None:
    script = (
        "trap 'stty size; exit 5' WINCH; tty; stty size; echo ready; while :; do sleep 0.1; done"
    )
    process = Run(vm, "sh", "-c", script, tty=True, rows=40, cols=111)
    process.until(b"ready\r\n")
    assert process.output() == b"/dev/pts/0\r\n40 111\r\nready\r\n"
    vm.tell(messages.ProcessResize(process.process, 30, 99))
    assert process.wait() == 5
    assert process.output().endswith(b"30 99\r\n")


def test_the_interrupt_key_of_a_terminal(vm: GuestVm) -> None:
    process = Run(vm, "sh", "-c", "echo ready; sleep 1000", tty=True, stdin=True)
    process.until(b"ready")
    process.type(b"\x03")
    assert process.wait() == 130


def test_signals(vm: GuestVm) -> None:
    process = Run(vm, "sleep", "1000")
    vm.ask(messages.ProcessSignal(process.process, 15))
    assert process.wait() == 143
    assert vm.wait(ProcessExit, lambda e: e.process == process.process).signal == 15


def test_many_processes_at_once(vm: GuestVm) -> None:
    processes = [Run(vm, "sh", "-c", f"read x; echo {n}; exit {n}", stdin=True) for n in range(20)]
    for process in reversed(processes):
        process.type(b"go\n")
    assert [process.wait() for process in processes] == list(range(20))
    assert [process.output() for process in processes] == [b"%d\n" % n for n in range(20)]


def test_files(vm: GuestVm) -> None:
    data = os.urandom(300_000)
    vm.ask(messages.FileWrite("/tmp/file", data, mode=0o640))
    assert run(vm, "ls", "-l", "/tmp/file").split()[0] == "-rw-r-----"
    assert run(vm, "sha256sum", "/tmp/file").split()[0] == hashlib.sha256(data).hexdigest()
    assert vm.ask(messages.FileRead("/tmp/file")) == messages.FileData(data, True)
    assert vm.ask(messages.FileRead("/tmp/file", 5, 10)) == messages.FileData(data[5:15], False)
    with pytest.raises(UsageError) as caught:
        vm.ask(messages.FileRead("/none"))
    assert caught.value.code == "file.ENOENT"


def test_entropy_comes_from_the_host(vm: GuestVm) -> None:
    assert run(vm, "sh", "-c", "cat /sys/class/misc/hw_random/rng_current") == "virtio_rng.0\n"
    assert run(vm, "sh", "-c", "head -c 100 /dev/hwrng | wc -c").strip() == "100"


def test_the_timeline_has_every_phase(vm: GuestVm) -> None:
    slices = vm.ask(messages.Timeline()).slices
    names = [item.name for item in slices]
    host = ["vmm start", "memory map", "machine build", "kernel load", "initramfs", "sandbox"]
    assert names[:7] == [*host, "guest: kernel"]
    assert {"guest: init", "guest: modules", "guest: root"} <= set(names)
    for before, after in itertools.pairwise(slices):
        assert before.end <= after.start
    assert vm.ask(messages.Timeline()).counters["instructions"] > 100_000_000


def boot(root: Path, **fields: Any) -> Iterator[tuple[GuestVm, Any]]:
    with fsd(root) as (sock, process), GuestVm(config(**fields), {"root_fs": sock}) as made:
        made.wait(VmEvent, lambda event: event.kind == "agent_ready")
        yield made, process


@pytest.fixture
def own(root: Path) -> Iterator[tuple[GuestVm, Any]]:
    """A VM to break."""
    yield from boot(root)


def test_shutdown_ends_processes_and_powers_off(own: tuple[GuestVm, Any]) -> None:
    vm, _ = own
    script = "trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    process = Run(vm, "sh", "-c", script)
    process.until(b"ready")
    vm.ask(messages.Shutdown(10))
    assert vm.wait_end() == VmEvent("vm1", "poweroff", "The guest powered off.")
    assert process.output() == b"ready\nbye\n"
    assert process.wait() == 9


def test_a_panic_is_told(own: tuple[GuestVm, Any]) -> None:
    vm, _ = own
    Run(vm, "sh", "-c", "echo c > /proc/sysrq-trigger")
    event = vm.wait_end()
    assert event.kind == "panic"
    assert event.detail.startswith("The guest's kernel panicked: sysrq triggered crash.")


def test_a_reboot_is_told_from_a_power_off(own: tuple[GuestVm, Any]) -> None:
    vm, _ = own
    Run(vm, "reboot", "-f")
    assert vm.wait_end().kind == "reset"


def test_a_file_server_that_dies_ends_the_vm_with_a_reason(own: tuple[GuestVm, Any]) -> None:
    vm, process = own
    process.kill()
    event = vm.wait_end()
    assert event.kind == "failed"
    assert event.detail == "The back end of device fs root ended."


def test_init_says_why_it_cannot_go_on(root: Path) -> None:
    """No module for the devices: init gives up when they do not come, and the reason comes out."""
    with fsd(root) as (sock, _), GuestVm(config(modules=[]), {"root_fs": sock}) as vm:
        event = vm.wait_end()
    assert event.kind == "failed"
    assert event.detail.startswith("The guest's init failed: cannot mount the root")


def test_kernel_messages(root: Path) -> None:
    for vm, _ in boot(root, dmesg=True, cmdline="crumble.test=1"):
        text = b"".join(e.data for e in vm.events if isinstance(e, ConsoleOutput))
        assert b"Linux version 6." in text
        assert b"crumble.test=1" in text
        assert b"Run /init as init process" in text


def test_a_kernel_that_is_quiet_prints_nothing(vm: GuestVm) -> None:
    assert not [event for event in vm.events if isinstance(event, ConsoleOutput)]
    assert vm.service.console.tail() == b""


@pytest.mark.skipif(not VIRTIOFSD.exists(), reason="QEMU's virtiofsd is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="virtiofsd's sandbox needs root")
def test_a_foreign_back_end(root: Path, tmp_path: Path) -> None:
    with virtiofsd(root, tmp_path) as sock, GuestVm(config(), {"root_fs": sock}) as vm:
        vm.wait(VmEvent, lambda event: event.kind == "agent_ready")
        script = "grep virtiofs /proc/mounts; seq 20000 > /tmp/seq; sha256sum < /tmp/seq"
        lines = run(vm, "sh", "-c", script).splitlines()
        assert lines[0].startswith("root / virtiofs rw")
        wanted = hashlib.sha256(b"".join(b"%d\n" % n for n in range(1, 20001))).hexdigest()
        assert lines[1].split()[0] == wanted
