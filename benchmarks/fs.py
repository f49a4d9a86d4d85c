"""What file operations cost a virtio-fs server, without a guest: CPU µs of the server an operation.

    python -m benchmarks.fs [--rounds 5] [--count 4000] [ROW...]

Requests are put on a ring by a driver that plays the guest, 16 at a time (rows ending in `-1`: one at a
time, where waking up counts too); only the server's process is measured, and shares one CPU with the driver
(so nobody spins, and no figure depends on where the scheduler puts whom). Sides: `fsd` serving an image
layer with an upper in memory, `fsd-share` and Debian's C `virtiofsd` serving the same directory on
tmpfs. virtiofsd needs root.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks._common import Comparison, Sample, process_cpu_seconds
from crumble_fsd import fuse_wire as w
from framework.fuse_client import FuseClient, parse_entry
from framework.layers import write_layer
from framework.vhost_user_master import Master, MasterQueue

VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
FILES = 1000
DATA = 32 << 20
PAGE = 4096
DEPTH = 16
Request = tuple[list[bytes], list[int]]
Row = Callable[["Bench", int], tuple[float, int]]


class Bench:
    """One server with a driver attached."""

    def __init__(self, socket: Path, pid: int) -> None:
        self.pid = pid
        self.master = Master(str(socket), memory=256 << 20)
        self.master.attach(queues=2, size=1024, indirect=True)
        self.queue: MasterQueue = self.master.queues[1]
        self.fuse = FuseClient(self.send)
        self.fuse.init()
        self.unique = 1 << 32

    def send(self, readable: Iterable[bytes], writable: Iterable[int]) -> bytes:
        """The transport for what is not measured."""
        queue = self.queue if writable else self.master.queues[0]
        queue.submit([part for part in readable if part], list(writable))
        return queue.wait()[2]

    def request(
        self, opcode: int, nodeid: int, body: bytes, *data: bytes, room: int, pages: int = 0
    ) -> Request:
        """One request as virtiofs lays it out."""
        self.unique += 2
        length = w.IN_HEADER_SIZE + len(body) + sum(map(len, data))
        head = w.IN_HEADER.pack(length, opcode, self.unique, nodeid, 0, 0, 1, 0, 0)
        writable = [w.OUT_HEADER_SIZE, room, *[PAGE] * (pages // PAGE)]
        return [part for part in (head, body, *data) if part], [size for size in writable if size]

    def run(self, requests: list[Request], depth: int) -> tuple[float, list[bytes]]:
        """Sends all, `depth` at a time; the server's CPU seconds and the replies."""
        replies: list[bytes] = []
        begin = process_cpu_seconds(self.pid)
        for start in range(0, len(requests), depth):
            batch = requests[start : start + depth]
            for readable, writable in batch:
                self.queue.submit(readable, writable, kick=False)
            self.queue.kick()
            replies += [self.queue.wait()[2] for _ in batch]
        spent = process_cpu_seconds(self.pid) - begin
        for reply in replies:
            length, error, _ = w.OUT_HEADER.unpack_from(reply)
            if error or length != len(reply):
                sys.exit(f"benchmarks.fs: a request failed: {os.strerror(-error)}")
        return spent, replies

    def open(self, nodeid: int) -> int:
        """fh, 0 where the server needs no OPEN."""
        try:
            return self.fuse.open(nodeid)
        except OSError:
            return 0

    def close(self) -> None:
        """Ends the connection."""
        self.master.close()


def lookup(bench: Bench, count: int, depth: int = DEPTH) -> tuple[float, int]:
    """LOOKUP of many names in a directory of 1,000."""
    directory = bench.fuse.resolve("dir").nodeid
    requests = [
        bench.request(w.FUSE_LOOKUP, directory, b"file-%04d\0" % (n * 37 % FILES), room=128)
        for n in range(count)
    ]
    return bench.run(requests, depth)[0], count


def getattr_(bench: Bench, count: int) -> tuple[float, int]:
    """GETATTR of one file."""
    node = bench.fuse.resolve("data").nodeid
    requests = [
        bench.request(w.FUSE_GETATTR, node, w.GETATTR_IN.pack(0, 0, 0), room=104)
        for _ in range(count)
    ]
    return bench.run(requests, DEPTH)[0], count


def read(bench: Bench, count: int, size: int, depth: int = DEPTH) -> tuple[float, int]:
    """READ through a file of the image."""
    node = bench.fuse.resolve("data").nodeid
    fh = bench.open(node)
    requests = [
        bench.request(
            w.FUSE_READ, node, w.READ_IN.pack(fh, n * size % DATA, size, 0, 0, 0, 0),
            room=0, pages=size,
        )
        for n in range(count)
    ]  # fmt: skip
    return bench.run(requests, depth)[0], count


