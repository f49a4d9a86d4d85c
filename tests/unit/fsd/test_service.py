"""crumble-fsd as a process: its command line, its life, and rings that a guest breaks."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crumble_fsd import fuse_wire as w
from framework.fsd_world import close
from framework.fuse_client import FuseClient
from framework.layers import write_layer
from framework.vhost_user_master import Master

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "crumble_fsd", *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


Serve = Callable[..., tuple[Any, FuseClient]]


@pytest.fixture
def serve(start: Start, tmp_path: Path) -> Serve:
    """A front end of an fsd of its own."""

    def connect(*arguments: str) -> tuple[Master, FuseClient]:
        path = tmp_path / "sock"
        process = start("--socket-path", str(path), *arguments)
        deadline = time.monotonic() + 20
        while not path.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        master = Master(str(path))
        master.attach(queues=2, size=64)
        master.process = process  # type: ignore[attr-defined]  # to be killed by tests

        def send(readable: Iterable[bytes], writable: Iterable[int]) -> bytes:
            queue = master.queues[1] if writable else master.queues[0]
            queue.submit(list(readable), list(writable))
            return queue.wait()[2]

        return master, FuseClient(send)

    return connect


def test_capabilities(start: Start) -> None:
    out, _ = start("--print-capabilities").communicate(timeout=20)
    assert json.loads(out)["type"] == "fs"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--layer", "nothing:at all"], "Cannot open the layer index nothing"),
        (["--layer", "no colon"], "--layer wants INDEX:CONTENTS"),
        (["--share", "/nonexistent:/data"], "The share /nonexistent does not exist on the host."),
        (["--share", "/etc:data"], "'data' is not a path in the guest"),
        (["--shared-dir", "/etc/passwd"], "The root of the tree cannot be a file."),
        (["--upper", "/proc/nothing"], "Cannot use /proc/nothing for what the guest writes"),
        (["--tag", "t" * 37], "A tag has 1 to 36 bytes"),
    ],
)
def test_mistakes_are_said_in_a_sentence(
    start: Start, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    process = start("--socket-path", str(tmp_path / "sock"), *arguments)
    _, err = process.communicate(timeout=20)
    assert sentence in err
    assert "Traceback" not in err
    assert process.returncode == 1


def test_a_contents_file_that_is_too_short(start: Start, tmp_path: Path) -> None:
    close([write_layer(tmp_path, "l", {"f": b"data"})])
    (tmp_path / "l.contents").write_bytes(b"da")
    layer = f"{tmp_path}/l.index:{tmp_path}/l.contents"
    _, err = start("--socket-path", str(tmp_path / "s"), "--layer", layer).communicate(timeout=20)
    assert "shorter than their index says" in err


def test_a_socket_path_that_cannot_be_used(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path / "file", tmp_path / "no" / "folder", tmp_path / ("n" * 120)):
        _, err = start("--socket-path", str(path)).communicate(timeout=20)
        assert f"Cannot listen at {path}" in err
        assert "Traceback" not in err
    assert (tmp_path / "file").read_text() == "precious"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_it_serves_until_the_front_end_leaves(serve: Serve, tmp_path: Path) -> None:
    close([write_layer(tmp_path, "l", {"f": b"from the layer"})])
    master, fuse = serve("--layer", f"{tmp_path}/l.index:{tmp_path}/l.contents", "--tag", "root")
    fuse.init()
    assert fuse.read_path("f") == b"from the layer"
    node = fuse.create(1, b"new")[0].nodeid
    data = os.urandom(100_000)
    body = w.WRITE_IN.pack(0, 0, len(data), 0, 0, 0, 0)
    fuse.call(w.FUSE_WRITE, node, body, data, room=8)
    assert fuse.read_path("new") == data
    fuse.forget(node)
    assert master.frontend.get_config(0, 40)[:4] == b"root"
    master.close()
    assert master.process.wait(10) == 0


def test_sigterm_ends_it(serve: Serve) -> None:
    master, fuse = serve()
    fuse.init()
    master.process.send_signal(signal.SIGTERM)
    assert master.process.wait(10) == 0
    master.close()


def test_a_broken_ring_is_reported_and_the_other_goes_on(serve: Serve) -> None:
    master, fuse = serve()
    fuse.init()
    hiprio = master.queues[0]
    hiprio.driver.set_descriptor(0, 1 << 60, 48, 0, 0)
    hiprio.driver.make_available(0)
    hiprio.kick()
    assert hiprio.broken(10)
    fuse.mkdir(1, b"still served")
    with pytest.raises(OSError, match=f"Errno {errno.EEXIST}]"):
        fuse.mkdir(1, b"still served")
    master.close()
    assert master.process.wait(10) == 0


def test_requests_without_room_for_an_answer(serve: Serve) -> None:
    master, fuse = serve()
    fuse.init()
    queue = master.queues[1]
    head = w.IN_HEADER.pack(40, w.FUSE_GETATTR, 2, 1, 0, 0, 0, 0, 0)
    for writable in ([], [8], [15]):
        queue.submit([head], writable)
        assert queue.wait()[1] == 0
    queue.submit([b"x"], [64])
    assert w.OUT_HEADER.unpack_from(queue.wait()[2])[1] == -errno.EINVAL
    fuse.getattr(1)
    master.close()


def test_a_lock_held_outside_is_waited_for(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    path = tmp_path / "shared" / "f"
    path.touch()
    master, fuse = serve("--shared-dir", str(tmp_path / "shared"), "--posix-lock")
    fuse.init()
    node = fuse.resolve("f").nodeid
    body = w.LK_IN.pack(0, 7, 0, 10, fcntl.F_WRLCK, 1, 1, 0)
    head = w.IN_HEADER.pack(40 + len(body), w.FUSE_SETLKW, 4242, node, 0, 0, 1, 0, 0)
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        master.queues[1].submit([head, body], [16])
        fuse_again = master.queues[1].submit(
            [w.IN_HEADER.pack(40, w.FUSE_GETATTR, 2, 1, 0, 0, 0, 0, 0)], [16, 104]
        )
        assert master.queues[1].wait()[0] == fuse_again  # served meanwhile
    _, _, reply = master.queues[1].wait()
    assert w.OUT_HEADER.unpack(reply) == (16, 0, 4242)
    master.close()


def test_the_upper_directory_is_kept_from_run_to_run(serve: Serve, tmp_path: Path) -> None:
    for expected in (set(), {b"d0"}, {b"d0", b"d1"}):
        master, fuse = serve("--upper", str(tmp_path / "upper"))
        fuse.init()
        assert fuse.names(1) == expected
        fuse.mkdir(1, b"d%d" % len(expected))
        master.process.kill()
        master.process.wait()
        master.close()
        (tmp_path / "sock").unlink()
