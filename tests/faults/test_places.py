"""Disks that are full or read-only, places that are somebody else's, names that are too long, no HOME."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.real_crumble import COMMAND, IMAGE, RealWorld, check_sentence, real_world, refused

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[RealWorld]:
    with real_world(tmp_path / "w", filled=False) as made:
        yield made


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    """A tmpfs; skips where mounting is not allowed."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_while_an_image_is_fetched(world: RealWorld) -> None:
    """Nothing half-written stays, and with space it works."""
    source = (
        RealWorld.__name__
    )  # the packages come from the archive: only their beginning is needed
    assert source
    with mounted(world.data, "size=2m,mode=700"):
        for verb in (["pull", IMAGE], ["run", IMAGE, "true"]):
            refused(world, *verb, says="No space left on device. .*Free|disk is full|space")


def test_a_full_runtime_directory(tmp_path: Path) -> None:
    with real_world(tmp_path / "w") as world, mounted(world.runtime, "size=4k,mode=700"):
        with contextlib.suppress(OSError):
            (world.runtime / "x").write_bytes(bytes(8192))
        done = world.run("run", IMAGE, "echo", "alive")
        if done.returncode:
            check_sentence(done.stderr, "space")
        (world.runtime / "x").unlink()


def test_a_read_only_data_directory(world: RealWorld, tmp_path: Path) -> None:
    with mounted(tmp_path / "empty", "ro,mode=700"):
        world.environment["CRUMBLE_DATA_DIR"] = str(tmp_path / "empty")
        refused(world, "run", IMAGE, "true", says="Read-only file system. Set CRUMBLE_")


def test_a_read_only_data_directory_with_everything_in_it(tmp_path: Path) -> None:
    """A store in use is locked, and written to."""
    with real_world(tmp_path / "w") as world:
        assert world.run("run", IMAGE, "true").returncode == 0
        bind = ["mount", "--bind", str(world.data), str(world.data)]
        if subprocess.run(bind, capture_output=True).returncode:
            pytest.skip("mounting is not allowed")
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", str(world.data)], check=True)
            says = f"{world.data}.*Read-only file system.*write to"
            for words in (["run", IMAGE, "true"], ["pull", IMAGE], ["rmi", IMAGE]):
                refused(world, *words, says=says)
        finally:
            subprocess.run(["umount", "-l", str(world.data)], check=True)


def test_places_of_others(world: RealWorld, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give directories away")
    other = tmp_path / "other"
    other.mkdir()
    os.chown(other, 1234, 1234)
    says = "is not a directory owned by you. Remove it, or choose another place. Set CRUMBLE_"
    for name in ("CRUMBLE_DATA_DIR", "CRUMBLE_RUNTIME_DIR"):
        before = world.environment[name]
        world.environment[name] = str(other)
        refused(world, "run", IMAGE, "true", says=says)
        assert not list(other.iterdir())
        world.environment[name] = before


@pytest.mark.parametrize("name", ["CRUMBLE_DATA_DIR", "CRUMBLE_RUNTIME_DIR"])
def test_places_that_cannot_be_made(world: RealWorld, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "w")
    for place, says in (
        ("/proc/none", "Cannot create /proc/none: .*Set CRUMBLE_"),
        (str(tmp_path / "file"), "(is not a directory owned by you|Cannot create).*Set CRUMBLE_"),
        (str(tmp_path / "file" / "below"), "Cannot create .*: Not a directory. Set CRUMBLE_"),
        (str(tmp_path / "link"), "is not a directory owned by you"),
        (os.fsdecode(os.fsencode(tmp_path) + b"/\xff"), "is not text in UTF-8"),
    ):
        before = world.environment[name]
        world.environment[name] = place
        for words in (["run", IMAGE, "true"], ["up", "--detach"], ["pull", IMAGE]):
            if words[0] == "up" and name == "CRUMBLE_DATA_DIR":
                continue  # a supervisor asks for it when it needs it
            refused(world, *words, says=says)
        world.environment[name] = before


def test_a_runtime_directory_whose_sockets_names_would_be_too_long(
    world: RealWorld, tmp_path: Path
) -> None:
    before = world.environment["CRUMBLE_RUNTIME_DIR"]
    world.environment["CRUMBLE_RUNTIME_DIR"] = str(tmp_path / ("x" * 100))
    for words in (["run", IMAGE, "true"], ["up"], ["up", "--detach"]):
        refused(world, *words, says="too long for sockets .*Set CRUMBLE_RUNTIME_DIR")
    assert not list((tmp_path / ("x" * 100)).glob("*"))
    world.environment["CRUMBLE_RUNTIME_DIR"] = before


def test_no_home_no_tmpdir_no_path(tmp_path: Path) -> None:
    """None of them is needed where the directories are given; without, they are found or refused."""
    with real_world(tmp_path / "w") as world:
        for name in ("HOME", "TMPDIR", "PATH", "XDG_RUNTIME_DIR", "USER", "LANG", "TERM"):
            world.environment.pop(name, None)
        done = world.run("run", IMAGE, "echo", "alive")
        assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")
        world.environment["TMPDIR"] = "/no/such/directory"
        assert world.run("run", IMAGE, "echo", "alive").stdout == "alive\n"


def test_relative_places(tmp_path: Path) -> None:
    """They are where the command is, also for services that are elsewhere."""
    with real_world(tmp_path / "w") as world:
        before = dict(world.environment)
        world.environment.update(CRUMBLE_RUNTIME_DIR="run", CRUMBLE_DATA_DIR="data")
        process = world.start("run", IMAGE, "echo", "alive", cwd=tmp_path / "w")
        assert process.communicate(timeout=60) == (b"alive\n", b"")
        assert not Path("/data").exists(), "a service took it for its own"
        world.environment = before


def test_shares_that_may_not_be_read(tmp_path: Path) -> None:
    """A root that is held to permissions is as good as somebody else here."""
    drop = "-dac_override,-dac_read_search"
    held = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"]
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (private / "file").write_text("")
    (private / "file").chmod(0o600)
    if os.geteuid() or subprocess.run([*held, "true"]).returncode:
        pytest.skip("only root can give directories away")
    for path in (private / "file", private):
        os.chown(path, 1234, 1234)
    with real_world(tmp_path / "w") as world:

        def run(share: Path, *words: str) -> subprocess.CompletedProcess[str]:
            command = [*held, str(COMMAND), "run", "-v", f"{share}:/share", IMAGE, *words]
            return subprocess.run(command, env=world.environment, capture_output=True, text=True)

        for share in (private, private / "file"):
            done = run(share, "true")
            assert done.returncode == 125
            check_sentence(done.stderr, f"The share {share} cannot be (read|used)")
        private.chmod(0o755)  # now only what is in it is private
        done = run(private, "sh", "-c", "ls /share; cat /share/file; echo > /share/new")
        assert done.stdout == "file\n"
        assert done.stderr.count("Permission denied") == 2
