"""The whole product, with real guests: `crumble` as a person uses it, and what it leaves behind."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble_common import paths
from framework.assets import pulled
from framework.command import World, eventually, read_until

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]

IMAGE = "deb:trixie"
# Opens the watchdog, asks for one second (WDIOC_SETTIMEOUT), and feeds it no more.
HUNGRY = "open(F, '>', '/dev/watchdog'); $t = pack('i', 1); ioctl(F, 0xC0045706, $t); sleep 60"


def new_world(where: Path) -> World:
    pulled(IMAGE)
    made = World(where, "crumble.cli.main")
    # The user's store: an image is fetched once for all tests.
    made.environment["CRUMBLE_DATA_DIR"] = str(paths.data_dir())
    return made


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = new_world(tmp_path)
    yield made
    made.end()


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A daemon with a VM "box" that lives as long as these tests."""
    made = new_world(tmp_path_factory.mktemp("box"))
    made.up()
    done = made.run("run", "-d", "--name", "box", "-e", "A=image", IMAGE, "sleep", "100000")
    assert (done.returncode, done.stdout) == (0, "box\n"), done.stderr
    yield made
    assert made.run("down", "-t", "5").returncode == 0
    made.assert_nothing_left()


def test_a_command_runs_in_a_linux_of_its_own(world: World) -> None:
    done = world.run("run", "--hostname", "mine", IMAGE, "uname", "-nm")
    assert (done.returncode, done.stdout, done.stderr) == (0, "mine riscv64\n", "")
    world.assert_nothing_left()


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ([IMAGE, "no-such-command"], 127, "'no-such-command' was not found"),
        ([IMAGE, "/etc/passwd"], 126, "'/etc/passwd' cannot be executed"),
        (["-u", "who", IMAGE, "true"], 125, "who"),
        (["-w", "/no/such", IMAGE, "true"], 125, "/no/such"),
        (["--timeout", "4", IMAGE, "sleep", "600"], 124, "did not end within 4 s"),
        (["--kernel", "/etc/passwd", IMAGE, "true"], 125, "/etc/passwd"),
        (["--kernel", "/no/such/kernel", IMAGE, "true"], 125, "/no/such/kernel"),
        (["--hv", "kvm", IMAGE, "true"], 125, "kvm"),
        ([IMAGE, "sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60"], 125, "panicked"),
        ([IMAGE, "sh", "-c", "echo o > /proc/sysrq-trigger; sleep 60"], 125, "powered off"),
        (
            ["--watchdog", IMAGE, "perl", "-e", HUNGRY],
            125,
            "watchdog ended it: nobody fed it for 1 s",
        ),
        (["--cmdline", "rdinit=/nothing init=/nothing", IMAGE, "true"], 125, ""),
        (["deb:no-such-suite", "true"], 125, "no-such-suite"),
        (["oci:/no/such/layout", "true"], 125, "/no/such/layout"),
        (["Not A Reference", "true"], 125, "Not A Reference"),
    ],
)
def test_what_goes_wrong_is_said_and_leaves_nothing(
    world: World, words: list[str], status: int, says: str
) -> None:
    done = world.run("run", *words)
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert done.stderr.startswith("crumble: ")
    assert "Traceback" not in done.stderr
    world.assert_nothing_left()


def test_shares(world: World, tmp_path: Path) -> None:
    (tmp_path / "rw").mkdir()
    (tmp_path / "ro").mkdir()
    (tmp_path / "ro" / "file").write_text("from the host\n")
    script = "cat /ro/file; echo from the guest > /rw/file; echo no > /ro/new"
    done = world.run(
        "run", "-v", f"{tmp_path}/rw:/rw", "-v", f"{tmp_path}/ro:/ro:ro", IMAGE, "sh", "-c", script
    )
    assert done.returncode != 0
    assert done.stdout == "from the host\n"
    assert "Read-only" in done.stderr
    assert (tmp_path / "rw" / "file").read_text() == "from the guest\n"
    world.assert_nothing_left()


def test_devices_behind_pci(world: World) -> None:
    """File system and network, booted and from the boot snapshot."""
    for _ in range(2):
        done = world.run(
            "run", "--transport", "pci", IMAGE, "sh", "-c",
            "cat /sys/bus/pci/devices/*/device; md5sum < /bin/true > /tmp/sum; cat /sys/class/net/eth0/carrier",
        )  # fmt: skip
        assert done.stdout.split() == ["0x0008", "0x1043", "0x1044", "0x105a", "0x1041", "1"]
    done = world.run("run", "--transport", "isa", IMAGE, "true")
    assert done.returncode == 125 and "isa" in done.stderr


