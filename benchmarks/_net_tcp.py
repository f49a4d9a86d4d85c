"""TCP rows of `benchmarks.net`: streams both ways, one and many at once; small questions; connections."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from functools import partial

from benchmarks._common import process_cpu_seconds
from benchmarks._net_host import CHUNK, answer, beside, pour, sink
from framework.net_client import NetClient, Stream

MANY = 16
ROUND_TRIPS = 300
CONNECTIONS = 200
_LIMIT = 600.0


class Forgetting(deque[bytes]):
    """What was received is not kept."""

    def append(self, data: bytes, /) -> None:
        pass


def measure(client: NetClient, pid: int, megabytes: int, host: bytes) -> dict[str, float]:
    """All rows of one back end, whose process is `pid`."""
    found: dict[str, float] = {}
    for streams in (1, MANY):
        size = megabytes * CHUNK // streams
        found |= _to_guest(client, pid, streams, size, host)
        found |= _from_guest(client, pid, streams, size, host)
    return found | _questions(client, pid, host) | _connections(client, pid, host)


def _row(direction: str, streams: int, size: int, spent: float, elapsed: float) -> dict[str, float]:
    name = direction if streams == 1 else f"{direction} {streams}"
    total = size * streams
    return {name: spent * 1e12 / total, f"{name} Gbit/s": total * 8 / elapsed / 1e9}


def _connect(client: NetClient, server: socket.socket, streams: int, host: bytes) -> list[Stream]:
    return [client.connect((host, server.getsockname()[1])) for _ in range(streams)]


def _to_guest(
    client: NetClient, pid: int, streams: int, size: int, host: bytes
) -> dict[str, float]:
    server = socket.create_server(("127.0.0.1", 0))
    with server, beside(partial(pour, server, streams, size)):
        opened = _connect(client, server, streams, host)
        for stream in opened:
            stream.received = Forgetting()
        before, began = process_cpu_seconds(pid), time.monotonic()
        for stream in opened:
            stream.send(b"x")
        client.wait(lambda: all(stream.count >= size for stream in opened), _LIMIT)
        elapsed, spent = time.monotonic() - began, process_cpu_seconds(pid) - before
        for stream in opened:
            stream.abort()
    return _row("to guest", streams, size, spent, elapsed)


def _from_guest(
    client: NetClient, pid: int, streams: int, size: int, host: bytes
) -> dict[str, float]:
    data = bytes(min(CHUNK, size))
    server = socket.create_server(("127.0.0.1", 0))
    with server, beside(partial(sink, server, streams)):
        opened = _connect(client, server, streams, host)
        before, began = process_cpu_seconds(pid), time.monotonic()
        for at in range(0, size, CHUNK):
            for stream in opened:
                stream.send(data[: size - at])
        client.wait(lambda: all(stream.idle for stream in opened), _LIMIT)
        elapsed, spent = time.monotonic() - began, process_cpu_seconds(pid) - before
        for stream in opened:
            stream.abort()
    return _row("from guest", streams, size, spent, elapsed)


def _questions(client: NetClient, pid: int, host: bytes) -> dict[str, float]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stream = client.connect((host, server.getsockname()[1]))
        connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    thread = threading.Thread(target=answer, args=(connection,))
    thread.start()
    before, began = process_cpu_seconds(pid), time.monotonic()
    for _ in range(ROUND_TRIPS):
        stream.send(b"x")
        stream.read(1)
    elapsed, spent = time.monotonic() - began, process_cpu_seconds(pid) - before
    stream.shutdown()
    thread.join()
    connection.close()
    return {
        "round trip us": elapsed * 1e6 / ROUND_TRIPS,
        "round trip CPU us": spent * 1e6 / ROUND_TRIPS,
    }


def _connections(client: NetClient, pid: int, host: bytes) -> dict[str, float]:
    """Opened and reset, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        to = (host, server.getsockname()[1])
        before, began = process_cpu_seconds(pid), time.monotonic()
        for _ in range(CONNECTIONS):
            stream = client.connect(to)
            server.accept()[0].close()
            stream.abort()
        elapsed, spent = time.monotonic() - began, process_cpu_seconds(pid) - before
    return {
        "connections a s": CONNECTIONS / elapsed,
        "connection CPU us": spent * 1e6 / CONNECTIONS,
    }
