"""The plain socket: frames in pieces, hostile frames, leases; over a real supervisor."""

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crumble.cli import quick
from crumble.sdk.wires import ZmqWire
from crumble.supervisor.streams import Streams
from crumble_common import wire
from crumble_common.errors import UsageError
from crumble_common.eventloop import EventLoop
from crumble_common.messages.client import Status, VmInfos, VmList


class Host:
    """Answers every request on its streams: VmList with nothing, others with an error."""

    def __init__(self, path: Path) -> None:
        self.loop = EventLoop()
        self.gone: list[object] = []
        self.streams = Streams(self.loop, path, self.message, self.gone.append)

    @staticmethod
    def message(client: Any, envelope: wire.Envelope) -> None:
        if isinstance(envelope.body, VmList):
            client.answer(envelope.request, VmInfos([]))
        elif envelope.request:
            client.refuse(envelope.request, UsageError("No.", code="no", hint="Never."))

    def close(self) -> None:
        self.streams.close()
        self.loop.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "stream")
    yield made
    made.close()


def connected(path: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(path))
    peer.setblocking(False)
    return peer


def packed(body: object, request: int = 1) -> bytes:
    frame = wire.encode(wire.Envelope(body, request=request))
    return struct.pack("<I", len(frame)) + frame


def served(host: Host, peer: socket.socket) -> bytes:
    data = b""
    for _ in range(20):
        host.loop.step(0)
        try:
            data += peer.recv(65536)
        except BlockingIOError:
            pass
    return data


def test_frames_may_come_in_pieces_and_together(host: Host, tmp_path: Path) -> None:
    peer = connected(tmp_path / "stream")
    frames = packed(VmList()) + packed(Status(), 2)
    for byte in frames[:-1]:
        peer.send(bytes([byte]))
        host.loop.step(0)
    peer.send(frames[-1:])
    data = served(host, peer)
    (length,) = struct.unpack_from("<I", data)
    assert wire.decode(data[4 : 4 + length]) == wire.Envelope(VmInfos([]), reply_to=1)
    second = wire.decode(data[8 + length :])
    assert second.reply_to == 2
    assert second.error is not None
    assert second.error.code == "no"
    peer.close()
    served_gone(host)


def served_gone(host: Host) -> None:
    for _ in range(5):
        host.loop.step(0)
    assert len(host.gone) == 1


def test_a_length_over_the_limit_ends_the_connection(host: Host, tmp_path: Path) -> None:
    peer = connected(tmp_path / "stream")
    peer.send(struct.pack("<I", wire.MAX_FRAME + 1))
    served(host, peer)
    assert len(host.gone) == 1
    peer.close()


def test_a_large_answer_is_written_as_the_reader_takes_it(host: Host, tmp_path: Path) -> None:
    peer = connected(tmp_path / "stream")
    for number in range(3000):
        peer.send(packed(Status(), number + 1))
        host.loop.step(0)
    data = served(host, peer)
    for _ in range(100):
        data += served(host, peer)
    count = 0
    while data:
        (length,) = struct.unpack_from("<I", data)
        assert wire.decode(data[4 : 4 + length]).error is not None
        data = data[4 + length :]
        count += 1
    assert count == 3000
    peer.close()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_no_bytes_of_one_client_disturb_another(
    host: Host, tmp_path: Path, pieces: list[bytes]
) -> None:
    """Whatever one connection sends, another one's request is answered."""
    hostile, peer = connected(tmp_path / "stream"), connected(tmp_path / "stream")
    for piece in pieces:
        try:
            hostile.send(piece)
        except OSError:
            break
        host.loop.step(0)
    peer.send(packed(VmList()))
    assert b"client.vm.infos" in served(host, peer)
    hostile.close()
    peer.close()
    host.loop.step(0)


def test_the_quick_question_gets_plain_values_and_errors(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "find_daemon", lambda: str(tmp_path))
    thread = threading.Thread(target=host.loop.run)
    thread.start()
    try:
        assert quick.ask("client.vm.list", {"all": True}) == {"vms": []}
        with pytest.raises(UsageError, match=r"No\. Never\.") as refused:
            quick.ask("client.status", {})
        assert refused.value.code == "no"
    finally:
        host.loop.stop()
        thread.join()


def test_what_is_said_to_a_supervisor_that_has_ended_does_not_wait() -> None:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind("inproc://ended")
    wire = ZmqWire(context, "inproc://ended")
    wire.send(b"heard")
    assert router.recv_multipart()[-1] == b"heard"
    router.close(0)
    while wire.socket.getsockopt(zmq.EVENTS) & zmq.POLLOUT:
        pass  # ZeroMQ closes it in a thread of its own
    wire.send(b"not heard")
    context.destroy(0)
