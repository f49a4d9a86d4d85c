"""The other verbs over the fake services; VMs under a daemon."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble.cli.main import VERBS
from framework.command import World, eventually, read_until


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.end()


@pytest.fixture
def daemon(world: World) -> World:
    world.up()
    return world


def test_help_fits_a_screen_and_names_every_verb(world: World) -> None:
    text = world.run("--help").stdout
    assert all(verb in text for verb in VERBS)
    for verb in ("", *VERBS):
        shown = world.run(*filter(None, [verb]), "--help").stdout
        assert 3 <= shown.count("\n") <= 50, verb
        assert max(map(len, shown.splitlines())) <= 105, verb


def test_version_and_unknown_verbs(world: World) -> None:
    assert world.run("--version").stdout.startswith("crumble 0.")
    done = world.run("fly")
    assert done.returncode == 125
    assert "no verb 'fly'" in done.stderr
    assert world.run().returncode == 125


def test_images(world: World, tmp_path: Path) -> None:
    assert world.run("pull", "fake").stdout.startswith("sha256:")
    assert json.loads(world.run("pull", "--json", "fake").stdout)["reference"] == "fake"
    assert "linux/riscv64" in world.run("images").stdout
    assert world.run("images", "-q").stdout == "fake\nentry\n"
    assert len(json.loads(world.run("images", "--json").stdout)) == 2
    assert json.loads(world.run("inspect", "fake").stdout)["references"] == ["fake"]
    assert "removed fake" in world.run("rmi", "fake").stdout
    out = tmp_path / "image.tar"
    assert world.run("save", "fake", "-o", str(out)).stdout == f"{out}\n"
    assert out.read_text() == "docker-archive"
    world.run("export", "fake", "-o", str(tmp_path / "layout"))
    assert (tmp_path / "layout").read_text() == "oci"
    world.assert_nothing_left()


def test_without_a_daemon(world: World) -> None:
    assert world.run("ps", "--json").stdout == "[]\n"
    assert world.run("ps").returncode == 0
    for words in (["exec", "a", "b"], ["logs", "a"], ["stop", "a"]):
        done = world.run(*words)
        assert done.returncode == 125
        assert "No supervisor is running. `crumble up --detach` starts one." in done.stderr
    assert world.run("down").returncode == 0


def test_a_detached_vm_lives_until_its_command_ends(daemon: World) -> None:
    script = "echo started; read x < /proc/self/fd/0; sleep 60"
    done = daemon.run("run", "-d", "--name", "web", "fake", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, "web\n"), done.stderr
    shown = json.loads(daemon.run("ps", "--json").stdout)
    assert [(vm["name"], vm["state"]) for vm in shown] == [("web", "running")]
    eventually(lambda: "started" in daemon.run("logs", "web").stdout, "no log")
    assert daemon.run("stop", "web").stdout == "web\n"
    assert daemon.run("ps", "-a", "-q").stdout == ""
    assert daemon.run("down").returncode == 0
    daemon.assert_nothing_left()


def test_an_ended_vm_is_known_until_it_is_removed(daemon: World) -> None:
    daemon.run("run", "-d", "--name", "job", "fake", "sh", "-c", "echo done; exit 3")
    eventually(lambda: not daemon.run("ps", "-q").stdout, "still running")
    (vm,) = json.loads(daemon.run("ps", "--all", "--json").stdout)
    assert (vm["state"], vm["detail"]) == ("stopped", "Its command ended with status 3.")
    assert daemon.run("logs", "job").stdout == "done\n"
    assert daemon.run("stop", "job").returncode == 0
    assert "There is no VM job" in daemon.run("logs", "job").stderr


def test_exec_runs_many_commands_in_one_vm(daemon: World) -> None:
    daemon.run("run", "-d", "--name", "box", "fake", "sleep", "60")
    many = [daemon.start("exec", "box", "sh", "-c", f"echo {n}; exit {n}") for n in range(4)]
    for number, process in enumerate(many):
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout, stderr) == (number, f"{number}\n".encode(), b"")
    assert daemon.run("exec", "-i", "box", "cat", data=b"x").stdout == "x"
    assert daemon.run(
        "exec", "-e", "A=1", "-w", "/usr", "box", "sh", "-c", "echo $A; pwd"
    ).stdout == ("1\n/usr\n")
    assert daemon.run("exec", "box", "nope").returncode == 127
    assert "There is no VM nope" in daemon.run("exec", "nope", "true").stderr
    assert daemon.run("exec", "--timeout", "0.2", "box", "sleep", "60").returncode == 124
    daemon.environment["TERM"] = "vt100"
    assert daemon.run("exec", "-t", "box", "sh", "-c", "echo $TERM").stdout.strip() == "vt100"
    assert (
        daemon.run("exec", "-t", "-e", "TERM=x", "box", "sh", "-c", "echo $TERM").stdout.strip()
        == "x"
    )
    (vm,) = json.loads(daemon.run("ps", "--json").stdout)
    assert daemon.run("exec", vm["id"][:6], "echo", "by id").stdout == "by id\n"


def test_an_attached_run_uses_the_daemon_and_ends_with_its_client(daemon: World) -> None:
    process = daemon.start("run", "--name", "mine", "fake", "sh", "-c", "echo ready; sleep 60")
    assert process.stdout is not None
    read_until(process.stdout, b"ready\n")
    assert daemon.run("ps", "-q").stdout == "mine\n"
    process.kill()
    process.communicate()
    eventually(lambda: not daemon.run("ps", "-a", "-q").stdout, "the VM stayed")


def test_a_killed_exec_takes_its_process_with_it(daemon: World) -> None:
    daemon.run("run", "-d", "--name", "box", "fake", "sleep", "60")
    process = daemon.start("exec", "box", "sh", "-c", "echo $$; exec sleep 61")
    assert process.stdout is not None
    pid = int(read_until(process.stdout, b"\n"))
    process.kill()
    process.communicate()
    eventually(lambda: not Path(f"/proc/{pid}/cmdline").exists(), "the process stayed")
    assert daemon.run("ps", "-q").stdout == "box\n"


def test_logs_follow_to_the_end(daemon: World) -> None:
    script = "echo one; while [ ! -e go ]; do sleep 0.02; done; echo two"
    daemon.run("run", "-d", "--name", "box", "fake", "sh", "-c", script)
    process = daemon.start("logs", "-f", "box")
    assert process.stdout is not None
    read_until(process.stdout, b"one\n")
    daemon.run("exec", "box", "touch", "go")
    output, _ = process.communicate(timeout=30)
    assert output == b"two\n"
    assert daemon.run("logs", "-n", "1", "box").stdout == "two\n"


def test_names_are_unique_while_in_use(daemon: World) -> None:
    daemon.run("run", "-d", "--name", "box", "fake", "sleep", "60")
    done = daemon.run("run", "-d", "--name", "box", "fake", "sleep", "60")
    assert done.returncode == 125
    assert "There is a VM box already" in done.stderr


def test_a_detached_command_that_is_not_there_is_an_error_and_no_vm(daemon: World) -> None:
    done = daemon.run("run", "-d", "fake", "nope")
    assert done.returncode == 127
    assert "not found" in done.stderr
    eventually(lambda: not daemon.run("ps", "-q").stdout, "the VM stayed")


def test_one_daemon_only_and_down_ends_everything(daemon: World) -> None:
    done = daemon.run("up", "-d")
    assert done.returncode == 125
    assert "running already" in done.stderr
    daemon.run("run", "-d", "--name", "a", "fake", "sleep", "60")
    daemon.run("run", "-d", "--name", "b", "--cmdline", "fake=stubborn", "fake", "sleep", "60")
    assert daemon.run("down", "-t", "1").returncode == 0
    assert daemon.left() == []


def test_a_killed_daemon_leaves_nothing_and_its_clients_say_so(daemon: World) -> None:
    process = daemon.start("run", "fake", "sh", "-c", "echo ready; sleep 60")
    assert process.stdout is not None
    read_until(process.stdout, b"ready\n")
    (pid,) = [pid for name, pid in daemon.services().items() if b"up" in cmdline(pid)]
    os.kill(pid, signal.SIGKILL)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 125
    assert b"The supervisor has ended" in stderr
    daemon.assert_nothing_left()
    daemon.up()
    assert daemon.run("down").returncode == 0


@pytest.mark.parametrize("service", ["vmm", "fsd", "ocid", "fork"])
def test_the_daemon_survives_any_service(daemon: World, service: str) -> None:
    daemon.run("run", "-d", "--name", "box", "fake", "sleep", "60")
    os.kill(daemon.pid(service), signal.SIGKILL)
    if service != "ocid":
        eventually(lambda: not daemon.run("ps", "-q").stdout, "the VM stayed")
        (vm,) = json.loads(daemon.run("ps", "-a", "--json").stdout)
        assert vm["state"] == "failed"
        assert "was killed by signal 9 (SIGKILL)" in vm["detail"]
    assert daemon.run("run", "fake", "echo", "again").stdout == "again\n"
    daemon.run("down", "-t", "0")
    daemon.assert_nothing_left()


def test_up_in_the_foreground_ends_by_signal(world: World) -> None:
    process = world.start("up")
    assert process.stderr is not None
    assert b"The supervisor is running" in read_until(process.stderr, b"\n")
    assert world.run("run", "fake", "echo", "x").stdout == "x\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0
    world.assert_nothing_left()


def cmdline(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
