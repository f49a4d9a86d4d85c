"""`crumble run` end to end over the fake services: real processes, sockets, signals and pipes."""

import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.command import World, eventually, read_until


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.end()


def test_output_and_status_are_the_commands(world: World) -> None:
    done = world.run("run", "fake", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    world.assert_nothing_left()


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["fake", "no-such-command"], 127, "no-such-command: not found."),
        (["fake", "/etc/passwd"], 126, "/etc/passwd: not executable."),
        (["fake", "sh", "-c", "kill -9 $$"], 137, ""),
        (["unknown", "true"], 125, "There is no image unknown. Look."),
        (["empty"], 125, "names no command"),
        (["-m", "0", "fake", "true"], 125, "0 MB of memory. Give it between 96m"),
        (["-m", "1t", "fake", "true"], 125, "1048576 MB of memory"),
        (["-m", "lots", "fake", "true"], 125, "'lots' is no size"),
        (["-c", "99", "fake", "true"], 125, "99 CPUs"),
        (["-v", "/no/such:/x", "fake", "true"], 125, "/no/such does not exist"),
        (["-v", "nonsense", "fake", "true"], 125, "'nonsense' is no volume"),
        (["-u", "nobody-knows", "fake", "true"], 125, "There is no user"),
        (["--kernel", "/no/kernel", "fake", "true"], 125, "/no/kernel is not a kernel"),
        (["--name", "../x", "fake", "true"], 125, "cannot be a VM's name"),
        (["--cmdline", "fake=panic", "fake", "true"], 125, "kernel panicked"),
        (["--cmdline", "fake=poweroff", "fake", "true"], 125, "powered off before it was ready"),
        (["--cmdline", "fake=die", "fake", "true"], 125, "was killed by signal 9 (SIGKILL)"),
        (["--cmdline", "fake=die-later", "fake", "true"], 125, "was killed by signal 9"),
        (["--timeout", "0.3", "fake", "sleep", "60"], 124, "did not end within 0.3 s"),
        (["--timeout", "0.3", "--cmdline", "fake=silent", "fake", "true"], 124, "within 0.3 s"),
        (["fatal", "true"], 125, "ocid was killed by signal 9"),
        (["-d", "fake", "true"], 125, "No supervisor is running"),
        (["--no-such-option", "fake"], 125, "no-such-option"),
        ([], 125, "The image is missing"),
    ],
)
def test_failures_are_one_sentence_and_a_status(
    world: World, words: list[str], status: int, says: str
) -> None:
    done = world.run("run", *words)
    assert says in done.stderr
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1
    world.assert_nothing_left()


def test_what_the_image_says_is_honoured_and_can_be_replaced(world: World) -> None:
    assert world.run("run", "fake").stdout == "default\n"
    assert world.run("run", "entry").stdout == "entry cmd\n"
    assert world.run("run", "entry", "word").stdout == "entry word\n"
    assert world.run("run", "--entrypoint", "/bin/echo x", "entry", "y").stdout == "x y\n"
    shown = "echo $GREETING $MINE $HOSTNAME; pwd"
    done = world.run(
        "run", "-e", "MINE=1", "--hostname", "box", "-w", "/usr", "fake", "sh", "-c", shown
    )
    assert done.stdout == "hello 1 box\n/usr\n"


