"""A device served by another process: through its registers, against a real back end in a thread."""

import contextlib
import gc
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble_common.errors import HostError
from crumble_common.eventloop import EventLoop
from crumble_vmm.devices.virtio import mmio, transport
from crumble_vmm.devices.virtio.device import RING_FEATURES
from crumble_vmm.devices.virtio.vhost_user_fs import virtio_fs
from crumble_vmm.devices.virtio.vhost_user_successor import SucceededDevice
from framework.echo_backend import EchoServer
from framework.ready import readable
from framework.vhost_bench import Bench


def open_fds() -> list[str]:
    """What is open, but for guest memory: its mapping keeps a descriptor for as long as it lives."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(path.readlink()))
    return sorted(name for name in found if "memfd:guest" not in name)


@pytest.fixture(autouse=True)
def no_fd_leaks() -> Iterator[None]:
    gc.collect()  # what tests before this one left in cycles
    before = open_fds()
    yield
    assert len(open_fds()) == len(before)


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with EchoServer(config=b"\x01\x02\x03\x04") as running:
        yield running


@pytest.fixture
def bench(server: EchoServer) -> Iterator[Bench]:
    made = Bench(server.connect())
    yield made
    made.close()


def boot(bench: Bench) -> None:
    assert bench.driver.negotiate()


def test_requests_go_to_the_other_process_and_back(bench: Bench, server: EchoServer) -> None:
    boot(bench)
    queue = bench.driver.add_queue(1)
    bench.driver.go()
    assert server.device.acked == RING_FEATURES
    assert sorted(server.device.running) == [1]
    queue.submit([b"hello"], [16])
    bench.driver.kick(1)
    bench.wait_call()
    assert [data for _, _, data in queue.collect()] == [b"HELLO"]


def test_a_reset_takes_the_rings_back_and_a_driver_starts_over(
    bench: Bench, server: EchoServer
) -> None:
    for _ in range(3):
        boot(bench)
        assert server.device.running == {}
        assert bench.driver.interrupt.call_fds == set()
        queue = bench.driver.add_queue(0)
        bench.driver.go()
        queue.submit([b"again"], [16])
        bench.driver.kick(0)
        bench.wait_call()
        assert len(queue.collect()) == 1
    assert server.device.resets >= 2


def test_the_back_ends_configuration(server: EchoServer) -> None:
    made = Bench(server.connect(), config=None)
    made.driver.offered()
    assert made.driver.read(mmio.CONFIG) == 0x04030201
    made.close()


def test_a_back_end_that_dies_breaks_only_its_device(bench: Bench, server: EchoServer) -> None:
    boot(bench)
    bench.driver.add_queue(0)
    bench.driver.go()
    server.call(server._drop)
    readable(bench.device._peek, timeout=10)
    bench.driver.settle()
    assert [error.message for error in bench.lost] == ["The back end of device echo ended."]
    assert bench.driver.status & transport.NEEDS_RESET
    assert not bench.driver.negotiate() or not bench.driver.go()
    assert len(bench.lost) == 1


def test_a_successor_goes_on_with_the_rings(server: EchoServer) -> None:
    made = Bench(server.connect(), kind=SucceededDevice)
    boot(made)
    queue = made.driver.add_queue(1)
    made.driver.go()
    for text in (b"one", b"two", b"three"):
        queue.interrupts(wanted=True)
        queue.submit([text], [16])
        made.driver.kick(1)
        assert made.answers(queue, 1) == [text.upper()]
        server.call(server._drop)
        readable(made.device._peek, timeout=10)
        made.driver.settle()
        queue.submit([b"meanwhile"], [16])  # there is nobody to serve it
        made.driver.kick(1)
        assert isinstance(made.device, SucceededDevice)
        made.device.reconnect(server.connect())
        assert made.answers(queue, 1) == [b"MEANWHILE"]
    assert not made.lost
    assert not made.driver.status & transport.NEEDS_RESET
    made.close()


def test_a_death_while_its_rings_are_taken_back_is_one_like_any_other(server: EchoServer) -> None:
    made = Bench(server.connect(), kind=SucceededDevice)
    assert isinstance(made.device, SucceededDevice)
    boot(made)
    queue = made.driver.add_queue(1)
    made.driver.go()
    server.call(server._drop)
    with pytest.raises(HostError, match="is being replaced"):  # nobody has noticed before
        made.driver.transport.halt()
    made.driver.transport.go_on()
    made.driver.settle()
    queue.submit([b"after"], [16])
    made.driver.kick(1)
    made.device.reconnect(server.connect())
    assert made.answers(queue, 1) == [b"AFTER"]
    assert not made.lost
    made.close()


def test_left_its_rings_wait_for_any_other_back_end(server: EchoServer) -> None:
    made = Bench(server.connect(), kind=SucceededDevice)
    assert isinstance(made.device, SucceededDevice)
    boot(made)
    queue = made.driver.add_queue(1)
    made.driver.go()
    with EchoServer() as other:
        for there in (other, server):
            made.device.disconnect()
            made.driver.settle()
            queue.interrupts(wanted=True)
            queue.submit([b"waits"], [16])
            made.driver.kick(1)
            with pytest.raises(HostError, match="is being replaced"):
                made.driver.transport.halt()
            made.driver.transport.go_on()
            made.device.disconnect()  # once more is fine
            made.device.reconnect(there.connect())
            assert made.answers(queue, 1) == [b"WAITS"]
            assert sorted(there.device.running) == [1]
        made.device.disconnect()
        boot(made)  # a driver that starts over meanwhile
        queue = made.driver.add_queue(1)
        made.driver.go()
        queue.submit([b"anew"], [16])
        made.driver.kick(1)
        made.device.reconnect(other.connect())
        made.device.disconnect()  # when the rings have been handed over
        made.device.reconnect(server.connect())
        assert made.device._resuming is not None
        made.device._resuming.join()
        assert made.answers(queue, 1) == [b"ANEW"]
        assert not made.lost
        made.close()


def test_at_rest_until_the_driver_wants_something(server: EchoServer) -> None:
    made = Bench(server.connect(), kind=SucceededDevice)
    assert isinstance(made.device, SucceededDevice)
    wanted: list[int] = []
    boot(made)
    queue, other = made.driver.add_queue(1), made.driver.add_queue(0)
    made.driver.go()
    for round_ in range(3):
        if round_ == 1:
            server.call(server._drop)
            readable(made.device._peek, timeout=10)
            queue.submit([b"1"], [16])  # before, and nobody has heard its kick
        made.device.rest((1,), lambda: wanted.append(1))
        made.driver.settle()
        assert server.device.running == {}
        if round_ != 1:
            other.submit([b"not asked for"], [16])
            made.driver.kick(0)
            made.driver.settle()
            assert len(wanted) == round_
            queue.submit([b"%d" % round_], [16])
            assert queue.kick_wanted()  # whatever the one before had asked for
            made.driver.kick(1)
        made.driver.settle()
        made.driver.settle()
        assert len(wanted) == round_ + 1
        queue.interrupts(wanted=True)
        made.device.reconnect(server.connect())
        assert made.answers(queue, 1) == [b"%d" % round_]
    made.device.rest((1,), lambda: wanted.append(1))
    assert not made.lost
    made.close()
    assert len(wanted) == 3


def test_no_back_end_at_all() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    made = Bench(ours)
    assert made.driver.offered() == 0
    assert not made.driver.negotiate()
    made.driver.settle()
    assert len(made.lost) == 1
    made.close()


def test_a_back_end_that_speaks_out_of_turn(bench: Bench, server: EchoServer) -> None:
    boot(bench)
    bench.driver.go()
    assert server.backend is not None
    server.backend._channel.sock.send(b"noise")
    readable(bench.device._peek, timeout=10)
    bench.driver.settle()
    assert "out of turn" in bench.lost[0].message


def test_a_ring_broken_in_the_other_process_breaks_the_device(
    bench: Bench, server: EchoServer
) -> None:
    boot(bench)
    queue = bench.driver.add_queue(0)
    bench.driver.go()
    queue.set_avail_idx(999)
    bench.driver.kick(0)
    readable(bench.device._err_fd, timeout=10)
    bench.driver.settle()
    assert bench.driver.status & transport.NEEDS_RESET
    assert bench.lost == []
    boot(bench)
    fresh = bench.driver.add_queue(0)
    bench.driver.go()
    fresh.submit([b"alive"], [8])
    bench.driver.kick(0)
    bench.wait_call()
    assert len(fresh.collect()) == 1


def test_a_ring_outside_memory_is_refused_by_the_back_end(bench: Bench) -> None:
    boot(bench)
    bench.driver.program_queue(0, 64, 0, 0, 0)
    bench.driver.go()
    assert bench.driver.status & transport.NEEDS_RESET


def test_halted_rings_are_served_again_where_they_were(bench: Bench, server: EchoServer) -> None:
    boot(bench)
    queue = bench.driver.add_queue(1)
    bench.driver.go()
    for word in (b"one", b"two"):
        bench.driver.transport.halt()
        assert server.device.running == {}
        queue.submit([word], [16])
        bench.driver.kick(1)
        bench.driver.transport.go_on()
        assert bench.answers(queue, 1) == [word.upper()]
    assert bench.lost == []


def test_another_process_goes_on_with_what_was_unfinished(bench: Bench, server: EchoServer) -> None:
    """A request that waits, for a lock say, is in a clone's rings, but not in its back end."""
    boot(bench)
    queue = bench.driver.add_queue(1)
    bench.driver.go()
    queue.submit([b"done"], [16])
    bench.driver.kick(1)
    bench.wait_call()
    assert len(queue.collect()) == 1
    server.device.hold = True
    for word in (b"first", b"second"):
        queue.submit([word], [16])
        bench.driver.kick(1)
        server.call(lambda: None)
    bench.driver.transport.halt()
    state = bench.driver.transport.get_state()
    assert state.queues[1].ring.next == 3
    assert len(state.queues[1].ring.unfinished) == 2
    with EchoServer() as other:
        clone = Bench(other.connect(), memory=bench.fd, state=state)
        assert clone.device._resuming is not None
        clone.device._resuming.join()
        assert clone.answers(queue, 2) == [b"FIRST", b"SECOND"]
        queue.interrupts(wanted=True)
        queue.submit([b"more"], [16])
        clone.driver.kick(1)
        assert clone.answers(queue, 1) == [b"MORE"]
        clone.close()


def test_a_clone_whose_back_end_is_gone(bench: Bench) -> None:
    boot(bench)
    bench.driver.add_queue(1)
    bench.driver.go()
    bench.driver.transport.halt()
    state = bench.driver.transport.get_state()
    ours, theirs = socket.socketpair()
    theirs.close()
    clone = Bench(ours, memory=bench.fd, state=state)
    assert clone.device._resuming is not None
    clone.device._resuming.join()
    clone.driver.settle()
    assert clone.driver.status & transport.NEEDS_RESET
    assert len(clone.lost) == 1
    clone.close()


def test_too_few_queues() -> None:
    with EchoServer(queues=1) as server:
        made = Bench(server.connect())
        assert made.driver.offered() == 0
        made.driver.settle()
        assert "1 queues, 2 are needed" in made.lost[0].message
        made.close()


def test_the_file_systems_configuration() -> None:
    ours, theirs = socket.socketpair()
    loop = EventLoop()
    device = virtio_fs("fs", "root", ours, [], loop, lambda _error: None)
    assert (device.device_id, device.queue_sizes) == (26, (128, 256))
    assert device.config == struct.pack("<36sI", b"root", 1)
    device.stop()
    theirs.close()
    loop.close()
