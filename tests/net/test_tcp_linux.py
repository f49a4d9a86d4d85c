"""netd's TCP against Linux's, over a bridge that loses, delays, reorders and duplicates: not a byte is different.

Linux is the guest (a TAP in a network namespace, framework/linux_peer.py), netd is a process behind vhost-user, its host
side are sockets on the loopback. The few in the main set take seconds; `make test-net` has the whole table.
"""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from crumble_common.messages.net import Forward, NetConfig, NetPolicy
from crumble_netd.ledger import Ledger
from crumble_netd.tcp.state import State
from framework import linux_peer
from framework.linux_peer import Bridge, LinuxPeer, Trouble
from framework.ports import free_port
from framework.surviving_netd import SurvivingNetd

SEED = 7
HOST = "10.0.2.2"
GUEST_PORT = 80
PLAIN = {"tcp_sack": 1, "tcp_timestamps": 1, "tcp_window_scaling": 1, "mtu": 1500}
LONG = pytest.mark.long
# The ledger has what the guest was told; that its ACK took CLOSING to TIME-WAIT is nothing to tell.
OVER = {State.TIME_WAIT, State.CLOSING}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass
class Network:
    """All of it. forward: the host's port that leads to the guest's."""

    peer: LinuxPeer
    bridge: Bridge
    netd: SurvivingNetd
    server: socket.socket
    guest_server: socket.socket
    forward: int

    def pair(self, way: str = "nat") -> tuple[socket.socket, socket.socket]:
        """A connection's ends: the guest's, and the host's."""
        if way == "nat":
            guest = self.peer.socket()
            guest.settimeout(60)
            guest.connect((HOST, self.server.getsockname()[1]))
            host, _ = self.server.accept()
        else:
            host = socket.create_connection(("127.0.0.1", self.forward), 60)
            guest, _ = self.guest_server.accept()
        for end in (guest, host):
            end.settimeout(60)
        return guest, host

    def left(self) -> list[State]:
        """States of the flows that netd has."""
        return [slot.block().state for slot in Ledger(self.netd.arena).flows()]


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if why := linux_peer.missing():
        pytest.skip(why)
    print(f"seed {SEED}")
    forward = free_port()
    config = NetConfig("net", policy=NetPolicy(["host"]), forwards=[Forward(forward, GUEST_PORT)])
    with (
        LinuxPeer() as peer, SurvivingNetd(config) as netd,
        Bridge(peer, netd.start(), SEED) as bridge,
        socket.create_server(("127.0.0.1", 0)) as server, peer.socket() as guest_server,
    ):  # fmt: skip
        guest_server.bind(("", GUEST_PORT))
        guest_server.listen(9)
        for listener in (server, guest_server):
            listener.settimeout(60)
        made = Network(peer, bridge, netd, server, guest_server, forward)
        yield made
    assert not any("Traceback" in errors for errors in netd.errors)


@pytest.fixture(autouse=True)
def quiet(network: Network) -> Iterator[None]:
    """Afterwards the way is good again, and the flows are over."""
    network.peer.tune(**PLAIN)
    network.bridge.forget()
    yield
    network.bridge.trouble = Trouble()
    wait_for(lambda: not set(network.left()) - OVER)
    assert not set(network.left()) - OVER


class Sender(threading.Thread):
    """Sends, then closes its half. step: bytes of each write."""

    def __init__(self, sock: socket.socket, data: bytes, step: int = 1 << 16) -> None:
        super().__init__()
        self._socket, self._data, self._step = sock, data, step
        self.start()

    def run(self) -> None:
        for at in range(0, len(self._data), self._step):
            self._socket.sendall(self._data[at : at + self._step])
        self._socket.shutdown(socket.SHUT_WR)


def digest_of(sock: socket.socket) -> str:
    """Of everything up to the end."""
    found = hashlib.sha256()
    while piece := sock.recv(1 << 16):
        found.update(piece)
    return found.hexdigest()