def test_stdin_and_many_bytes(world: World) -> None:
    data = os.urandom(3 << 20)
    process = world.start("run", "-i", IMAGE, "cat", stdin=subprocess.PIPE)
    stdout, stderr = process.communicate(data, timeout=120)
    assert (process.returncode, stderr) == (0, b"")
    assert stdout == data


def test_the_kernels_messages_and_the_timeline(world: World) -> None:
    done = world.run("run", "--dmesg", "--timeline", IMAGE, "echo", "x")
    assert done.stdout == "x\n"
    assert "Linux version" in done.stderr
    assert "guest: kernel" in done.stderr


def test_an_interactive_shell(world: World) -> None:
    master, terminal = pty.openpty()
    subprocess.run(["stty", "rows", "33", "cols", "44"], stdin=terminal, check=True)
    process = world.start(
        "run", "-it", IMAGE, "sh",
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
    )  # fmt: skip
    with os.fdopen(master, "r+b", buffering=0) as user:
        read_until(user, b"# ")
        user.write(b"stty size; tty\r")
        read_until(user, b"33 44")
        user.write(b"sleep 100\r")
        read_until(user, b"sleep 100")
        user.write(b"\x03")  # ^C is the guest's
        read_until(user, b"# ")
        user.write(b"exit 5\r")
        assert process.wait(60) == 5
    os.close(terminal)
    world.assert_nothing_left()


