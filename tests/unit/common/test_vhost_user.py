"""vhost-user, both sides: dialogues that work, and peers that lie."""

from __future__ import annotations

import array
import contextlib
import gc
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crumble_common.errors import HostError, UsageError
from crumble_common.vhost_user import (
    Backend,
    Disconnected,
    Frontend,
    MemoryRegion,
    ProtocolFeature,
    VhostUserError,
    connect,
    listen,
    wire,
)
from crumble_common.vhost_user.wire import NEED_REPLY, Message, Region, Request
from framework.echo_backend import EchoServer
from framework.vhost_user_master import DEFAULT_FEATURES, RAM, Master


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with EchoServer() as running:
        yield running


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def no_fd_leaks() -> Iterator[None]:
    gc.collect()  # what other tests left must not be freed in between
    before = open_fds()
    yield
    assert open_fds() == before


def wait_until(condition: Callable[[], bool]) -> None:
    """Another thread is about to make it true."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


@pytest.mark.parametrize("indirect", [False, True])
def test_requests_go_through_and_back(server: EchoServer, indirect: bool) -> None:
    with Master(server.connect()) as master:
        master.attach(queues=2, indirect=indirect)
        assert master.acked == DEFAULT_FEATURES == server.device.acked
        assert master.frontend.queues == 2
        for queue in master.queues:
            for number in range(300):
                head = queue.submit([b"hello ", b"%d" % number], [4, 100])
                assert queue.wait() == (head, 6 + len(str(number)), b"HELLO %d" % number)
        assert master.detach() == [300, 300]
        assert server.device.running == {}


def test_a_full_queue_needs_few_kicks(server: EchoServer) -> None:
    with Master(server.connect()) as master:
        master.attach(queues=1, size=256)
        queue = master.queues[0]
        heads = [queue.submit([b"x"], [1]) for _ in range(128)]
        assert sorted(queue.wait()[0] for _ in heads) == sorted(heads)
        assert queue.kicks < 128


@pytest.mark.parametrize("depth", [1, 3, 16])
def test_no_wake_up_is_lost(server: EchoServer, depth: int) -> None:
    """Kicks and interrupts are suppressed whenever possible; indices cross 256 many times."""
    with Master(server.connect()) as master:
        master.attach(queues=1)
        queue = master.queues[0]
        for _ in range(depth):
            queue.submit([b"x"], [1])
        for _ in range(6000):
            queue.wait()
            queue.submit([b"x"], [1])


def test_without_event_idx_and_protocol_features(server: EchoServer) -> None:
    """The oldest dialogue: no acknowledgements; SET_FEATURES without bit 30 enables all rings."""
    with Master(server.connect()) as master:
        master.attach(queues=2, features=1 << 32, protocol=0)
        assert master.acked == 1 << 32
        assert master.frontend.queues == 0
        queue = master.queues[1]
        queue.submit([b"old"], [8])
        assert queue.wait()[2] == b"OLD"
        master.frontend.enable_ring(1, False)
        send(master.frontend, Request.SET_FEATURES, u64(1 << 32))
        queue.submit([b"older"], [8])
        assert queue.wait()[2] == b"OLDER"


def test_memory_given_region_by_region_while_rings_run(server: EchoServer) -> None:
    with Master(server.connect()) as master:
        master.attach(queues=1)
        extra = os.memfd_create("extra")
        os.ftruncate(extra, 1 << 20)
        region = Region(RAM + (1 << 30), 1 << 20, 1 << 50, 0)
        send(master.frontend, Request.ADD_MEM_REG, wire.pack_single_region(region), [extra])
        os.pwrite(extra, b"far away", 64)
        driver = master.queues[0].driver
        driver.set_descriptor(0, region.gpa + 64, 8, 1, 1)
        into, _ = driver.arena.take(64)
        driver.set_descriptor(1, into, 64, 2, 0)
        driver.make_available(0)
        master.queues[0].kick()
        wait_until(lambda: driver.used_idx() == 1)
        assert master.memory.read(into, 8) == b"FAR AWAY"
        send(master.frontend, Request.REM_MEM_REG, wire.pack_single_region(region))
        assert list(server.device.running) == [0]
        with pytest.raises(VhostUserError, match="refused"):
            send(master.frontend, Request.REM_MEM_REG, wire.pack_single_region(region))
        os.close(extra)


def test_another_memory_table_keeps_the_rings_going(server: EchoServer) -> None:
    with Master(server.connect()) as master:
        master.attach(queues=1)
        queue = master.queues[0]
        for _ in range(3):
            queue.submit([b"a"], [4])
            assert queue.wait()[2] == b"A"
            master.frontend.set_memory([MemoryRegion(RAM, master.size, master.fd)])


def test_stop_and_start_again_at_the_same_place(server: EchoServer) -> None:
    with Master(server.connect()) as master:
        master.attach(queues=1)
        queue = master.queues[0]
        queue.submit([b"one"], [4])
        queue.wait()
        (base,) = master.detach()
        queue.submit([b"two"], [4])
        master.frontend.start_ring(0, queue.setup(base))
        master.frontend.enable_ring(0, True)
        assert queue.wait()[2] == b"TWO"


def test_disabled_rings_wait(server: EchoServer) -> None:
    with Master(server.connect()) as master:
        master.attach(queues=2)
        master.frontend.enable_ring(1, False)
        master.queues[1].submit([b"later"], [8])
        master.queues[0].submit([b"now"], [8])
        assert master.queues[0].wait()[2] == b"NOW"
        assert master.queues[1].poll() is None
        master.frontend.enable_ring(1, True)
        assert master.queues[1].wait()[2] == b"LATER"


def test_a_successor_does_what_was_left_undone(server: EchoServer) -> None:
    with Master(server.connect()) as master:
        master.attach(queues=2, inflight=True)
        queue = master.queues[1]
        queue.submit([b"done"], [8])
        assert queue.wait()[2] == b"DONE"
        server.device.hold = True
        heads = [queue.submit([b"left %d" % i], [8]) for i in range(3)]
        wait_until(lambda: server.device.running[1].queue.in_flight == 3)  # type: ignore[union-attr]
        successor = server.connect()
        server.device.hold = False
        master.reattach(successor)
        assert [queue.wait() for _ in heads] == [
            (head, 6, b"LEFT %d" % i) for i, head in enumerate(heads)
        ]
        queue.submit([b"on"], [8])
        assert queue.wait()[2] == b"ON"


def test_a_broken_ring_is_signalled_and_the_other_one_goes_on(server: EchoServer) -> None:
    with Master(server.connect()) as master:
        master.attach(queues=2)
        master.queues[0].driver.set_avail_idx(0x4000)
        os.eventfd_write(master.queues[0].kick_fd, 1)
        assert master.queues[0].broken(timeout=10)
        assert server.device.broken == ["ring.avail_jump"]
        master.queues[1].submit([b"fine"], [8])
        assert master.queues[1].wait()[2] == b"FINE"


def test_call_fd_can_be_swapped_while_running(server: EchoServer) -> None:
    with Master(server.connect()) as master:
        master.attach(queues=1)
        queue = master.queues[0]
        master.frontend.set_ring_fd(Request.SET_VRING_CALL, 0, -1)
        master.frontend.set_ring_fd(Request.SET_VRING_CALL, 0, queue.call_fd)
        queue.submit([b"x"], [1])
        assert queue.wait()[2] == b"X"


def test_reset_stops_everything(server: EchoServer) -> None:
    with Master(server.connect()) as master:
        master.attach(queues=2, inflight=True)
        master.frontend.reset()
        assert server.device.running == {}
        assert server.device.resets == 1
        assert master.frontend.inflight is None


def test_configuration_space() -> None:
    with EchoServer(config=b"tag".ljust(36, b"\0") + b"\1\0\0\0") as server:
        frontend = Frontend(server.connect())
        frontend.negotiate()
        assert frontend.can(ProtocolFeature.CONFIG)
        assert frontend.get_config(0, 3) == b"tag"
        assert frontend.get_config(36, 8) == b"\1" + bytes(7)
        with pytest.raises(VhostUserError, match="refused SET_CONFIG"):
            frontend.set_config(0, b"x")
        with pytest.raises(VhostUserError, match="does not give"):
            frontend.get_config(250, 7)
        frontend.close()


def send(
    frontend: Frontend, request: int, payload: bytes = b"", fds: list[int] | None = None
) -> None:
    """A request by hand, acknowledged."""
    frontend._command(request, payload, fds)  # type: ignore[arg-type]


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def state(index: int, number: int) -> bytes:
    return struct.pack("<II", index, number)


def addresses(index: int, at: int) -> bytes:
    return struct.pack("<IIQQQQ", index, 0, at, at + 8192, at + 4096, 0)


REFUSED: list[tuple[Request | int, bytes, int]] = [
    (99, b"", 0),
    (0, b"", 0),
    (Request.SET_FEATURES, u64(1 << 33), 0),
    (Request.SET_FEATURES, b"1234", 0),
    (Request.SET_FEATURES, b"", 0),
    (Request.SET_PROTOCOL_FEATURES, u64(1 << 63), 0),
    (Request.SET_VRING_NUM, state(0, 0), 0),
    (Request.SET_VRING_NUM, state(0, 100), 0),
    (Request.SET_VRING_NUM, state(0, 1 << 20), 0),
    (Request.SET_VRING_NUM, state(2, 64), 0),
    (Request.SET_VRING_NUM, state(0xFFFF_FFFF, 64), 0),
    (Request.SET_VRING_ADDR, addresses(7, RAM), 0),
    (Request.SET_VRING_BASE, state(0, 1 << 16), 0),
    (Request.SET_VRING_ENABLE, state(0, 2), 0),
    (Request.SET_VRING_ENABLE, state(9, 1), 0),
    (Request.SET_VRING_KICK, u64(0), 0),
    (Request.SET_VRING_KICK, u64(0), 2),
    (Request.SET_VRING_KICK, u64(200), 1),
    (Request.SET_VRING_CALL, u64(0), 0),
    (Request.SET_VRING_ERR, u64(0), 3),
    (Request.SET_VRING_ERR, u64(0xFF), 1),
    (Request.SET_BACKEND_REQ_FD, b"", 0),
    (Request.SET_BACKEND_REQ_FD, b"", 1),
    (Request.SET_MEM_TABLE, b"", 0),
    (Request.SET_MEM_TABLE, struct.pack("<II", 1, 0), 0),
    (Request.SET_MEM_TABLE, struct.pack("<II", 1, 0), 1),
    (Request.SET_MEM_TABLE, struct.pack("<II", 9, 0) + bytes(9 * 32), 8),
    (Request.SET_MEM_TABLE, struct.pack("<II", 0xFFFF_FFFF, 0), 0),
    (Request.SET_MEM_TABLE, wire.pack_regions([Region(RAM, 1 << 20, 0, 0)]), 0),
    (Request.SET_MEM_TABLE, wire.pack_regions([Region(RAM, 1 << 20, 0, 0)]), 2),
    (Request.SET_MEM_TABLE, wire.pack_regions([Region(RAM, 1 << 21, 0, 0)]), 1),
    (Request.SET_MEM_TABLE, wire.pack_regions([Region(RAM, 1 << 20, 0, 4096)]), 1),
    (Request.SET_MEM_TABLE, wire.pack_regions([Region(RAM, 0, 0, 0)]), 1),
    (Request.SET_MEM_TABLE, wire.pack_regions([Region(RAM + 1, 4096, 0, 0)]), 1),
    (Request.SET_MEM_TABLE, wire.pack_regions([Region(RAM, 4095, 0, 0)]), 1),
    (Request.SET_MEM_TABLE, wire.pack_regions([Region(2**64 - 4096, 8192, 0, 0)]), 1),
    (Request.SET_MEM_TABLE, wire.pack_regions([Region(0, 4096, 2**64 - 1, 0)]), 1),
    (Request.SET_MEM_TABLE, wire.pack_regions([Region(0, 4096, 0, 2**64 - 4096)]), 1),
    (
        Request.SET_MEM_TABLE,
        wire.pack_regions([Region(0, 8192, 0, 0), Region(4096, 4096, 1 << 40, 0)]),
        2,
    ),
    (
        Request.SET_MEM_TABLE,
        wire.pack_regions([Region(0, 8192, 0, 0), Region(1 << 20, 4096, 4096, 0)]),
        2,
    ),
    (Request.ADD_MEM_REG, b"", 1),
    (Request.ADD_MEM_REG, wire.pack_single_region(Region(0, 4096, 0, 0)), 0),
    (Request.ADD_MEM_REG, wire.pack_single_region(Region(RAM, 4096, 0, 0)), 1),
    (Request.REM_MEM_REG, wire.pack_single_region(Region(0, 4096, 0, 0)), 0),
    (Request.SET_INFLIGHT_FD, struct.pack("<QQHH4x", 4096, 0, 2, 64), 0),
    (Request.SET_INFLIGHT_FD, struct.pack("<QQHH4x", 100, 0, 2, 64), 1),
    (Request.SET_INFLIGHT_FD, struct.pack("<QQHH4x", 1 << 30, 0, 2, 64), 1),
    (Request.SET_INFLIGHT_FD, struct.pack("<QQHH4x", 4096, 2**64 - 4096, 2, 64), 1),
    (Request.SET_INFLIGHT_FD, struct.pack("<QQHH4x", 4096, 0, 0, 64), 1),
    (Request.SET_INFLIGHT_FD, struct.pack("<QQHH4x", 4096, 0, 2, 63), 1),
    (Request.GET_INFLIGHT_FD, struct.pack("<QQHH4x", 0, 0, 2, 7), 0),
]

NAMES = [f"{Message(int(row[0])).name}-{number}" for number, row in enumerate(REFUSED)]


@pytest.mark.parametrize(("request_", "payload", "fds"), REFUSED, ids=NAMES)
def test_nonsense_is_refused_and_changes_nothing(
    server: EchoServer, request_: int, payload: bytes, fds: int
) -> None:
    with Master(server.connect()) as master:
        master.attach(queues=2)
        files = [os.memfd_create("nonsense") for _ in range(fds)]
        for file in files:
            os.ftruncate(file, 1 << 20)
        with pytest.raises(VhostUserError, match="refused"):
            send(master.frontend, request_, payload, files)
        for file in files:
            os.close(file)
        for queue in master.queues:
            queue.submit([b"still here"], [16])
            assert queue.wait()[2] == b"STILL HERE"


@pytest.mark.parametrize(("request_", "payload", "fds"), REFUSED, ids=NAMES)
def test_without_reply_ack_nonsense_ends_the_connection(
    server: EchoServer, request_: int, payload: bytes, fds: int
) -> None:
    sock = server.connect()
    files = [os.memfd_create("nonsense") for _ in range(fds)]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    sock.sendmsg([Message(int(request_), payload).pack()], rights)
    for file in files:
        os.close(file)
    assert server.ended.wait(10)
    assert server.error is not None
    assert server.error.message.endswith(".")
    sock.close()


def test_rings_outside_memory_are_refused(server: EchoServer) -> None:
    with Master(server.connect()) as master:
        master.attach(queues=1)
        master.frontend.stop_ring(0)
        for at in (0, 1 << 44, RAM + (1 << 44) + master.size - 4096, 2**64 - 16384):
            send(master.frontend, Request.SET_VRING_ADDR, addresses(0, at))
            with pytest.raises(VhostUserError, match="refused SET_VRING_KICK"):
                master.frontend.set_ring_fd(Request.SET_VRING_KICK, 0, master.queues[0].kick_fd)
        assert server.device.running == {}


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<III", 1, 2, 0),  # version 2
        struct.pack("<III", 1, 1, 1 << 20),  # a megabyte to come
        struct.pack("<III", 1, 1, 0xFFFF_FFFF),
        b"\xff" * 64,
    ],
)
def test_bytes_that_are_no_message_end_the_connection(server: EchoServer, data: bytes) -> None:
    sock = server.connect()
    sock.send(data)
    assert server.ended.wait(10)
    assert server.error is not None
    sock.close()


def test_messages_may_arrive_in_pieces(server: EchoServer) -> None:
    sock = server.connect()
    data = Message(Request.SET_VRING_NUM, state(1, 64)).pack() + Message(1).pack()
    for byte in data:
        sock.send(bytes([byte]))
    assert len(sock.recv(20, socket.MSG_WAITALL)) == 20
    sock.close()


def test_half_a_message_with_fds_leaks_nothing(server: EchoServer) -> None:
    sock = server.connect()
    rights = array.array("i", [0, 1, 2])
    sock.sendmsg([b"\5\0\0\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    sock.close()
    assert server.ended.wait(10)
    assert server.error is None


def test_random_messages_never_crash_the_back_end(server: EchoServer) -> None:
    """Invariant: whatever the messages, the back end answers, refuses or hangs up; it never fails otherwise."""
    rng = random.Random(7)
    file = os.memfd_create("random")
    os.ftruncate(file, 1 << 20)
    for _ in range(200):
        sock = server.connect()
        sock.settimeout(10)
        try:
            sock.send(Message(16, u64(8)).pack())
            for _ in range(20):
                size = rng.choice([0, 4, 8, 8, 16, 20, 24, 40, 40, 72, 300])
                payload = bytes(rng.choice([0, 0, 0, 1, 4, 16, 128, 255]) for _ in range(size))
                flags = 1 | rng.choice([0, NEED_REPLY, NEED_REPLY])
                files = array.array("i", [file] * rng.choice([0, 0, 1, 1, 2]))
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)] if files else []
                data = Message(rng.randrange(45), payload, flags).pack()
                sock.sendmsg([data], rights)
        except (BrokenPipeError, ConnectionResetError):
            pass
        sock.close()
        assert server.ended.wait(10)
    os.close(file)


def scripted(replies: list[Message]) -> tuple[Frontend, threading.Thread]:
    """A front end whose back end answers each request with the next of `replies`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def answer() -> None:
        with theirs:
            for reply in replies:
                header = theirs.recv(12, socket.MSG_WAITALL)
                if len(header) == 12:
                    theirs.recv(struct.unpack("<III", header)[2], socket.MSG_WAITALL)
                    rights = array.array("i", reply.fds)
                    theirs.sendmsg(
                        [reply.pack()],
                        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else [],
                    )
            with contextlib.suppress(ConnectionResetError):
                while theirs.recv(4096):
                    pass

    thread = threading.Thread(target=answer)
    thread.start()
    return Frontend(ours, timeout=5), thread


