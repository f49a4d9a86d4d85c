"""FsFreeze and FsConfig.restore of the service: over rings that stop and go on, with memory being captured."""

import dataclasses
import mmap
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crumble_common import wire
from crumble_common.errors import CrumbleError, HostError, InternalError, UsageError
from crumble_common.eventloop import EventLoop
from crumble_common.messages.fs import FsConfig, FsFreeze, FsFrozen, Layer, Share
from crumble_common.service import Context, Reply
from crumble_fsd.service import FsdService
from crumble_native.memory import STATE_HEADER_SIZE
from framework.command import eventually
from framework.fuse_client import FuseClient
from framework.layers import write_layer
from framework.vhost_user_master import Master

MEMORY = 4 << 20
PAGES = MEMORY // 4096
FROZEN = 0x20


class Answers:
    """The link to a supervisor: keeps what is sent."""

    def __init__(self) -> None:
        self.envelopes: list[wire.Envelope] = []
        self.arrived = threading.Semaphore(0)

    def send(self, envelope: wire.Envelope) -> None:
        self.envelopes.append(envelope)
        self.arrived.release()


class Fsd:
    """The service in a thread, with a front end."""

    def __init__(self, config: FsConfig) -> None:
        ours, theirs = socket.socketpair()
        self.inbox, inbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.state_fd = os.memfd_create("state")
        os.ftruncate(self.state_fd, -(-(STATE_HEADER_SIZE + PAGES) // 4096) * 4096)
        self.state = mmap.mmap(self.state_fd, 0)
        fds = {"fs": theirs.detach(), "inbox": inbox.detach(), "page_state": self.state_fd}
        self.loop, self.link = EventLoop(), Answers()
        self.context = Context("fsd.test", fds, self.loop, self.link)
        self.service = FsdService(self.context)
        try:
            self.service.open(dataclasses.replace(config, tag="root", socket_fd="fs"))
        except BaseException:
            self._close()
            ours.close()  # theirs is the service's own by now, as it is when a process ends
            raise
        self.service.start()
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()
        self.master = Master(ours, memory=MEMORY, page_state=self.state)
        self.master.attach(queues=2, size=64)
        self.fuse = FuseClient(self._send)

    def _send(self, readable: Any, writable: Any) -> bytes:
        queue = self.master.queues[1] if writable else self.master.queues[0]
        queue.submit(list(readable), list(writable))
        return queue.wait()[2]

    def ask(self, message: Any, **files: Path) -> Any:
        """The answer to a message that names files; raises the error that is the answer."""
        for name, path in files.items():
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            socket.send_fds(self.inbox, [name.encode()], [fd])
            os.close(fd)
        reply = Reply(self.context, self.link, 1, 0)

        def serve() -> None:
            try:
                self.service.handle(message, reply)
            except CrumbleError as error:
                reply.error(error)

        self.loop.call_soon_threadsafe(serve)
        assert self.link.arrived.acquire(timeout=20)
        answer = self.link.envelopes[-1]
        if answer.error is not None:
            raise answer.error
        return answer.body

    def stop_rings(self) -> list[int]:
        return [self.master.frontend.stop_ring(queue.index) for queue in self.master.queues]

    def restart_rings(self, bases: list[int]) -> None:
        for queue, base in zip(self.master.queues, bases, strict=True):
            self.master.frontend.restart_ring(queue.index, base, queue.kick_fd)

    def close(self) -> None:
        self.master.close()
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.service.stop(1)
        self._close()

    def _close(self) -> None:
        self.loop.close()
        self.inbox.close()
        os.close(self.state_fd)


class World:
    """Services over one layer."""

    def __init__(self, work: Path) -> None:
        self.work = work
        layer = write_layer(work, "l", {"f": b"from the layer", "big": bytes(range(256)) * 400})
        layer.index.close()
        os.close(layer.contents)
        self.layers = [Layer(str(work / "l.index"), str(work / "l.contents"))]
        self.running: list[Fsd] = []

    def start(self, **config: Any) -> Fsd:
        made = Fsd(FsConfig("", "", **{"layers": self.layers, **config}))
        self.running.append(made)
        return made

    def freeze(self, fsd: Fsd, name: str) -> FsFrozen:
        frozen = fsd.ask(
            FsFreeze("ram", "index", "contents"),
            index=self.work / f"{name}.index",
            contents=self.work / f"{name}.contents",
            ram=self.work / f"{name}.ram",
        )
        assert isinstance(frozen, FsFrozen)
        return frozen

    def restore(self, name: str, frozen: FsFrozen, **config: Any) -> Fsd:
        captured = Layer(str(self.work / f"{name}.index"), str(self.work / f"{name}.contents"))
        return self.start(layers=[*self.layers, captured], restore=frozen.state, **config)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for fsd in made.running:
        fsd.close()


def test_both_go_on_after_a_freeze(world: World) -> None:
    one = world.start()
    one.fuse.init()
    node = one.fuse.create(1, b"new")[0].nodeid
    one.fuse.write(node, 0, b"data")
    bases = one.stop_rings()
    frozen = world.freeze(one, "s")
    assert frozen.changed and frozen.size == 4 and 0 < frozen.seconds < 5
    one.restart_rings(bases)
    two = world.restore("s", frozen)
    for fsd, text in ((one, b"one"), (two, b"two")):
        fsd.fuse.write(node, 0, text)  # without INIT: the guest has done that
        assert fsd.fuse.read(node, 0, 9) == text + b"a"
    again = two.stop_rings()
    second = world.freeze(two, "t")
    two.restart_rings(again)
    three = world.restore("t", second)
    assert three.fuse.read_path("new") == b"twoa"


def test_requests_that_come_while_the_rings_stand_still_are_served_after(world: World) -> None:
    fsd = world.start()
    fsd.fuse.init()
    for _ in range(3):
        bases = fsd.stop_rings()
        queue = fsd.master.queues[1]
        readable, writable = request(b"f")
        heads = [queue.submit([part for part in readable if part], writable) for _ in range(5)]
        fsd.restart_rings(bases)
        done = [queue.wait() for _ in heads]
        assert [head for head, _, _ in done] == heads
        assert len({data for _, _, data in done}) == 1
        assert fsd.fuse.read_path("f") == b"from the layer"


def request(name: bytes) -> tuple[list[bytes], list[int]]:
    """The buffers of a LOOKUP."""
    kept: list[tuple[list[bytes], list[int]]] = []

    def keep(readable: Any, writable: Any) -> bytes:
        kept.append((list(readable), list(writable)))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        FuseClient(keep).lookup(1, name)
    return kept[0]


def test_a_freeze_while_the_rings_run_is_refused(world: World) -> None:
    fsd = world.start()
    fsd.fuse.init()
    with pytest.raises(UsageError) as caught:
        world.freeze(fsd, "s")
    assert caught.value.code == "fs.running"
    fsd.fuse.mkdir(1, b"goes on")


def test_files_alone_are_captured_while_the_guest_runs(world: World, tmp_path: Path) -> None:
    fsd = world.start()
    fsd.fuse.init()
    files = {"index": tmp_path / "i", "contents": tmp_path / "c"}
    none = fsd.ask(FsFreeze("", "index", "contents"), **files)
    assert (none.state, none.changed) == (b"", False)
    assert not files["index"].stat().st_size and not files["contents"].stat().st_size
    fsd.fuse.create(1, b"x.log")
    fsd.fuse.create(1, b"x")
    some = fsd.ask(FsFreeze("", "index", "contents", ["*.log"]), **files)
    assert some.changed and not some.state
    image = world.start(layers=[*world.layers, Layer(*map(str, files.values()))])
    image.fuse.init()
    assert image.fuse.names(1) == {b"f", b"big", b"x"}


def test_a_snapshot_of_everything_leaves_nothing_out(world: World, tmp_path: Path) -> None:
    fsd = world.start()
    files = {name: tmp_path / name for name in ("i", "c", "m")}
    with pytest.raises(UsageError) as caught:
        fsd.ask(FsFreeze("m", "i", "c", ["*"]), **files)
    assert caught.value.code == "fs.excludes"


def test_fds_that_were_not_sent(world: World) -> None:
    fsd = world.start()
    with pytest.raises(InternalError) as caught:
        fsd.ask(FsFreeze("ram", "index", "contents"))
    assert caught.value.code == "service.fd"


def test_a_full_disk_is_said_and_the_guest_goes_on(world: World, tmp_path: Path) -> None:
    fsd = world.start()
    fsd.fuse.init()
    node = fsd.fuse.create(1, b"f2")[0].nodeid
    fsd.fuse.write(node, 0, b"x" * 50_000)
    full = Path("/dev/full")
    bases = fsd.stop_rings()
    with pytest.raises(HostError, match="No space left") as caught:
        fsd.ask(FsFreeze("m", "i", "c"), i=tmp_path / "i", c=full, m=tmp_path / "m")
    assert caught.value.code == "snapshot.write"
    fsd.restart_rings(bases)
    assert fsd.fuse.read(node, 49_999, 9) == b"x"


def test_what_fsd_writes_is_saved_first(world: World, tmp_path: Path) -> None:
    """A page of the guest that is frozen goes into the capture as it was."""
    fsd = world.start()
    fsd.fuse.init()
    node = fsd.fuse.resolve("big").nodeid
    memory = fsd.master.memory
    bases = fsd.stop_rings()
    before = bytes(fsd.master.mapping)
    memory.freeze()
    assert world.freeze(fsd, "s").state
    ram = os.open(tmp_path / "s.ram", os.O_RDWR)
    os.ftruncate(ram, MEMORY)
    memory.capture_to(ram)  # the guest's own writes
    fsd.restart_rings(bases)
    assert fsd.fuse.read(node, 0, 65_536) == (bytes(range(256)) * 400)[:65_536]
    states = fsd.state[STATE_HEADER_SIZE : STATE_HEADER_SIZE + PAGES]
    saved = (tmp_path / "s.ram").read_bytes()
    written = [page for page, state in enumerate(states) if not state & FROZEN]
    assert len(written) >= 17  # the data's pages, and the used ring
    for page in written:
        assert saved[page * 4096 :][:4096] == before[page * 4096 :][:4096]
    assert held(tmp_path / "s.ram")
    assert not memory.save(fsd.master.fd)
    memory.capture_to(-1)
    os.close(ram)
    assert (tmp_path / "s.ram").read_bytes() == before
    eventually(lambda: not held(tmp_path / "s.ram"), "the file is still open")


def held(path: Path) -> bool:
    """True while this process has the file open."""
    fds = Path("/proc/self/fd").iterdir()
    return any(os.path.realpath(fd) == str(path) for fd in fds)


# What is refused before anything is served.


def test_an_upper_directory_is_refused(world: World, tmp_path: Path) -> None:
    fsd = world.start()
    fsd.stop_rings()
    frozen = world.freeze(fsd, "s")
    with pytest.raises(UsageError) as caught:
        world.restore("s", frozen, upper=str(tmp_path / "upper"))
    assert caught.value.code == "upper.restore"


def test_damage_and_strangers(world: World, tmp_path: Path) -> None:
    fsd = world.start()
    fsd.stop_rings()
    frozen = world.freeze(fsd, "s")
    with pytest.raises(HostError) as caught:
        world.restore("s", dataclasses.replace(frozen, state=frozen.state[:-1]))
    assert caught.value.code == "snapshot.corrupt"
    with pytest.raises(UsageError) as refused:
        world.restore("s", frozen, shares=[Share(str(tmp_path), "/new")])
    assert refused.value.code == "share.restore"
    (tmp_path / "s.index").write_bytes(b"")
    with pytest.raises(HostError) as torn:
        world.restore("s", frozen)
    assert torn.value.code == "store.corrupt"
