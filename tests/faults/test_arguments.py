"""What a user may write that cannot be: a sentence that says what to do, the right status, nothing left."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.real_crumble import IMAGE, RealWorld, check_sentence, real_world

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]

BYTES = os.fsdecode(b"\xff\xfe")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealWorld]:
    with real_world(tmp_path_factory.mktemp("arguments") / "w") as made:
        yield made


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealWorld]:
    """A supervisor with a VM "box"."""
    with real_world(tmp_path_factory.mktemp("box") / "w") as made:
        made.up()
        done = made.run("run", "-d", "--name", "box", IMAGE, "sleep", "100000")
        assert done.returncode == 0, done.stderr
        yield made
        assert made.run("down", "-t", "0").returncode == 0


def refused(world: RealWorld, *words: str, status: int = 125, says: str = "") -> None:
    """Two sentences at least, what is wrong and what to do, none of them long."""
    done = world.run(*words)
    assert (done.returncode, done.stdout) == (status, ""), done
    check_sentence(done.stderr, says)
    assert len(done.stderr) < 600
    assert any(mark in done.stderr for mark in (". ", ".\n"))
    assert done.stderr.count(". ") >= 1, f"nothing says what to do: {done.stderr}"


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--memory=0", "cannot have 0 MB of memory. Give it between"),
        ("--memory=95m", "cannot have 95 MB of memory"),
        ("--memory=1t", "cannot have 1048576 MB of memory"),
        ("--memory=999999999999999t", "of memory. Give it between"),
        ("--memory=-512m", "is no size. Write it like 512m"),
        ("--memory=nonsense", "is no size. Write it like 512m"),
        ("--memory=", "is no size. Write it like 512m"),
        ("--cpus=0", "cannot have 0 CPUs. Give it between 1 and"),
        ("--cpus=-1", "cannot have -1 CPUs"),
        ("--cpus=100", "cannot have 100 CPUs"),
        ("--cpus=99999999999999999999", "A number is out of all range"),
        ("--cpus=two", "invalid int value: 'two'. `crumble run --help`"),
        ("--boot-timeout=0", "no number of seconds above 0"),
        ("--timeout=nan", "no number of seconds above 0"),
        ("--hv=kvm", "/dev/kvm.*--hv soft"),
        ("--hv=xen", "invalid choice: 'xen'"),
        ("--name=../x", "cannot be a VM's name. Use letters"),
        ("--hostname=a b", "is no host name. Use letters"),
        ("--pull=sometimes", "invalid choice"),
        ("--no-such-option", "Unrecognized arguments"),
        ("--detach", "No supervisor is running. `crumble up --detach` starts one"),
        ("--entrypoint='", "quotation mark that is not closed"),
        ("--cmdline=" + "x" * 5000, "too long. Keep it under"),
        ("--env==x", "'=x' is no variable. Write KEY=VALUE"),
        ("--env=", "is no variable"),
        (f"--env=A={BYTES}", "is not text in UTF-8. Write it in UTF-8"),
        ("--env-file=/no/such", "Cannot read /no/such: No such file or directory. --env-file"),
        ("--env-file=/", "Cannot read /: Is a directory"),
        ("--volume=/no/such:/x", "The share /no/such does not exist"),
        ("--volume=nonsense", "'nonsense' is no volume. Write HOST_PATH:GUEST_PATH"),
        ("--volume=:/x", "is no volume"),
        ("--volume=/tmp:", "is no volume"),
        ("--volume=/tmp:/x:rx", "is no volume"),
        ("--volume=/tmp:/", "'/' cannot be a place for a share"),
        ("--volume=/tmp:relative", "'relative' cannot be a place for a share"),
        ("--volume=/tmp:/a/../../b", "cannot be a place for a share"),
        (f"--volume=/tmp:/{BYTES}", "is not text in UTF-8"),
        ("--volume=/tmp:/etc/passwd", "there is a file at that path. Choose another"),
        ("--volume=/dev/null:/x", "neither a directory nor a regular file"),
    ],
)
def test_options(world: RealWorld, option: str, says: str) -> None:
    refused(world, "run", option, IMAGE, "true", says=says)


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("no-such-command", 127, "'no-such-command' was not found in the guest. Check"),
        ("/etc/passwd/x", 127, "was not found in the guest"),
        ("", 127, "The command is an empty string. Name"),
        ("x" * 5000, 127, "x…' was not found in the guest"),
        ("/etc/passwd", 126, "'/etc/passwd' cannot be executed in the guest: Permission denied"),
        ("/etc", 126, "'/etc' cannot be executed in the guest"),
        (BYTES, 125, "is not text in UTF-8"),
    ],
)
def test_commands(box: RealWorld, command: str, status: int, says: str) -> None:
    refused(box, "exec", "box", command, status=status, says=says)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--workdir=relative", "'relative' cannot be entered in the guest"),
        ("--workdir=/etc/passwd", "'/etc/passwd' cannot be entered in the guest: Not a directory"),
        ("--user=who", "no user 'who' in the guest. Use one"),
        ("--user=root:who", "no group 'who' in the guest. Use one"),
        ("--user=-7", "no user '-7'"),
        ("--user=99999999999", "no user '99999999999'"),
    ],
)
def test_options_of_processes(box: RealWorld, option: str, says: str) -> None:
    refused(box, "exec", option, "box", "true", says=says)


def test_a_command_that_is_not_there(world: RealWorld) -> None:
    says = "'no-such-command' was not found in the guest. Check"
    refused(world, "run", IMAGE, "no-such-command", status=127, says=says)
    says = "The command is an empty string. Give a command"
    refused(world, "run", IMAGE, "", status=127, says=says)
    world.assert_nothing_left()


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("x/", "is not the name of an image. Write NAME"),
        ("", "The image is missing"),
        ("UPPER", "has capital letters"),
        ("x:y:z", "has a tag that is none"),
        ("x@sha256:12", "has a digest that is not"),
        ("y" * 300, "is not the name of an image"),
        (f"oci:/{BYTES}", "is not text in UTF-8"),
        ("deb:", "does not name a Debian suite. Write deb:SUITE"),
        ("deb:no-such-suite", "no-such-suite"),
        ("deb:trixie/no-such-package", "There is no package 'no-such-package' in Debian trixie"),
        ("deb:trixie/,", "names '', which cannot be a package"),
        ("oci:/no/such", "There is no /no/such. Give the path of"),
        ("oci:/tmp", "/tmp is not an OCI layout"),
        ("docker-archive:/etc/passwd", ""),
        ("no-such-registry.invalid/x", "Cannot talk to no-such-registry.invalid: [^[]*Check the"),
    ],
)
def test_images(world: RealWorld, image: str, says: str) -> None:
    refused(world, "run", image, "true", says=says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no-such-verb"], "There is no verb 'no-such-verb'. `crumble --help`"),
        (["run"], "The image is missing. "),
        (["exec", "box"], "The command is missing"),
        (["exec", "box", "true"], "No supervisor is running"),
        (["stop", "box"], "No supervisor is running"),
        (["logs", "box"], "No supervisor is running"),
        (["inspect", "--vm", "box"], "No supervisor is running"),
        (["inspect", "no-such-image"], "no image 'no-such-image' in the store. `crumble images`"),
        (["rmi", "no-such-image"], "no image 'no-such-image' in the store"),
        (["run", "--pull=never", "no-such-image"], "in the store. `crumble pull` gets it"),
        (["save", "no-such-image", "-o", "oci:/tmp/none"], "no image 'no-such-image' in the store"),
    ],
)
def test_verbs(world: RealWorld, words: list[str], says: str) -> None:
    refused(world, *words, says=says)


def test_a_mirror_and_a_registry_at_a_closed_port(world: RealWorld, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
        says = f"Cannot talk to {host}: Connection refused. Check the network and try again"
        refused(world, "run", f"{host}/some/image", "true", says=says)
        with real_world(tmp_path / "empty", filled=False) as empty:
            empty.environment["CRUMBLE_DEBIAN_MIRROR"] = f"http://{host}/debian"
            refused(empty, "run", IMAGE, "true", says=says)
            empty.environment["CRUMBLE_DEBIAN_MIRROR"] = "nonsense"
            refused(empty, "run", IMAGE, "true", says="no http or https address. Set it to one")