def unacknowledged(sock: socket.socket) -> int:
    """Segments on their way (tcp_info.tcpi_unacked)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    return int(struct.unpack_from("=I", info, 24)[0])


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> bool:
    """Whether it has come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def exchange(guest: socket.socket, host: socket.socket, size: int, step: int = 1 << 16) -> None:
    """Both ways at once; digests are equal."""
    chance = random.Random(SEED)
    up, down = chance.randbytes(size), chance.randbytes(size)
    got: dict[str, str] = {}
    with guest, host:
        senders = [Sender(guest, up, step), Sender(host, down, step)]
        reader = threading.Thread(target=lambda: got.update(up=digest_of(host)))
        reader.start()
        got["down"] = digest_of(guest)
        for thread in (*senders, reader):
            thread.join(90)
    assert got == {name: hashlib.sha256(d).hexdigest() for name, d in (("up", up), ("down", down))}


def case(name: str, size: int, trouble: Trouble, *, quick: bool = False, **settings: int) -> object:
    return pytest.param(size, trouble, settings, id=name, marks=[] if quick else [LONG])


BAD = Trouble(loss=0.02, reorder=0.05, duplicate=0.02, delay=0.002)
CASES = [
    case("good", 3_000_000, Trouble(), quick=True),
    case("loss 1", 1_000_000, Trouble(loss=0.01)),
    case("loss 5", 300_000, Trouble(loss=0.05), quick=True),
    case("loss 20", 60_000, Trouble(loss=0.2)),
    case("reorder 1", 1_000_000, Trouble(reorder=0.01)),
    case("reorder 10", 500_000, Trouble(reorder=0.1), quick=True),
    case("duplicate", 500_000, Trouble(duplicate=0.1), quick=True),
    case("delay 1", 2_000_000, Trouble(delay=0.001)),
    case("delay 50", 500_000, Trouble(delay=0.05)),
    case("mtu 576", 300_000, BAD, mtu=576),
    case("mtu 296", 100_000, BAD, mtu=296),
    case("combined", 200_000, BAD, quick=True),
    case("no sack", 200_000, BAD, quick=True, tcp_sack=0),
    case("no timestamps", 200_000, BAD, tcp_timestamps=0),
    case("no scaling", 200_000, BAD, tcp_window_scaling=0),
    case("no options", 200_000, BAD, quick=True, tcp_sack=0, tcp_timestamps=0, tcp_window_scaling=0),
    case("no sack, loss 5", 200_000, Trouble(loss=0.05), tcp_sack=0),
    case("far and bad", 100_000, Trouble(0.03, 0.05, 0.02, 0.05)),
]  # fmt: skip


@pytest.mark.parametrize(("size", "trouble", "settings"), CASES)
def test_bytes_are_the_same_bytes(
    network: Network, size: int, trouble: Trouble, settings: dict[str, int]
) -> None:
    network.peer.tune(**settings)
    network.bridge.trouble = trouble
    pairs = [network.pair("nat"), network.pair("forward")]
    threads = []
    failed: list[BaseException] = []

    def run(guest: socket.socket, host: socket.socket) -> None:
        try:
            exchange(guest, host, size)
        except BaseException as error:
            failed.append(error)

    for ends in pairs:
        threads.append(threading.Thread(target=run, args=ends))
        threads[-1].start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "not over in 120 s"
    assert not failed, failed
    seen = network.bridge.seen
    # What was turned off was off, what was on was used.
    assert bool(seen["netd stamped"]) == bool(settings.get("tcp_timestamps", 1))
    if not settings.get("tcp_sack", 1):
        assert not seen["netd sack"]
    elif trouble.loss:
        assert seen["netd sack"] + seen["guest sack"]


