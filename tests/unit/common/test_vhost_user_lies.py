"""vhost-user, both sides: peers that lie, break off or say nothing."""

from __future__ import annotations

import array
import contextlib
import os
import random
import socket
import struct
import threading

import pytest

from crumble_common.vhost_user import (
    Disconnected,
    Frontend,
    VhostUserError,
    wire,
)
from crumble_common.vhost_user.wire import NEED_REPLY, Message, Region, Request
from framework.echo_backend import EchoServer
from framework.vhost_user_master import RAM, Master, addresses, send, state, u64

pytestmark = pytest.mark.usefixtures("no_fd_leaks")


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
