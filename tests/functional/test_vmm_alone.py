"""`crumble-vmm` as a program of its own: no supervisor, a terminal or pipes."""

import fcntl
import hashlib
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.assets import kernel
from framework.guest_root import make_root
from framework.tiny_kernel import TinyKernel

VMM = [sys.executable, "-m", "crumble_vmm"]


def vmm(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*VMM, *arguments], input=stdin, capture_output=True, timeout=120)


def test_the_probe_names_every_back_end() -> None:
    done = vmm("--probe", "--json")
    assert done.returncode == 0
    found = {item["name"]: item for item in json.loads(done.stdout)}
    assert found["soft"]["usable"] is True
    assert found["soft"]["architectures"] == ["riscv64"]
    assert found["kvm"]["usable"] is False
    assert found["kvm"]["reason"].endswith(".")
    assert found["kvm"]["present"] == Path("/dev/kvm").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "No kernel was given"),
        (["--kernel", "/nowhere"], "There is no kernel /nowhere"),
        (["--kernel", "/etc/passwd"], "is not a riscv64 Linux kernel"),
        (["--kernel", "KERNEL", "--memory", "0"], "cannot boot"),
        (["--kernel", "KERNEL", "--memory", "1024G"], "larger than this host"),
        (["--kernel", "KERNEL", "--memory", "much"], "is no size"),
        (["--kernel", "KERNEL", "--cpus", "99"], "cannot have 99 vCPUs"),
        (["--kernel", "KERNEL", "--hv", "kvm"], "/dev/kvm"),
        (["--kernel", "KERNEL", "--fs", "/nowhere.sock"], "/nowhere.sock"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(TinyKernel().image())
    done = vmm("--quiet", *[str(path) if word == "KERNEL" else word for word in arguments])
    assert done.returncode in (2, 125)
    assert words in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


def test_a_guest_without_linux(tmp_path: Path) -> None:
    """Console out, power-off, exit status; confined while it ran."""
    guest = TinyKernel()
    guest.print("hello from nowhere\n")
    guest.power_off()
    (tmp_path / "kernel").write_bytes(guest.image())
    done = vmm("--kernel", str(tmp_path / "kernel"))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello from nowhere\n", b"")


def test_a_crash_is_a_failure(tmp_path: Path) -> None:
    guest = TinyKernel()
    guest.crash()
    (tmp_path / "kernel").write_bytes(guest.image())
    done = vmm("--kernel", str(tmp_path / "kernel"))
    assert done.returncode == 125
    assert b"The guest crashed" in done.stderr


def test_the_sandbox_is_on(tmp_path: Path) -> None:
    guest = TinyKernel()
    guest.power_off()
    (tmp_path / "kernel").write_bytes(guest.image())
    done = subprocess.run(
        [*VMM, "--kernel", str(tmp_path / "kernel")],
        env={**os.environ, "CRUMBLE_LOG": "info"},
        capture_output=True,
        timeout=60,
    )
    (ready,) = [line for line in done.stderr.decode().splitlines() if " ready " in line]
    assert "sandbox_seccomp=" in ready
    assert "sandbox_landlock=" in ready
    if sys.platform == "linux":
        assert "sandbox_no_new_privs=on" in ready


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("alone") / "root")


@pytest.fixture
def linux(root: Path, tmp_path: Path) -> Iterator[list[str]]:
    """Arguments that boot Linux on a root served by `crumble-fsd`."""
    path, files = tmp_path / "fs.sock", kernel()
    command = [sys.executable, "-m", "crumble_fsd", "--socket-path", str(path)]
    server = subprocess.Popen([*command, "--shared-dir", str(root)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not path.exists():
        assert server.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    arguments = ["--kernel", str(files.image), "--quiet", "--fs", str(path)]
    for module in files.modules:
        arguments += ["--initrd-module", str(module)]
    yield arguments
    server.kill()
    server.wait()


@pytest.mark.guest
@pytest.mark.slow
def test_a_command_with_pipes(linux: list[str]) -> None:
    script = "uname -m; cat; echo err >&2; exit 7"
    done = vmm(*linux, "--", "sh", "-c", script, stdin=b"typed\n" * 1000)
    assert done.returncode == 7
    assert done.stdout == b"riscv64\n" + b"typed\n" * 1000
    assert done.stderr == b"err\n"


@pytest.mark.guest
@pytest.mark.slow
def test_more_input_than_anyone_keeps(linux: list[str]) -> None:
    data = os.urandom(6 << 20)
    wanted = hashlib.sha256(data).hexdigest()
    done = vmm(*linux, "--", "sh", "-c", "sleep 0.2; sha256sum", stdin=data)
    assert done.stdout.decode().split()[0] == wanted, done.stderr


@pytest.mark.guest
@pytest.mark.slow
def test_input_from_a_file(linux: list[str], tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(os.urandom(300_000))
    with path.open("rb") as file:
        done = subprocess.run(
            [*VMM, *linux, "--", "wc", "-c"], stdin=file, capture_output=True, timeout=60
        )
    assert done.stdout.strip() == b"300000"


@pytest.mark.guest
@pytest.mark.slow
def test_a_command_on_a_terminal(linux: list[str]) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 111, 0, 0))
    before = termios.tcgetattr(theirs)
    script = "stty size; echo ready; read x; echo got $x; exit 3"
    process = subprocess.Popen(
        [*VMM, *linux, "--timeline", "--", "sh", "-c", script],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    seen = b""
    while b"ready" not in seen:
        seen += os.read(ours, 4096)
    os.write(ours, b"this\r")
    assert process.wait(60) == 3
    while b"got this" not in seen:
        seen += os.read(ours, 4096)
    assert b"guest: kernel" in seen
    assert b"40 111\r\n" in seen
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


@pytest.mark.guest
@pytest.mark.slow
def test_the_escape_ends_the_vm(linux: list[str]) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*VMM, *linux, "--", "sh", "-c", "echo ready; sleep 1000"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    seen = b""
    while b"ready" not in seen:
        seen += os.read(ours, 4096)
    os.write(ours, b"\x01x")
    assert process.wait(30) == 0
    os.close(ours)
    os.close(theirs)


@pytest.mark.guest
@pytest.mark.slow
def test_a_command_that_is_not_there(linux: list[str]) -> None:
    done = vmm(*linux, "--", "/no/such")
    assert done.returncode == 127
    assert done.stderr.decode().startswith("crumble-vmm: Command '/no/such' was not found")


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    guest = TinyKernel()
    guest.print("up")
    guest.wait()
    (tmp_path / "kernel").write_bytes(guest.image())
    command = [*VMM, "--kernel", str(tmp_path / "kernel")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"up"
        process.terminate()
        assert process.wait(30) == 0
    assert not list(Path("/dev/shm").glob("crumble*"))