@pytest.mark.parametrize(
    "reply",
    [
        Message(2, u64(0), 5),  # another request
        Message(1, u64(0), 1),  # not a reply
        Message(1, b"", 5),
        Message(1, bytes(100), 5),
        Message(1, u64(0), 5, [0]),  # an fd nobody asked for
        Message(1, u64(0), 6),  # version 2
    ],
)
def test_a_lying_back_end_is_refused(reply: Message) -> None:
    frontend, thread = scripted([reply])
    with pytest.raises(VhostUserError):
        frontend.negotiate()
    frontend.close()
    thread.join()


def test_a_back_end_without_protocol_features_works_without_acks() -> None:
    frontend, thread = scripted([Message(1, u64(1 << 32), 5)])
    assert frontend.negotiate() == 1 << 32
    assert (frontend.protocol_features, frontend.queues) == (0, 0)
    frontend.prepare_inflight(1, 64)
    frontend.close()
    thread.join()


def test_a_dead_back_end_says_so() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.close()
    frontend = Frontend(ours)
    with pytest.raises(Disconnected):
        frontend.negotiate()
    frontend.close()


def test_a_silent_back_end_is_given_up() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    frontend = Frontend(ours, timeout=0.05)
    with pytest.raises(Disconnected, match="does not answer"):
        frontend.negotiate()
    frontend.close()
    theirs.close()


def test_listen_and_connect(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    with pytest.raises(HostError, match="Start the back end first"):
        connect(path)
    first = listen(path)
    assert Path(path).stat().st_mode & 0o777 == 0o600
    connect(path).close()
    with pytest.raises(UsageError, match="already in use"):
        listen(path)
    first.close()
    listen(path).close()  # a dead socket is replaced
    other = tmp_path / "file"
    other.write_text("precious")
    with pytest.raises(UsageError):
        listen(str(other))
    assert other.read_text() == "precious"


def test_a_closed_backend_frees_its_rings(server: EchoServer) -> None:
    with Master(server.connect()) as master:
        master.attach(queues=2)
        backend = server.backend
        assert isinstance(backend, Backend)
    assert server.ended.wait(10)
    assert server.device.running == {}
    assert all(ring.kick_fd == -1 and ring.call_fd == -1 for ring in backend.rings)
