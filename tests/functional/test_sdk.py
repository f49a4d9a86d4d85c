"""The SDK over the fake services, in this process and under a daemon."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import crumble
from crumble.sdk import session
from crumble.supervisor import table
from framework import fake_services
from framework.command import World, eventually


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)
    for name in ("CRUMBLE_RUNTIME_DIR", "CRUMBLE_DATA_DIR", "TMPDIR"):
        monkeypatch.setenv(name, made.environment[name])
    for name, row in fake_services.TABLE.items():
        monkeypatch.setitem(table.TABLE, name, row)
    yield made
    if session._session is not None:
        session._session.close()
    eventually(lambda: not left(made), lambda: f"left: {left(made)}")
    made.end()


def left(world: World) -> list[str]:
    return [item for item in world.left() if f"/{os.getpid()}" not in item]


@pytest.fixture(params=["embedded", "daemon"])
def either(request: pytest.FixtureRequest, world: World) -> Iterator[World]:
    if request.param == "daemon":
        world.up()
    yield world
    world.run("down", "-t", "0")


def test_run_is_like_subprocess_run(either: World) -> None:
    done = crumble.run("fake", ["sh", "-c", "echo out; echo err >&2; exit 3"], capture_output=True)
    assert isinstance(done, subprocess.CompletedProcess)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    done = crumble.run("fake", "cat; exit 1", input="text", text=True, capture_output=True)
    assert (done.returncode, done.stdout) == (1, "text")
    assert crumble.run("entry", capture_output=True).stdout == b"entry cmd\n"


def test_output_goes_to_ours_without_capture(capfd: pytest.CaptureFixture[str]) -> None:
    crumble.run("fake", "echo out; echo err >&2")
    assert capfd.readouterr() == ("out\n", "err\n")


def test_check_timeout_and_failures_are_crumble_errors() -> None:
    with crumble.VM("fake") as vm:
        with pytest.raises(crumble.CommandError) as failed:
            vm.run("echo x; exit 3", capture_output=True, check=True)
        assert (failed.value.returncode, failed.value.stdout) == (3, b"x\n")
        with pytest.raises(crumble.CommandTimeoutError) as late:
            vm.run("echo x; sleep 60", capture_output=True, timeout=0.5)
        assert late.value.stdout == b"x\n"
        assert isinstance(late.value, TimeoutError)
        with pytest.raises(crumble.GuestError, match="not found") as absent:
            vm.run(["/no/such"])
        assert absent.value.code == "exec.not_found"
        with pytest.raises(crumble.UsageError, match="started already"):
            vm.start()
    with pytest.raises(crumble.UsageError, match="not running"):
        vm.run("true")


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"image": "unknown"}, crumble.RemoteError, "no image unknown"),
        ({"memory": 0}, crumble.UsageError, "between 96m"),
        ({"cmdline": "fake=panic"}, crumble.GuestError, "panicked"),
        ({"cmdline": "fake=die"}, crumble.InternalError, "killed by signal 9"),
        ({"volumes": {"/no/such": "/x"}}, crumble.UsageError, "does not exist"),
    ],
)
def test_a_vm_that_does_not_start_says_why(
    options: dict[str, Any], kind: type[crumble.CrumbleError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        crumble.VM(**{"image": "fake", **options}).start()


def test_popen_has_streams(either: World) -> None:
    with crumble.VM("fake") as vm:
        process = vm.popen(
            ["sh", "-c", "while read x; do echo got $x; done; echo bye >&2"],
            stdin=crumble.PIPE, stdout=crumble.PIPE, stderr=crumble.PIPE, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for word in ("a", "b"):
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"got {word}\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.stderr.read() == "bye\n"
        assert process.wait(10) == 0
        assert process.poll() == 0
        process.kill()  # it has ended: nothing happens


def test_pause_and_resume(either: World) -> None:
    with crumble.VM("fake") as vm:
        vm.pause()
        with pytest.raises(crumble.UsageError, match="is paused"):
            vm.run(["true"])
        vm.resume()
        assert vm.run(["true"]).returncode == 0


def test_signals_and_a_killed_process() -> None:
    with crumble.VM("fake") as vm:
        process = vm.popen(
            "trap 'exit 4' TERM; echo ready; while :; do sleep 0.05; done", stdout=crumble.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(crumble.CommandTimeoutError):
            process.wait(0.01)
        process.terminate()
        assert process.wait(10) == 4
        process = vm.popen(["sleep", "60"])
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL


def test_a_slow_reader_bounds_what_is_in_flight() -> None:
    with crumble.VM("fake") as vm:
        process = vm.popen("head -c 6000000 /dev/zero; echo end", stdout=crumble.PIPE)
        assert process.stdout is not None
        with pytest.raises(crumble.CommandTimeoutError):
            process.wait(0.5)  # it waits for its reader
        data = process.stdout.read()
        assert len(data) == 6_000_004
        assert process.wait(10) == 0


def test_a_terminal_can_be_given(either: World) -> None:
    with crumble.VM("fake") as vm:
        process = vm.popen("stty size; tty", stdout=crumble.PIPE, tty=(12, 34))
        assert process.stdout is not None
        assert process.stdout.read().startswith(b"12 34\r\n/dev/pts/")


def test_many_processes_at_once_from_many_threads() -> None:
    results: dict[int, bytes] = {}
    with crumble.VM("fake") as vm:

        def work(number: int) -> None:
            results[number] = vm.run(f"echo {number}", capture_output=True).stdout

        threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {number: b"%d\n" % number for number in range(12)}


def test_files_of_any_size() -> None:
    with crumble.VM("fake") as vm:
        for data in (b"", b"x", os.urandom((2 << 20) + 5)):
            vm.write_file("/file", data)
            assert vm.read_file("/file") == data
        vm.write_file("/text", "é")
        assert vm.read_file("/text") == "é".encode()
        with pytest.raises(crumble.UsageError, match="no such file") as absent:
            vm.read_file("/none")
        assert absent.value.code == "file.ENOENT"


def test_a_vm_that_dies_wakes_everybody_who_waits(world: World) -> None:
    vm = crumble.VM("fake").start()
    process = vm.popen("echo ready; sleep 60", stdout=crumble.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    os.kill(world.pid("vmm"), signal.SIGKILL)
    with pytest.raises(crumble.InternalError, match="killed by signal 9"):
        process.wait(30)
    with pytest.raises(crumble.InternalError, match="killed by signal 9"):
        vm.run("true")
    vm.stop()
    vm.stop()


def test_stopping_a_vm_wakes_who_waits_for_a_process_in_it() -> None:
    vm = crumble.VM("fake").start()
    process = vm.popen(["sleep", "60"])
    vm.stop(0)
    with pytest.raises(crumble.CrumbleError):
        process.wait(30)


def test_events_of_the_boot_reach_the_program() -> None:
    seen: list[object] = []
    with crumble.VM("fake", dmesg=True, on_event=seen.append) as vm:
        assert vm.timeline().slices[0].name == "kernel"
        assert vm.info.state == "running"
        assert vm.name == vm.info.name
    kinds = {type(event).__name__ for event in seen}
    assert kinds >= {"Progress", "VmEvent", "ConsoleOutput"}


def test_images() -> None:
    steps: list[str] = []
    image = crumble.pull("fake", on_progress=lambda event: steps.append(event.step))
    assert image.reference == "fake"
    assert steps
    assert set(steps) == {"layer fake"}
    assert [item.reference for item in crumble.images()] == ["fake", "entry"]
    assert crumble.inspect("fake").references == ["fake"]
    assert crumble.remove("fake").freed > 0


def test_a_fork_of_the_program_takes_nothing_away_from_it(world: World) -> None:
    assert crumble.run("fake", "exit 3").returncode == 3
    subprocess.run(["true"], preexec_fn=lambda: None, check=True)  # forks, with all fork handlers
    assert crumble.run("fake", "exit 4").returncode == 4  # its end is still heard of


def test_a_forked_child_of_the_program_does_not_keep_anything_alive(world: World) -> None:
    script = (
        "import os, sys, time\n"
        "from crumble.supervisor import table\n"
        "from framework.fake_services import TABLE\n"
        "table.TABLE.update(TABLE)\n"
        "import crumble\n"
        "vm = crumble.VM('fake').start()\n"
        "if os.fork() == 0:\n"
        "    sys.stdin.read(); os._exit(0)\n"
        "print('ready', flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=world.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.wait(30) == -9
    eventually(
        lambda: not [x for x in world.left() if "crumble" in x or "run-" in x], "still there"
    )
    process.communicate()


def test_a_program_that_just_ends_leaves_nothing(world: World) -> None:
    script = (
        "from crumble.supervisor import table\n"
        "from framework.fake_services import TABLE\n"
        "table.TABLE.update(TABLE)\n"
        "import crumble\n"
        "vm = crumble.VM('fake').start()\n"
        "vm.popen(['sleep', '60'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=world.environment,
        timeout=60,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    world.assert_nothing_left()


def test_everything_public_is_there() -> None:
    for name in crumble.__all__:
        assert getattr(crumble, name) is not None
    with pytest.raises(AttributeError):
        crumble.nonsense  # noqa: B018
