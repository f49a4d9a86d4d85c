"""vhost-user, both sides: dialogues that work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from crumble_common.errors import HostError, UsageError
from crumble_common.vhost_user import (
    Backend,
    Frontend,
    MemoryRegion,
    ProtocolFeature,
    VhostUserError,
    connect,
    listen,
    wire,
)
from crumble_common.vhost_user.wire import Region, Request
from framework.echo_backend import EchoServer
from framework.vhost_user_master import DEFAULT_FEATURES, RAM, Master, send, u64

pytestmark = pytest.mark.usefixtures("no_fd_leaks")


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
        wait_until(lambda: server.device.running[1].queue.in_flight == 3)  # type: ignore[union-attr]  # it runs
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