def test_variables_from_the_host_and_from_a_file(world: World, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# comment\n\nA=file\nB=file\n")
    world.environment["FROM_HOST"] = "host"
    done = world.run(
        "run", "--env-file", str(tmp_path / "env"), "-e", "B=given", "-e", "FROM_HOST",
        "-e", "NOT_SET", "fake", "sh", "-c", "echo $A $B $FROM_HOST ${NOT_SET-unset}",
    )  # fmt: skip
    assert done.stdout == "file given host unset\n"


def test_stdin_is_passed_on_only_when_asked_for(world: World) -> None:
    assert world.run("run", "-i", "fake", "cat", data=b"hello").stdout == "hello"
    assert world.run("run", "fake", "cat", data=b"hello").stdout == ""


def test_many_bytes_go_both_ways_within_credit(world: World, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(os.urandom(1 << 20) * 8)
    with big.open("rb") as source:
        process = world.start("run", "-i", "fake", "cat", stdin=source)
        output, _ = process.communicate(timeout=60)
    assert output == big.read_bytes()


def test_a_reader_that_goes_away_ends_the_command_as_a_closed_pipe_would(world: World) -> None:
    process = world.start("run", "fake", "yes")
    assert process.stdout is not None
    read_until(process.stdout, b"y\n")
    process.stdout.close()
    assert process.wait(30) == 141
    world.assert_nothing_left()


def test_the_kernels_messages_and_the_timeline_go_to_stderr(world: World) -> None:
    done = world.run("run", "--dmesg", "--timeline", "fake", "echo", "x")
    assert done.stdout == "x\n"
    assert "Linux" in done.stderr
    assert "vm: kernel" in done.stderr
    assert "run: boot" in done.stderr


@pytest.mark.parametrize("words", [["slow", "true"], ["--cmdline", "fake=silent", "fake", "true"]])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_command_runs_ends_everything(
    world: World, words: list[str], number: int
) -> None:
    process = world.start("run", *words)
    world.pid("ocid" if words[0] == "slow" else "vmm")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert stderr == b""
    world.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_pull_that_is_given_up_leaves_nothing_half_written(world: World, number: int) -> None:
    process = world.start("pull", "slow")
    half = world.data / "store" / "half-written"
    eventually(half.exists, "it did not begin")
    process.send_signal(number)
    process.communicate(timeout=30)
    world.assert_nothing_left()
    assert not half.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_the_command(world: World, number: int) -> None:
    name = signal.Signals(number).name[3:]
    script = f"trap 'echo got {name}; exit 5' {name}; echo ready; while :; do sleep 0.05; done"
    process = world.start("run", "fake", "sh", "-c", script)
    assert process.stdout is not None
    read_until(process.stdout, b"ready\n")
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert f"got {name}\n".encode() in output
    assert process.returncode == 5
    world.assert_nothing_left()


def test_a_second_interrupt_ends_a_command_that_ignores_the_first(world: World) -> None:
    script = "trap 'echo no' INT; echo ready; while :; do sleep 0.05; done"
    process = world.start("run", "fake", "sh", "-c", script)
    assert process.stdout is not None
    read_until(process.stdout, b"ready\n")
    process.send_signal(signal.SIGINT)
    read_until(process.stdout, b"no\n")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    world.assert_nothing_left()


def test_a_terminal_is_raw_while_it_runs_and_restored_after(world: World) -> None:
    master, terminal = pty.openpty()
    before = subprocess.run(["stty", "-g"], stdin=terminal, capture_output=True, check=True).stdout
    subprocess.run(["stty", "rows", "33", "cols", "44"], stdin=terminal, check=True)
    script = (
        "stty size; while [ \"$(stty size)\" = '33 44' ]; do sleep 0.02; done; stty size; "
        "read x; echo got $x; exit 4"
    )
    process = world.start(
        "run", "-it", "fake", "sh", "-c", script,
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
    )  # fmt: skip
    with os.fdopen(master, "r+b", buffering=0) as user:
        read_until(user, b"33 44")
        during = subprocess.run(["stty", "-g"], stdin=terminal, capture_output=True, check=True)
        assert during.stdout != before
        subprocess.run(["stty", "rows", "50", "cols", "60"], stdin=terminal, check=True)
        process.send_signal(signal.SIGWINCH)
        read_until(user, b"50 60")
        user.write(b"hello\r")
        read_until(user, b"got hello")
        assert process.wait(30) == 4
        after = subprocess.run(
            ["stty", "-g"], stdin=terminal, capture_output=True, check=True
        ).stdout
    assert after.split(b":")[:4] == before.split(b":")[:4]
    os.close(terminal)
    world.assert_nothing_left()


def test_a_killed_command_leaves_nothing(world: World) -> None:
    process = world.start("run", "fake", "sh", "-c", "echo ready; sleep 60")
    assert process.stdout is not None
    read_until(process.stdout, b"ready\n")
    process.kill()
    process.communicate()
    world.assert_nothing_left()


@pytest.mark.parametrize("service", ["vmm", "fsd", "fork"])
def test_a_service_killed_under_a_running_command(world: World, service: str) -> None:
    process = world.start("run", "fake", "sh", "-c", "echo ready; sleep 60")
    assert process.stdout is not None
    read_until(process.stdout, b"ready\n")
    os.kill(world.pid(service), signal.SIGKILL)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 125
    assert b"was killed by signal 9 (SIGKILL)" in stderr
    if service != "fork":
        assert f"{service}.".encode() in stderr
    assert stderr.count(b"\n") == 1
    world.assert_nothing_left()


def test_what_nohup_ignores_stays_ignored(world: World) -> None:
    process = world.start(
        "run", "fake", "sh", "-c", "echo ready; while [ ! -e go ]; do sleep 0.02; done; echo end",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert process.stdout is not None
    read_until(process.stdout, b"ready\n")
    process.send_signal(signal.SIGHUP)
    (guest,) = world.scratch.glob("fake-guest-*")
    (guest / "go").touch()
    assert process.communicate(timeout=30)[0] == b"end\n"
    assert process.returncode == 0


def test_progress_is_shown_on_a_terminal_only(world: World) -> None:
    assert world.run("pull", "fake").stderr == ""
    master, terminal = pty.openpty()
    process = world.start("pull", "fake", stderr=terminal)
    with os.fdopen(master, "rb", buffering=0) as screen:
        assert b"layer fake" in read_until(screen, b"layer fake")
        process.communicate(timeout=30)
        os.close(terminal)
    assert process.returncode == 0
    eventually(lambda: not world.left(), "something is left")
