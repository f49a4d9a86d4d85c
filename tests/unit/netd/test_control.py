"""What `netd` is asked while it runs: forwards that come and go, and how the network is."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from crumble_common import wire
from crumble_common.errors import UsageError
from crumble_common.eventloop import EventLoop
from crumble_common.messages.net import (
    Forward,
    ForwardAdd,
    ForwardRemove,
    NetConfig,
    NetInspect,
    NetState,
)
from crumble_common.messages.service import Ok, Ping
from crumble_common.service import Context, Reply
from crumble_netd.service import NetdService
from framework.ready import readable


class Link:
    """Keeps what was answered."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, envelope: wire.Envelope) -> None:
        self.sent.append(envelope.body or envelope.error)


@pytest.fixture
def service() -> Iterator[NetdService]:
    ours, theirs = socket.socketpair()
    loop = EventLoop()
    made = NetdService(Context("netd.box", {"net": theirs.detach()}, loop, Link()))
    made.open(NetConfig("net", name="box", resolvers=["127.0.0.1"]))
    made.start()
    yield made
    made.stop(0)
    loop.close()
    ours.close()


def ask(service: NetdService, message: Any) -> Any:
    link = Link()
    service.handle(message, Reply(service.context, link, 1, 0.0))
    (answer,) = link.sent
    return answer


def test_forwards_come_and_go(service: NetdService) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match="Cannot listen"):
            ask(service, ForwardAdd(Forward(port, 80)))
    forward = Forward(port, 80)
    assert isinstance(ask(service, ForwardAdd(forward)), Ok)
    state = ask(service, NetInspect())
    assert isinstance(state, NetState)
    assert state.forwards == [forward]
    # A guest that has not been heard of takes nothing yet: its peers see the end at once.
    with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
        while not readable(peer, timeout=0):
            service.context.loop.step(0.1)
        assert peer.recv(1) == b""
    assert isinstance(ask(service, ForwardRemove(forward)), Ok)
    assert ask(service, NetInspect()).forwards == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
    with pytest.raises(UsageError, match="not forwarded"):
        ask(service, ForwardRemove(forward))


def test_what_it_does_not_know_it_says(service: NetdService) -> None:
    assert isinstance(ask(service, Ping()), UsageError)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"guest": "10.0.2.1"}, "three addresses"),
        ({"gateway": "10.9.9.9"}, "not in 10.0.2.0/24"),
        ({"network6": "fd00::/48"}, "no /64"),
        ({"mac": "01:00:00:00:00:01"}, "no MAC address"),
        ({"resolvers": ["example.org"]}, "no address of a DNS server"),
    ],
)
def test_configurations_that_cannot_be(change: dict[str, Any], says: str) -> None:
    ours, theirs = socket.socketpair()
    loop = EventLoop()
    made = NetdService(Context("netd", {"net": theirs.detach()}, loop, Link()))
    with ours, pytest.raises(UsageError, match=says):
        made.open(NetConfig(**{"socket_fd": "net", **change}))
    theirs.close()
    loop.close()
