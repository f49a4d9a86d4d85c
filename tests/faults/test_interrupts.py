"""Streams that are closed, terminals that hang up, signals at each stage, once and twice."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections.abc import Iterator

import pytest

from framework.command import eventually, read_until
from framework.real_crumble import COMMAND, IMAGE, RealWorld, check_sentence, real_world

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]

# Says so when it gets a signal, and goes on.
STUBBORN = "trap 'echo got it' INT TERM HUP; echo ready; while :; do sleep 0.1; done"


def run_stubborn(world: RealWorld) -> None:
    """The VM box, whose command minds no signal from now on."""
    assert world.run("run", "-d", "--name", "box", IMAGE, "sh", "-c", STUBBORN).returncode == 0
    eventually(lambda: "ready" in world.run("logs", "box").stdout, "its command does not begin")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealWorld]:
    with real_world(tmp_path_factory.mktemp("interrupts") / "w") as made:
        yield made


@pytest.fixture
def world(shared: RealWorld) -> Iterator[RealWorld]:
    yield shared
    shared.assert_nothing_left()


def shell(world: RealWorld, script: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a script of the host's shell, where $CRUMBLE is the command."""
    return subprocess.run(
        ["sh", "-c", script],
        env=world.environment | {"CRUMBLE": str(COMMAND), "IMAGE": IMAGE},
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("stage", ["fork", "ocid", "vmm"])
def test_signals_at_each_stage(world: RealWorld, stage: str, number: int) -> None:
    process = world.start("run", "--no-snapshot", IMAGE, "sleep", "600")
    world.pid(stage)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (128 + number, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_ends_a_stubborn_command(world: RealWorld, number: int) -> None:
    process = world.start("run", IMAGE, "sh", "-c", STUBBORN)
    assert process.stdout is not None
    read_until(process.stdout, b"ready\n")
    process.send_signal(number)
    read_until(process.stdout, b"got it\n")
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number


def test_a_second_signal_ends_a_supervisor_whose_vms_do_not(world: RealWorld) -> None:
    daemon = world.start("up")
    assert daemon.stderr is not None
    read_until(daemon.stderr, b"is running in")
    run_stubborn(world)
    process = world.start("exec", "box", "sh", "-c", STUBBORN)
    assert process.stdout is not None
    read_until(process.stdout, b"ready\n")
    down = world.start("down", "-t", "3000")
    eventually(lambda: "stopping" in world.run("ps", "-a").stdout, "it does not stop")

    def ended() -> bool:
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGTERM)
        return daemon.poll() is not None

    eventually(ended, "signals do not end it")
    assert daemon.returncode in (0, -signal.SIGTERM)  # one may come when Python has ended
    assert down.wait(30) == 0
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 125
    said = stderr.decode().splitlines(keepends=True)[-1]  # before it, the guest's shell
    check_sentence(said, "The VM box was stopped|supervisor has ended")


def test_who_asks_for_a_stop_may_go(world: RealWorld) -> None:
    """What was asked for is done all the same, and asked for again it is no error."""
    daemon = world.start("up")
    assert daemon.stderr is not None
    read_until(daemon.stderr, b"is running in")
    run_stubborn(world)
    stop = world.start("stop", "-t", "3000", "box")
    eventually(lambda: "stopping" in world.run("ps", "-a").stdout, "it does not stop")
    stop.send_signal(signal.SIGINT)
    assert (stop.wait(30), stop.communicate()) == (130, (b"", b""))
    assert "stopping" in world.run("ps", "-a").stdout
    assert world.run("stop", "-t", "0", "box").returncode == 0
    assert "box" not in world.run("ps", "-a").stdout
    assert world.run("down").returncode == 0
    assert daemon.wait(30) == 0


def test_a_reader_that_goes_away(world: RealWorld) -> None:
    """As in a host's pipe: the writer ends by SIGPIPE, silently."""
    done = shell(world, '{ "$CRUMBLE" run $IMAGE yes; echo $? >&2; } | head -1')
    assert (done.stdout, done.stderr) == (b"y\n", b"141\n")
    done = shell(world, '{ "$CRUMBLE" --help; echo $? >&2; } | true')
    assert done.stderr in (b"141\n", b"0\n")


@pytest.mark.parametrize(
    ("closed", "stdout"),
    [("<&-", b"out\n"), (">&-", b""), ("2>&-", b"out\n"), ("<&- >&- 2>&-", b"")],
)
def test_streams_that_are_closed_from_the_start(
    world: RealWorld, closed: str, stdout: bytes
) -> None:
    script = "echo out; echo err >&2; exit 7"
    done = shell(world, f'"$CRUMBLE" run $IMAGE sh -c "{script}" {closed}')
    assert done.stdout == stdout
    assert done.stderr == (b"" if "2>" in closed else b"err\n")
    assert done.returncode == 7
    assert shell(world, f'"$CRUMBLE" ps {closed}').returncode == 0
    assert shell(world, f'"$CRUMBLE" no-such-verb {closed}').returncode == 125


def test_output_that_finds_no_room(world: RealWorld) -> None:
    """Never lost unseen, and the command does not go on for nobody."""
    done = shell(world, '"$CRUMBLE" run $IMAGE sh -c "echo out; sleep 1000" >/dev/full')
    assert done.returncode == 125
    text = b"crumble: The command's output cannot be written to stdout: No space left on device."
    assert done.stderr.startswith(text), done.stderr
    assert shell(world, '"$CRUMBLE" run $IMAGE sh -c "echo >&2" 2>/dev/full').returncode == 125
    assert shell(world, '"$CRUMBLE" ps >/dev/full').returncode == 125


def test_a_terminal_that_hangs_up(world: RealWorld) -> None:
    """The shell in the guest ends, and everything with it."""
    master, terminal = pty.openpty()
    process = world.start(
        "run", "-it", IMAGE, "sh", stdin=terminal, stdout=terminal, stderr=terminal,
        preexec_fn=lambda: (os.setsid(), __import__("fcntl").ioctl(0, 0x540E, 0)),  # TIOCSCTTY
    )  # fmt: skip
    os.close(terminal)
    with os.fdopen(master, "rb", buffering=0) as user:
        read_until(user, b"# ")
    assert process.wait(60) != 0


def test_stdin_that_ends_in_the_middle(world: RealWorld) -> None:
    process = world.start("run", "-i", IMAGE, "sh", "-c", "cat; echo end", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"half a li")
    process.stdin.close()
    process.stdin = None
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (0, b"half a liend\n", b"")
