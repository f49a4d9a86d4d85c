"""A captured device whose back end begins when its driver wants something: against a real one in a thread."""

import functools
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from crumble_common.errors import UsageError
from crumble_vmm.config import Filesystem, MachineConfig
from crumble_vmm.devices.virtio import transport
from crumble_vmm.devices.virtio.vhost_user_late import LateDevice
from crumble_vmm.snapshot.state import TransportState
from framework.echo_backend import EchoServer
from framework.ready import readable
from framework.vhost_bench import Bench
from framework.virtqueue_driver import VirtqueueDriver


class Captured:
    """One that stands still, and clones of it, whose back end is `server` once it `begins`."""

    def __init__(self, *, unfinished: bool = False) -> None:
        self.wanted: list[int] = []
        with EchoServer() as first:
            self.made = made = Bench(first.connect())
            assert made.driver.negotiate()
            self.queue = made.driver.add_queue(1)
            made.driver.go()
            self.queue.submit([b"done"], [16])
            made.driver.kick(1)
            made.wait_call()
            assert len(self.queue.collect()) == 1
            if unfinished:
                first.device.hold = True
                self.queue.submit([b"held"], [16])
                made.driver.kick(1)
                first.call(lambda: None)
            made.driver.transport.halt()
            self.state: TransportState = made.driver.transport.get_state()
            made.close_device()
        self.ends: list[socket.socket] = []
        self.clones: list[Bench] = []

    def clone(self) -> Bench:
        ours, theirs = socket.socketpair()
        self.ends.append(ours)
        kind = functools.partial(LateDevice, wanted=lambda: self.wanted.append(1))
        clone = Bench(theirs, memory=self.made.fd, state=self.state, kind=kind)
        self.clones.append(clone)
        clone.driver.settle()
        return clone

    def begins(self, server: EchoServer) -> None:
        end = self.ends.pop()
        server.call(lambda: server._adopt(end))
        resuming = self.clones[-1].device._resuming
        if resuming is not None:
            resuming.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for clone in self.clones:
            clone.close()
        for end in self.ends:
            end.close()
        os.close(self.made.fd)


@pytest.fixture
def captured() -> Iterator[Captured]:
    with Captured() as made:
        yield made


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with EchoServer() as running:
        yield running


def submit(clone: Bench, queue: VirtqueueDriver, text: bytes) -> None:
    queue.interrupts(wanted=True)
    queue.submit([text], [16])
    clone.driver.kick(1)


def test_nobody_is_asked_for_anything_before_a_kick(captured: Captured, server: EchoServer) -> None:
    clone = captured.clone()
    assert captured.wanted == []
    assert not readable(captured.ends[0], timeout=0)
    captured.queue.interrupts(wanted=True)
    captured.queue.submit([b"first"], [16])
    assert captured.queue.kick_wanted()  # whatever its back end of before had asked for
    clone.driver.kick(1)
    captured.begins(server)
    assert clone.answers(captured.queue, 1) == [b"FIRST"]
    clone.driver.settle()
    submit(clone, captured.queue, b"second")
    assert clone.answers(captured.queue, 1) == [b"SECOND"]
    assert (clone.lost, captured.wanted) == ([], [1])


def test_what_is_in_the_rings_already(server: EchoServer) -> None:
    with Captured(unfinished=True) as captured:
        clone = captured.clone()
        captured.begins(server)
        assert clone.answers(captured.queue, 1) == [b"HELD"]
        clone.driver.settle()
        assert captured.wanted == [1]


def test_a_capture_of_one_that_has_not_begun(captured: Captured, server: EchoServer) -> None:
    clone = captured.clone()
    for _ in range(2):
        clone.driver.transport.halt()
        assert clone.driver.transport.get_state() == captured.state
        clone.driver.transport.go_on()
    clone.driver.transport.halt()
    submit(clone, captured.queue, b"waits")
    assert captured.wanted == []  # nobody touches the rings now
    assert clone.driver.transport.get_state() == captured.state
    clone.driver.transport.go_on()
    captured.begins(server)
    assert clone.answers(captured.queue, 1) == [b"WAITS"]
    clone.driver.transport.halt()
    assert clone.driver.transport.get_state().queues[1].ring.next == 2
    clone.driver.transport.go_on()


def test_a_driver_that_begins_anew(captured: Captured, server: EchoServer) -> None:
    clone = captured.clone()
    captured.begins(server)
    assert clone.driver.negotiate()
    clone.driver.settle()
    assert captured.wanted == [1]
    assert server.device.running == {}
    clone.driver._at = captured.made.driver._at  # beside the rings of before
    queue = clone.driver.add_queue(1)
    clone.driver.go()
    queue.submit([b"anew"], [16])
    clone.driver.kick(1)
    assert clone.answers(queue, 1) == [b"ANEW"]
    assert clone.lost == []


def test_a_reset_while_it_begins(captured: Captured, server: EchoServer) -> None:
    clone = captured.clone()
    submit(clone, captured.queue, b"dropped")
    clone.driver.transport.reset()
    captured.begins(server)
    assert server.device.running == {}  # not the rings of before
    assert clone.lost == []


def test_one_that_never_begins(captured: Captured) -> None:
    clone = captured.clone()
    submit(clone, captured.queue, b"in vain")
    assert clone.device._resuming is not None
    assert clone.device._resuming.is_alive()  # and does not keep `stop` waiting


def test_one_that_is_gone_when_it_is_wanted(captured: Captured) -> None:
    clone = captured.clone()
    captured.ends.pop().close()
    clone.driver.settle()
    assert clone.lost == []
    submit(clone, captured.queue, b"in vain")
    assert clone.device._resuming is not None
    clone.device._resuming.join()
    clone.driver.settle()
    assert len(clone.lost) == 1
    assert clone.driver.status & transport.NEEDS_RESET


def test_a_deterministic_guest_cannot_wait_for_one() -> None:
    late = (Filesystem("root", "root_fs", late=True),)
    with pytest.raises(UsageError, match="cannot be late"):
        MachineConfig("vm", Path(__file__), 128 << 20, filesystems=late, seed=b"1")