@pytest.mark.parametrize("service", ["vmm", "fsd", "netd", "fork", "ocid"])
def test_a_service_killed_under_a_running_command(world: World, service: str) -> None:
    # A netd that is killed just when a capture stops its rings takes the VM along.
    options = ["--no-snapshot"] if service == "netd" else []
    script = "echo ready; sleep 4; ls -R /usr > /dev/null"
    process = world.start("run", *options, IMAGE, "sh", "-c", script)
    assert process.stdout is not None
    read_until(process.stdout, b"ready\n")
    os.kill(world.pid(service), signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    if service in ("ocid", "netd"):  # its work was done; it has a successor
        assert (process.returncode, stderr) == (0, b"")
    else:
        assert process.returncode == 125
        assert b"was killed by signal 9 (SIGKILL)" in stderr
        assert stderr.count(b"\n") == 1
    world.assert_nothing_left()


@pytest.mark.parametrize("service", ["vmm", "fsd", "ocid"])
def test_a_service_killed_while_it_starts(world: World, service: str) -> None:
    process = world.start("run", "--no-snapshot", IMAGE, "true")
    os.kill(world.pid(service), signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    if service == "ocid" and process.returncode == 0:
        assert stderr == b""  # it had answered already
    else:
        assert process.returncode == 125
        assert b"was killed by signal 9 (SIGKILL)" in stderr
    world.assert_nothing_left()


@pytest.mark.parametrize("stage", ["fork", "ocid", "fsd", "vmm"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_at_each_stage(world: World, stage: str, number: int) -> None:
    process = world.start("run", IMAGE, "sleep", "600")
    world.pid(stage)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -9)
    assert stderr == b""
    world.assert_nothing_left()


def test_signals_reach_the_command(world: World) -> None:
    script = "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    process = world.start("run", IMAGE, "sh", "-c", script)
    assert process.stdout is not None
    read_until(process.stdout, b"ready\n")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == b"got it\n"
    assert process.returncode == 5


def test_exec_many_at_once(box: World) -> None:
    many = [box.start("exec", "box", "sh", "-c", f"echo {n}; exit {n}") for n in range(5)]
    for number, process in enumerate(many):
        stdout, stderr = process.communicate(timeout=120)
        assert (process.returncode, stdout, stderr) == (number, f"{number}\n".encode(), b"")


def test_exec_options(box: World) -> None:
    done = box.run("exec", "-e", "B=given", "-w", "/tmp", "-u", "nobody", "box", "sh", "-c",
                   "echo $A $B $HOME $(pwd) $(id -un) $(hostname)")  # fmt: skip
    assert done.stdout == "given /nonexistent /tmp nobody box\n"
    assert box.run("exec", "-i", "box", "cat", data=b"x").stdout == "x"
    assert box.run("exec", "box", "nope").returncode == 127


def test_a_killed_exec_takes_its_process_with_it(box: World) -> None:
    process = box.start("exec", "box", "sh", "-c", "echo ready; exec sleep 4242")
    assert process.stdout is not None
    read_until(process.stdout, b"ready\n")
    process.kill()
    process.communicate()
    look = ("exec", "box", "sh", "-c", "grep -l 424[2] /proc/[0-9]*/cmdline")
    eventually(lambda: not box.run(*look).stdout, "the process stayed")


def test_ps_and_inspect(box: World) -> None:
    (vm,) = json.loads(box.run("ps", "--json").stdout)
    assert (vm["name"], vm["state"], vm["hypervisor"]) == ("box", "running", "soft")
    assert {service["name"] for service in vm["services"]} == {"vmm.box", "fsd.box", "netd.box"}
    for service in vm["services"]:
        assert service["sandbox"]
    assert json.loads(box.run("inspect", "--vm", "box").stdout)["id"] == vm["id"]
    details = json.loads(box.run("inspect", IMAGE).stdout)
    assert details["platform"] == "linux/riscv64"


def test_a_detached_command_logs_and_ends(box: World) -> None:
    box.run("run", "-d", "--name", "job", IMAGE, "sh", "-c", "echo one; echo two >&2; exit 3")
    eventually(lambda: box.run("ps", "-q").stdout == "box\n", "the job stayed")
    (vm,) = [vm for vm in json.loads(box.run("ps", "-a", "--json").stdout) if vm["name"] == "job"]
    assert (vm["state"], vm["detail"]) == ("stopped", "Its command ended with status 3.")
    assert sorted(box.run("logs", "job").stdout.split()) == ["one", "two"]
    assert box.run("stop", "job").returncode == 0


def test_stop_is_orderly(box: World) -> None:
    script = "trap 'echo told; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    box.run("run", "-d", "--name", "polite", IMAGE, "sh", "-c", script)
    logs = box.start("logs", "-f", "polite")
    assert logs.stdout is not None
    read_until(logs.stdout, b"ready\n")
    assert box.run("stop", "polite").returncode == 0
    assert b"told\n" in logs.communicate(timeout=60)[0]


def test_one_vm_dies_and_the_other_lives(box: World) -> None:
    box.run("run", "-d", "--name", "victim", IMAGE, "sleep", "1000")
    victim = [pid for name, pid in box.services().items() if name.startswith("crumble-vmm.vi")]
    os.kill(victim[0], signal.SIGKILL)
    eventually(lambda: box.run("ps", "-q").stdout == "box\n", "the victim stayed")
    assert box.run("exec", "box", "echo", "alive").stdout == "alive\n"
    box.run("stop", "victim")


def test_doctor_says_what_can_be_used_and_why(world: World) -> None:
    found = json.loads(world.run("doctor", "--json").stdout)
    soft, kvm = (
        next(item for item in found["hypervisors"] if item["name"] == name)
        for name in ("soft", "kvm")
    )
    assert soft["usable"]
    assert kvm["reason"]
    assert found["kernels"]
    assert found["images"]["references"]
    text = world.run("doctor").stdout
    for word in ("soft", "kvm", "seccomp", "landlock", "kernel", "debian"):
        assert word in text


def test_from_python(world: World) -> None:
    script = f"""
import crumble
print(crumble.run({IMAGE!r}, ["uname", "-m"], capture_output=True, text=True).stdout, end="")
with crumble.VM({IMAGE!r}, memory="256m") as vm:
    data = bytes(range(256)) * 9000
    vm.write_file("/root/file", data)
    assert vm.read_file("/root/file") == data
    done = vm.run(["wc", "-c", "/root/file"], capture_output=True, text=True)
    print(done.returncode, done.stdout, end="")
    shell = vm.popen(["sh"], stdin=crumble.PIPE, stdout=crumble.PIPE, text=True)
    print(*shell.communicate("echo $((6 * 7))\\n"))
    try:
        vm.run("sleep 100", timeout=1)
    except crumble.CommandTimeoutError as error:
        print(error)
    try:
        vm.read_file("/none")
    except crumble.UsageError as error:
        print(error.code)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=world.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "riscv64",
        "0 2304000 /root/file",
        "42",
        " None",
        "/bin/sh did not end within 1 s.",
        "file.ENOENT",
    ]
    world.assert_nothing_left()