def write(bench: Bench, count: int, size: int) -> tuple[float, int]:
    """WRITE through a file of the upper."""
    try:  # virtiofsd ends when it is told to create what exists
        node = bench.fuse.resolve("written").nodeid
        fh = bench.open(node)
    except FileNotFoundError:
        entry, fh = bench.fuse.create(1, b"written")
        node = entry.nodeid
    pages = [b"w" * PAGE] * (size // PAGE)
    requests = [
        bench.request(
            w.FUSE_WRITE,
            node,
            w.WRITE_IN.pack(fh, n * size % DATA, size, 0, 0, 0, 0),
            *pages,
            room=8,
        )
        for n in range(count)
    ]
    return bench.run(requests, DEPTH)[0], count


def readdirplus(bench: Bench, count: int) -> tuple[float, int]:
    """READDIRPLUS of a directory of 1,000; an operation is one entry."""
    directory = bench.fuse.resolve("dir").nodeid
    spent, entries = 0.0, 0
    while entries < count:
        try:
            fh = bench.fuse.opendir(directory)
        except OSError:
            fh = 0
        cookie = 0
        while True:
            body = w.READ_IN.pack(fh, cookie, 32768, 0, 0, 0, 0)
            request = bench.request(w.FUSE_READDIRPLUS, directory, body, room=0, pages=32768)
            cpu, (reply,) = bench.run([request], 1)
            spent += cpu
            at, found = w.OUT_HEADER_SIZE, 0
            while at < len(reply):
                _, cookie, length, _ = w.DIRENT.unpack_from(reply, at + 128)
                at += 128 + (24 + length + 7) // 8 * 8
                found += 1
            if not found:
                break
            entries += found
    return spent, entries


def create_unlink(bench: Bench, count: int) -> tuple[float, int]:
    """CREATE, RELEASE, UNLINK, FORGET of one file each."""
    flags = os.O_RDWR | os.O_CREAT
    spent = 0.0
    for start in range(0, count, DEPTH):
        names = [b"new-%06d\0" % n for n in range(start, start + DEPTH)]
        creates = [
            bench.request(w.FUSE_CREATE, 1, w.CREATE_IN.pack(flags, 0o644, 0, 0) + name, room=144)
            for name in names
        ]
        cpu, replies = bench.run(creates, DEPTH)
        spent += cpu
        rest = []
        nodes = []
        for name, reply in zip(names, replies, strict=True):
            entry = parse_entry(reply[16:])
            fh = w.OPEN_OUT.unpack_from(reply, 144)[0]
            nodes.append(entry.nodeid)
            if fh:
                body = w.RELEASE_IN.pack(fh, 0, 0, 0)
                rest.append(bench.request(w.FUSE_RELEASE, entry.nodeid, body, room=0))
            rest.append(bench.request(w.FUSE_UNLINK, 1, name, room=0))
        spent += bench.run(rest, DEPTH)[0]
        begin = process_cpu_seconds(bench.pid)
        for nodeid in nodes:
            bench.fuse.forget(nodeid)
        spent += process_cpu_seconds(bench.pid) - begin
    return spent, count


ROWS: dict[str, Row] = {
    "lookup": lookup,
    "lookup-1": lambda bench, count: lookup(bench, count // 4, 1),
    "getattr": getattr_,
    "read-4k": lambda bench, count: read(bench, count, 4096),
    "read-4k-1": lambda bench, count: read(bench, count // 4, 4096, 1),
    "read-128k": lambda bench, count: read(bench, count // 4, 131072),
    "write-4k": lambda bench, count: write(bench, count, 4096),
    "write-128k": lambda bench, count: write(bench, count // 8, 131072),
    "readdirplus": readdirplus,
    "create-unlink": lambda bench, count: create_unlink(bench, count // 4),
}


@contextmanager
def server(command: list[str], socket: Path) -> Iterator[Bench]:
    """A server process of its own and a driver attached to it."""
    socket.unlink(missing_ok=True)
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 20
            while not socket.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    assert process.stderr is not None
                    sys.exit(
                        f"benchmarks.fs: {command[0]} did not start: {process.stderr.read()!r}"
                    )
                time.sleep(0.01)
            bench = Bench(socket, process.pid)
            try:
                yield bench
            finally:
                bench.close()
        finally:
            process.terminate()


def measure(command: list[str], socket: Path, rows: list[str], count: int) -> Sample:
    """CPU µs an operation of every row."""
    sample: dict[str, float] = {}
    with server(command, socket) as bench:
        for name in rows:
            ROWS[name](bench, min(count, 200))  # warm: caches, page tables, bytecode
            spent, operations = ROWS[name](bench, count)
            sample[name] = spent / operations * 1e6
    return sample


def prepare(work: Path) -> dict[str, list[str]]:
    """The data, as a layer and as a directory; the sides' commands without their socket."""
    content = os.urandom(1 << 20) * (DATA >> 20)
    names = [f"file-{n:04}" for n in range(FILES)]
    write_layer(work, "layer", {"data": content, "dir": dict.fromkeys(names, b"content")})
    shared = work / "shared"
    (shared / "dir").mkdir(parents=True)
    (shared / "data").write_bytes(content)
    for name in names:
        (shared / "dir" / name).write_text("content")
    fsd = [sys.executable, "-m", "crumble_fsd"]
    sides = {
        "fsd": [*fsd, "--layer", f"{work}/layer.index:{work}/layer.contents"],
        "fsd-share": [*fsd, "--shared-dir", str(shared)],
    }
    if os.geteuid() == 0 and Path(VIRTIOFSD).exists():
        sides["virtiofsd"] = [VIRTIOFSD, "-o", f"source={shared}", "-o", "sandbox=chroot"]
    return sides


def main() -> None:
    """Measures, prints the table, writes benchmarks/results/fs.json."""
    parser = argparse.ArgumentParser(prog="benchmarks.fs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; all when none is named")
    options = parser.parse_args()
    rows = options.rows or list(ROWS)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    work = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))  # noqa: PTH112
    try:
        sides = prepare(work)
        parameters: dict[str, object] = {"depth": DEPTH, "count": options.count, "cpus": 1}
        comparison = Comparison("fs", "server CPU us an operation", parameters)
        comparison.measure(
            {
                side: lambda command=command: measure(
                    [*command, f"--socket-path={work / 'sock'}"], work / "sock", rows, options.count
                )
                for side, command in sides.items()
            },
            options.rounds,
        )
    finally:
        shutil.rmtree(work)
    print(comparison.table())
    print(f"written: {comparison.save()}")


if __name__ == "__main__":
    main()
