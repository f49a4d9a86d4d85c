"""The host's ends of `benchmarks.net`, each in a process of its own: the driver that plays the guest needs its Python for itself."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CHUNK = 1 << 20
# Datagrams under way: what a socket's default buffer holds of 1,400 bytes each.
WINDOW = 64
# Those under way are lost when so long none of them came, in seconds.
_LOST = 0.1
_POLL = 20e-6
_fork = multiprocessing.get_context("fork")


class Counter:
    """A number that both processes see."""

    def __init__(self) -> None:
        self._words = memoryview(mmap.mmap(-1, 8)).cast("Q")

    @property
    def value(self) -> int:
        """0 at first."""
        return self._words[0]

    @value.setter
    def value(self, value: int) -> None:
        self._words[0] = value


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Another process does `work`, and is waited for."""
    process = _fork.Process(target=work, daemon=True)
    process.start()
    try:
        yield
        process.join(60)
    finally:
        process.kill()
        process.join()


# TCP. Each connection waits for a byte of the guest's before anything is measured.


def _each(server: socket.socket, streams: int, work: Callable[[socket.socket], None]) -> None:
    connections = [server.accept()[0] for _ in range(streams)]
    threads = [threading.Thread(target=work, args=(one,)) for one in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def pour(server: socket.socket, streams: int, size: int) -> None:
    """Sends `size` bytes in each of so many connections at once, and waits for their ends."""
    data = bytes(CHUNK)

    def work(connection: socket.socket) -> None:
        connection.recv(1)
        for at in range(0, size, CHUNK):
            connection.sendall(data[: size - at])
        _drain(connection)

    _each(server, streams, work)


def sink(server: socket.socket, streams: int) -> None:
    """Reads so many connections at once, to their ends."""
    _each(server, streams, _drain)


def _drain(connection: socket.socket) -> None:
    buffer = bytearray(CHUNK)
    with connection, contextlib.suppress(ConnectionResetError):
        while connection.recv_into(buffer):
            pass


def answer(connection: socket.socket) -> None:
    """Says what it hears."""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(2048):
            connection.sendall(data)


# UDP. A window is kept by counters in shared memory, which costs the network nothing.


def paced(count: int, arrived: Counter, idle: Callable[[float], object]) -> Iterator[int]:
    """0 to `count`, each when there is room in the window. idle: waits so many seconds."""
    lost = 0
    for sent in range(count):
        end = 0.0
        while sent - lost - arrived.value >= WINDOW:
            now = time.monotonic()
            end = end or now + _LOST
            if now > end:
                lost = sent - arrived.value
            idle(_POLL)
        yield sent


def send_datagrams(sock: socket.socket, count: int, size: int, arrived: Counter) -> None:
    """Waits for a datagram, and answers it with `count` of `size` bytes."""
    data, peer = bytes(size), sock.recvfrom(2048)[1]
    sock.connect(peer)
    for _ in paced(count, arrived, time.sleep):
        sock.send(data)


def count_datagrams(sock: socket.socket, count: int, arrived: Counter) -> None:
    """Receives until all are there, or nothing comes any more."""
    sock.settimeout(5)
    buffer = bytearray(2048)
    with contextlib.suppress(TimeoutError):
        while arrived.value < count:
            sock.recv_into(buffer)
            arrived.value += 1


def answer_datagrams(sock: socket.socket, count: int) -> None:
    """Sends so many back."""
    for _ in range(count):
        data, peer = sock.recvfrom(2048)
        sock.sendto(data, peer)
