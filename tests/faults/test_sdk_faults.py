"""The SDK with real guests when things fail: errors with a code and a hint, nothing left, nobody hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from framework.command import read_until
from framework.real_crumble import IMAGE, RealWorld, real_world

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]

HEAD = f"""
import os, signal, sys, threading
import crumble
IMAGE = {IMAGE!r}

def fails(call, code):
    try:
        call()
    except crumble.CrumbleError as error:
        assert type(error) is not crumble.CrumbleError
        assert error.code == code, (error.code, str(error))
        assert error.hint, str(error)
        assert str(error).startswith(error.message)
    else:
        raise AssertionError("nothing was raised, not " + code)
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealWorld]:
    with real_world(tmp_path_factory.mktemp("sdk") / "w") as made:
        yield made


@pytest.fixture
def world(shared: RealWorld) -> Iterator[RealWorld]:
    yield shared
    shared.assert_nothing_left()


def start(world: RealWorld, script: str) -> subprocess.Popen[bytes]:
    text = HEAD + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", text],
        env=world.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def python(world: RealWorld, script: str) -> None:
    """Runs a program that must come to its end, silently."""
    process = start(world, script)
    try:
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, stdout) == (0, b"done\n"), stderr.decode()


def test_what_cannot_be_is_an_error_of_ours(world: RealWorld) -> None:
    python(world, """
        def vm(**options):
            return lambda: crumble.VM(options.pop("image", IMAGE), **options).start()

        fails(vm(memory=0), "vm.memory")
        fails(vm(memory=-1), "vm.memory")
        fails(vm(memory=1 << 80), "vm.memory")
        fails(vm(memory="nonsense"), "usage.size")
        fails(vm(cpus=0), "vm.cpus")
        fails(vm(cpus=1 << 80), "wire.value")
        fails(vm(image="no such"), "image.reference")
        fails(vm(image="oci:/no/such"), "image.path")
        fails(vm(image="\\udcff"), "wire.value")
        fails(vm(kernel="/no/such"), "vmm.kernel")
        fails(vm(volumes=["/no/such:/x"]), "share.source")
        fails(vm(volumes=["nonsense"]), "usage.volume")
        fails(vm(hypervisor="xen"), "vm.hypervisor")
        fails(vm(pull="sometimes"), "vm.pull")
        fails(vm(boot_timeout=0), "vm.boot_timeout")
        fails(vm(cmdline="rdinit=/none init=/none panic=1"), "guest.panic")
        print("done")
    """)  # fmt: skip


def test_a_vm_that_is_used_after_its_end(world: RealWorld) -> None:
    python(world, """
        vm = crumble.VM(IMAGE)
        fails(lambda: vm.run("true"), "vm.not_running")
        fails(lambda: vm.info, "vm.not_running")
        with vm:
            fails(vm.start, "vm.started")
            fails(lambda: vm.run(["no-such"]), "exec.not_found")
            fails(lambda: vm.run(["/etc/passwd"]), "exec.not_executable")
            fails(lambda: vm.run([""]), "exec.not_found")
            fails(lambda: vm.run(["\\udcff"]), "wire.value")
            fails(lambda: vm.run("true", user="who"), "exec.user")
            fails(lambda: vm.run("true", cwd="/none"), "exec.failed")
            fails(lambda: vm.run(["true", "x" * (20 << 20)]), "wire.value")
            fails(lambda: vm.read_file("/none"), "file.ENOENT")
            process = vm.popen(["sleep", "600"])
        assert process.wait() != 0
        fails(lambda: vm.run("true"), "vm.not_running")
        fails(lambda: vm.read_file("/etc/passwd"), "vm.not_running")
        vm.stop()
        print("done")
    """)  # fmt: skip


@pytest.mark.parametrize("service", ["vmm", "fsd", "fork"])
def test_a_service_that_dies_wakes_every_thread(world: RealWorld, service: str) -> None:
    process = start(world, """
        with crumble.VM(IMAGE) as vm:
            found = []

            def wait(call):
                try:
                    call()
                except crumble.CrumbleError as error:
                    found.append(error.code)

            calls = [
                lambda: vm.run("sleep 600"),
                lambda: vm.popen("sleep 600").wait(),
                lambda: vm.run("cat", input=b"x" * (8 << 20), capture_output=True, timeout=600),
                lambda: vm.popen("sleep 600", stdout=crumble.PIPE).communicate(),
            ][:4]
            calls[2] = lambda: vm.popen("sleep 600", stdin=crumble.PIPE).communicate(b"x" * (8 << 20))
            threads = [threading.Thread(target=wait, args=(call,)) for call in calls]
            for thread in threads:
                thread.start()
            while "sleep" not in vm.run("cat /proc/[0-9]*/cmdline", capture_output=True, text=True).stdout:
                pass
            print("ready", flush=True)
            for thread in threads:
                thread.join()
            print(*sorted(found))
            try:
                vm.run("true")
            except crumble.CrumbleError as error:
                print(error.code)
        print(crumble.run(IMAGE, "echo again", capture_output=True, text=True).stdout, end="")
    """)  # fmt: skip
    assert process.stdout is not None
    read_until(process.stdout, b"ready\n")
    os.kill(world.pid(service), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=60)
    codes, after, again = stdout.decode().splitlines()
    assert (len(codes.split()), again, stderr) == (4, "again", b"")
    assert set(codes.split()) | {after} <= {"service.died", "vm.failed"}


def test_the_supervisor_that_dies_under_a_program(world: RealWorld) -> None:
    daemon = world.start("up")
    assert daemon.stderr is not None
    read_until(daemon.stderr, b"is running in")
    process = start(world, """
        vm = crumble.VM(IMAGE).start()
        shell = vm.popen("echo ready; sleep 600")
        fails(shell.wait, "supervisor.gone")
        fails(lambda: vm.run("true"), "supervisor.gone")
        vm.stop()
        assert crumble.run(IMAGE, "true").returncode == 0
        print("done")
    """)  # fmt: skip
    assert process.stdout is not None
    read_until(process.stdout, b"ready\n")
    daemon.kill()
    daemon.communicate()
    stdout, stderr = process.communicate(timeout=60)
    assert stdout == b"done\n", stderr.decode()


def test_programs_that_fork(world: RealWorld) -> None:
    """A child has no part in its parent's VM; it may have one of its own; its end ends nothing."""
    python(world, """
        with crumble.VM(IMAGE) as vm:
            pid = os.fork()
            if pid == 0:
                fails(lambda: vm.run("true"), "client.closed")
                status = crumble.run(IMAGE, "exit 7").returncode
                vm.stop()
                sys.exit(status)
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 7, status
            assert vm.run("exit 5").returncode == 5
        print("done")
    """)  # fmt: skip


@pytest.mark.parametrize("how", ["signal.SIGINT", "signal.SIGKILL", "sys.exit(0)", "os._exit(0)"])
def test_programs_that_end_in_the_middle(world: RealWorld, how: str) -> None:
    end = f"os.kill(os.getpid(), {how})" if "SIG" in how else how
    process = start(world, f"""
        vm = crumble.VM(IMAGE).start()
        vm.popen("sleep 600")
        {end}
    """)  # fmt: skip
    process.communicate(timeout=60)
    # A capture that was being made is swept by the next to come.
    assert world.run("run", IMAGE, "true").returncode == 0
    world.assert_nothing_left()
