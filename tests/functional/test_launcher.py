"""The launcher and the processes that wait to be its commands, over the fake services."""

import os
import pty
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.command import eventually, read_until
from framework.launched import ALONE, LaunchedWorld, install

KILLED = "crumble: The process that ran this command was killed. Its VM is ended.\n"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[LaunchedWorld]:
    made = LaunchedWorld(tmp_path)
    made.serve()
    yield made
    made.end()


def vms(world: LaunchedWorld) -> set[str]:
    return {name for name in world.services() if name.startswith("crumble-vmm")}


def test_what_a_command_is_reaches_the_process_that_waited(
    world: LaunchedWorld, tmp_path: Path
) -> None:
    (tmp_path / "é").mkdir()
    (tmp_path / "é" / "env").write_text("A=file\n")
    world.environment["MINE"] = "hé"
    shown = "cat; echo $A $MINE; echo err >&2; exit 3"
    process = world.start(
        "run", "-i", "--env-file", "env", "-e", "MINE", "fake", "sh", "-c", shown,
        cwd=tmp_path / "é", stdin=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate(b"in\n", timeout=60)
    assert (process.returncode, out, err) == (3, "in\nfile hé\n".encode(), b"err\n")


def test_one_after_another_and_many_at_once(world: LaunchedWorld) -> None:
    for number in range(3):
        assert world.run("run", "fake", "sh", "-c", f"exit {number}").returncode == number
    processes = [world.start("run", "fake", "sh", "-c", f"exit {n}") for n in range(6)]
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == list(range(6))
    assert world.run("run", "--help").stdout.startswith("usage: crumble run")
    assert world.run("run", "--no-such-option", "fake").returncode == 125


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_reach_the_guests_command(world: LaunchedWorld, number: int) -> None:
    process = world.start("run", "fake", "sh", "-c", "echo up; exec sleep 1000")
    assert process.stdout is not None
    read_until(process.stdout, b"up\n")
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number


def test_what_is_ignored_stays_ignored(world: LaunchedWorld) -> None:
    shown = "trap 'echo heard; exit 5' HUP TERM; echo up; while :; do sleep 0.05; done"
    words = ["nohup", str(world.launcher), "run", "fake", "sh", "-c", shown]
    process = world.start_by(words)
    assert process.stdout is not None
    read_until(process.stdout, b"up\n")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (5, b"heard\n")


def test_it_stops_and_goes_on_with_the_launcher(world: LaunchedWorld) -> None:
    worker = world.waiting()
    process = world.start("run", "-i", "fake", "cat", stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    os.write(process.stdin.fileno(), b"one\n")
    read_until(process.stdout, b"one\n")
    process.send_signal(signal.SIGTSTP)
    for pid in (process.pid, worker):
        eventually(lambda pid=pid: state(pid) == "T", "it goes on")
    process.send_signal(signal.SIGCONT)
    os.write(process.stdin.fileno(), b"two\n")
    read_until(process.stdout, b"two\n")
    process.stdin.close()
    assert process.wait(60) == 0


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_terminal_is_the_commands(world: LaunchedWorld) -> None:
    ours, theirs = pty.openpty()
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
    process = world.start("run", "-it", "fake", "sh", "-c", "tty; read a; echo got $a", **streams)
    os.close(theirs)
    with open(ours, "r+b", 0) as terminal:
        read_until(terminal, b"/dev/pts/")
        terminal.write(b"x\n")
        read_until(terminal, b"got x")
        assert process.wait(60) == 0


def test_a_killed_launcher_ends_its_vm(world: LaunchedWorld) -> None:
    process = world.start("run", "fake", "sh", "-c", "echo up; exec sleep 1000")
    assert process.stdout is not None
    read_until(process.stdout, b"up\n")
    assert vms(world)
    process.kill()
    process.communicate(timeout=60)
    eventually(lambda: not vms(world), "its VM goes on")


def test_a_killed_process_is_told_and_its_vm_ended(world: LaunchedWorld) -> None:
    worker = world.waiting()
    process = world.start("run", "fake", "sh", "-c", "echo up; exec sleep 1000")
    assert process.stdout is not None
    read_until(process.stdout, b"up\n")
    os.kill(worker, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.decode()) == (125, KILLED)
    eventually(lambda: not vms(world), "its VM goes on")
    assert world.run("run", "fake", "sh", "-c", "exit 4").returncode == 4


def test_who_waits_may_be_killed_and_so_may_its_maker(world: LaunchedWorld) -> None:
    for victim in (world.waiting, world.server):
        pid = victim()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda pid=pid: pid not in world.services().values(), "it lives")
        assert world.run("run", "fake", "sh", "-c", "exit 4").returncode == 4


def test_one_that_does_not_answer_is_done_without(world: LaunchedWorld) -> None:
    waiting = world.waiting()
    os.kill(waiting, signal.SIGSTOP)
    assert world.run("run", "fake", "true").returncode == ALONE
    os.kill(waiting, signal.SIGCONT)
    assert world.run("run", "fake", "true").returncode == 0


def test_limits_are_the_launchers(world: LaunchedWorld, tmp_path: Path) -> None:
    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    with (tmp_path / "out").open("wb") as out:
        process = world.start(
            "run", "fake", "sh", "-c", "head -c 20000 /dev/zero", stdout=out, preexec_fn=limited
        )
        _, err = process.communicate(timeout=60)
    assert process.returncode == 125
    assert b"cannot be written to stdout: File too large" in err
    assert (tmp_path / "out").stat().st_size == 8192


def test_others_do_it_themselves(world: LaunchedWorld, tmp_path: Path) -> None:
    """Another installation's, one with another encoding, with a stream closed, who asks for it; other verbs."""
    foreign = install(tmp_path / "foreign")
    done = world.start_by([str(foreign), "run", "fake", "sh", "-c", "exit 6"])
    done.communicate(timeout=60)
    assert done.returncode == 6, "by the Python beside it"
    run = [str(world.launcher), "run", "fake", "true"]
    for words in (
        ["env", "LC_ALL=de_DE.ISO-8859-1", *run],
        ["env", "CRUMBLE_ALONE=1", *run],
        ["sh", "-c", 'exec "$@" <&-', "sh", *run],
        [str(world.launcher), "ps"],
    ):
        process = world.start_by(words)
        process.communicate(timeout=60)
        assert process.returncode == ALONE, words


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take these rights away")
@pytest.mark.parametrize(
    "before",
    [
        ["setpriv", "--groups", "54321"],
        ["setpriv", "--bounding-set", "-all", "--no-new-privs"],
        ["unshare", "--mount"],
        ["unshare", "--net"],
    ],
)
def test_who_has_other_rights_or_sees_something_else_does_it_himself(
    world: LaunchedWorld, before: list[str]
) -> None:
    process = world.start_by([*before, str(world.launcher), "run", "fake", "true"])
    process.communicate(timeout=60)
    assert process.returncode == ALONE


def test_after_an_upgrade_they_do_it_themselves(world: LaunchedWorld) -> None:
    new = world.launcher.with_name("new")
    shutil.copy2(world.launcher, new)
    new.replace(world.launcher)
    assert world.run("run", "fake", "true").returncode == ALONE


def test_nothing_is_left(world: LaunchedWorld) -> None:
    assert world.run("run", "fake", "true").returncode == 0
    world.end_by_down()
    world.assert_nothing_left()