@pytest.mark.parametrize("way", ["guest", "host"])
def test_a_reader_stops_and_goes_on(network: Network, way: str) -> None:
    """The window closes; it is found open again though what tells it may be lost."""
    guest, host = network.pair()
    sender, reader = (host, guest) if way == "guest" else (guest, host)
    if way == "guest":  # the host's loopback would be slow for ever
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    data = random.Random(SEED).randbytes(12_000_000 if way == "host" else 300_000)
    with guest, host:
        thread = Sender(sender, data)
        network.bridge.wait("guest closed" if way == "guest" else "netd closed")
        network.bridge.trouble = Trouble(loss=0.05)
        found = b""
        while len(found) < 200_000:
            found += reader.recv(8192)
        network.bridge.trouble = Trouble()
        reader.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20
        )  # the host's loopback is slow with less
        while piece := reader.recv(1 << 16):
            found += piece
        assert hashlib.sha256(found).digest() == hashlib.sha256(data).digest()
        thread.join(60)


@pytest.mark.parametrize("first", ["guest", "host"])
def test_half_a_connection_goes_on(network: Network, first: str) -> None:
    network.bridge.trouble = BAD
    guest, host = network.pair()
    one, other = (guest, host) if first == "guest" else (host, guest)
    with guest, host:
        one.shutdown(socket.SHUT_WR)
        assert other.recv(1) == b""
        data = random.Random(SEED).randbytes(100_000)
        thread = Sender(other, data)
        assert digest_of(one) == hashlib.sha256(data).hexdigest()
        thread.join(60)


@pytest.mark.parametrize("by", ["guest", "host"])
def test_a_reset_is_a_reset(network: Network, by: str) -> None:
    guest, host = network.pair()
    one, other = (guest, host) if by == "guest" else (host, guest)
    with guest, host:
        one.sendall(b"x")
        assert other.recv(1) == b"x"
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        one.close()
        with pytest.raises(ConnectionResetError):
            other.recv(1)


def test_both_close_at_once(network: Network) -> None:
    """FINs cross on the way."""
    network.bridge.trouble = Trouble(delay=0.05)
    guest, host = network.pair()
    with guest, host:
        guest.sendall(b"x")
        assert host.recv(1) == b"x"
        time.sleep(0.2)
        for end in (guest, host):
            end.shutdown(socket.SHUT_WR)
        assert (guest.recv(1), host.recv(1)) == (b"", b"")
    network.bridge.wait("netd fin")


def test_small_segments(network: Network) -> None:
    """One byte in each."""
    network.bridge.trouble = Trouble(loss=0.01, reorder=0.05)
    guest, host = network.pair()
    for end in (guest, host):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    exchange(guest, host, 500, step=1)


def test_refused(network: Network) -> None:
    with network.peer.socket() as guest:
        guest.settimeout(20)
        with pytest.raises(ConnectionRefusedError):
            guest.connect((HOST, free_port()))


def test_keep_alive(network: Network) -> None:
    """Linux asks an idle connection whether it is there: it is; then the way is gone, and it is not."""
    guest, host = network.pair()
    with guest, host:
        guest.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 2)
        ):  # fmt: skip
            guest.setsockopt(socket.IPPROTO_TCP, option, value)
        before = network.bridge.seen["netd segment"]
        network.bridge.wait("netd segment", before + 2)
        guest.sendall(b"x")
        assert host.recv(1) == b"x"
        wait_for(lambda: not unacknowledged(guest))  # else Linux sends that again, and asks nothing
        network.bridge.trouble = Trouble(loss=1.0)
        with pytest.raises(TimeoutError, match="Errno 110"):
            guest.recv(1)
        network.bridge.trouble = Trouble()


@LONG
def test_nothing_is_left(network: Network) -> None:
    """The last one: TIME-WAIT is over, and netd has neither flows nor sockets of theirs."""
    assert wait_for(lambda: not network.left(), 180)
    assert not [name for name in network.netd.lot.fds if name.startswith("flow:")]
