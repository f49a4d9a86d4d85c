"""Byte-exact transfers between two of our TCPs over a network that loses, reorders and duplicates."""

from __future__ import annotations

import random

import pytest

from crumble_netd.header.tcp import Options, Segment
from crumble_netd.tcp.congestion import Congestion, Cubic, Reno
from crumble_netd.tcp.settings import Settings
from crumble_netd.tcp.state import State
from framework.tcp_network import TcpNetwork

SETTINGS = Settings(mss=1460, max_segment=60_000)


def _exchange(network: TcpNetwork, size: int = 300_000) -> None:
    """Both ends send at once, then close; what arrives is what was sent."""
    source = random.Random(5)
    client, server = network.hosts()
    client.to_send, server.to_send = source.randbytes(size), source.randbytes(size // 2)
    client.close_when_done = server.close_when_done = True
    network.open()
    done = network.run(lambda: bool(client.ended and server.ended), limit=3000)
    assert bytes(server.received) == client.to_send
    assert bytes(client.received) == server.to_send
    assert done, (client.connection.block, server.connection.block)
    assert client.peer_closed
    assert server.peer_closed
    assert client.ended == server.ended == "closed"


@pytest.mark.parametrize("control", [Reno(), Cubic()], ids=["reno", "cubic"])
@pytest.mark.parametrize("seed", range(4))
def test_loss_reordering_and_duplication(seed: int, control: Congestion) -> None:
    network = TcpNetwork(
        seed, loss=0.05, duplicate=0.05, jitter=0.02, settings=SETTINGS, control=control
    )
    _exchange(network)


@pytest.mark.parametrize("seed", range(3))
def test_where_the_numbers_start_makes_no_difference(seed: int) -> None:
    """Not to what is sent when, either: every mark starts at the ISS, wherever that is (RFC 9293 §3.4)."""
    courses = set()
    for iss in ((0, 0), (0x7FFFFF00, 0x80000000), (0xC0000000, 0xFFFFFFFF), (0x80000001, 5)):
        network = TcpNetwork(seed, loss=0.05, settings=SETTINGS, iss=iss)
        _exchange(network)
        courses.add((network.packets, network.now))
    assert len(courses) == 1


def test_heavy_loss() -> None:
    _exchange(TcpNetwork(9, loss=0.25, jitter=0.05, settings=SETTINGS), 60_000)


def test_a_clean_network_needs_no_retransmission() -> None:
    network = TcpNetwork(settings=SETTINGS)
    _exchange(network)
    assert network.packets < 2.2 * (450_000 / 1448)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lacking", ["sack_ok", "timestamps", "scale", "all"])
def test_without_options(lacking: str, seed: int) -> None:
    def strip(segment: Segment) -> Segment:
        if lacking == "all":
            return segment._replace(options=Options(mss=segment.options.mss))
        value = False if lacking == "sack_ok" else None
        return segment._replace(options=segment.options._replace(**{lacking: value}))

    _exchange(TcpNetwork(seed, loss=0.03, jitter=0.01, settings=SETTINGS, strip=strip), 150_000)


def test_simultaneous_open() -> None:
    network = TcpNetwork(settings=SETTINGS, passive=False)
    client, server = network.hosts()
    client.to_send, server.to_send = b"ping" * 500, b"pong" * 500
    client.close_when_done = server.close_when_done = True
    server.connection.open(network.now)
    network.collect(server)
    network.open()
    assert network.run(lambda: bool(client.ended and server.ended))
    assert bytes(server.received) == b"ping" * 500
    assert bytes(client.received) == b"pong" * 500


def test_a_reader_that_stops_closes_the_window_and_loses_nothing() -> None:
    network = TcpNetwork(3, loss=0.02, settings=SETTINGS)
    client, server = network.hosts()
    client.to_send = random.Random(1).randbytes(600_000)
    client.close_when_done = True
    server.reading = False
    network.open()
    network.run(lambda: False, limit=60)
    assert len(server.received) <= SETTINGS.rcv_start
    assert client.connection.block.persist_at, "the sender probes"
    server.reading = True
    server.work(network.now)
    network.collect(server)
    assert network.run(lambda: server.peer_closed, limit=300)
    assert bytes(server.received) == client.to_send


def test_half_close() -> None:
    network = TcpNetwork(settings=SETTINGS)
    client, server = network.hosts()
    client.close_when_done = True
    network.open()
    assert network.run(lambda: server.peer_closed)
    assert network.run(lambda: client.connection.block.state is State.FIN_WAIT_2)
    server.to_send = b"still here" * 1000
    server.close_when_done = True
    server.work(network.now)
    network.collect(server)
    assert network.run(lambda: client.peer_closed)
    assert bytes(client.received) == b"still here" * 1000


def test_nobody_there() -> None:
    network = TcpNetwork(loss=1.0, settings=SETTINGS)
    network.open()
    assert network.run(lambda: bool(network.client.ended))
    assert network.client.ended == "timeout"
    assert network.packets == 1 + SETTINGS.syn_tries


def test_a_peer_that_vanishes() -> None:
    network = TcpNetwork(settings=SETTINGS)
    client, _ = network.hosts()
    client.to_send = b"x" * 1000
    network.open()
    assert network.run(lambda: client.room == 1 << 20 and client.sent == 1000)
    network.loss = 1.0
    client.to_send += b"y" * 1000
    client.work(network.now)
    network.collect(client)
    assert network.run(lambda: bool(client.ended), limit=1000)
    assert client.ended == "timeout"
