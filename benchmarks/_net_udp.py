"""UDP rows of `benchmarks.net`: datagrams both ways, small and large; questions and answers.

At most `WINDOW` datagrams are under way, so few are lost unless the back end loses them; how many, a row says.
"""

from __future__ import annotations

import socket
import time
from functools import partial

from benchmarks._common import process_cpu_seconds
from benchmarks._net_host import (
    WINDOW,
    Counter,
    answer_datagrams,
    beside,
    count_datagrams,
    paced,
    send_datagrams,
)
from crumble_netd.header import checksum, ethernet, ipv4, udp, virtio_net
from crumble_netd.header.virtio_net import NOTHING, Offload
from framework.net_client import NetClient
from framework.netd_guest import GATEWAY_MAC, GUEST, MAC

SIZES = (64, 1400)
COUNT = 20_000
ROUND_TRIPS = 300
# Frames that the guest gives to its device at once.
_BATCH = 16
_SILENT = 0.5
_HEADERS = ethernet.SIZE + ipv4.SIZE + udp.SIZE


def measure(client: NetClient, pid: int, host: bytes) -> dict[str, float]:
    """All rows of one back end, whose process is `pid`."""
    found: dict[str, float] = {}
    for size in SIZES:
        found |= _to_guest(client, pid, size, host) | _from_guest(client, pid, size, host)
    return found | _questions(client, pid, host)


def frame(client: NetClient, to: tuple[bytes, int], data: bytes) -> tuple[bytes, Offload]:
    """A datagram as Linux gives it to a device: its checksum is left to that which can."""
    size = udp.SIZE + len(data)
    pseudo = checksum.pseudo(GUEST, to[0], udp.PROTOCOL, size)
    head = udp.build(40_000, to[1], data, pseudo)
    link = ethernet.build(GATEWAY_MAC, MAC, ethernet.IPV4)
    ip = ipv4.build(GUEST, to[0], udp.PROTOCOL, size)
    if not client.features & virtio_net.F_CSUM:
        return link + ip + head + data, NOTHING
    head = head[:6] + pseudo.to_bytes(2, "big")
    start = len(link) + len(ip)
    return link + ip + head + data, Offload(virtio_net.NEEDS_CSUM, 0, 0, 0, start, 6)


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def _rows(name: str, arrived: int, spent: float, elapsed: float) -> dict[str, float]:
    return {
        f"{name} a s": arrived / elapsed,
        f"{name} CPU us": spent * 1e6 / max(arrived, 1),
        f"{name} lost %": (COUNT - arrived) * 100 / COUNT,
    }


def _to_guest(client: NetClient, pid: int, size: int, host: bytes) -> dict[str, float]:
    arrived = Counter()
    last = time.monotonic()

    def heard(frame: bytes) -> None:
        nonlocal last
        if len(frame) == _HEADERS + size:
            arrived.value += 1
            last = time.monotonic()

    client.heard = heard
    with _socket() as sock, beside(partial(send_datagrams, sock, COUNT, size, arrived)):
        client.frame(*frame(client, (host, sock.getsockname()[1]), b"begin"))
        client.wait(lambda: arrived.value)
        before, began, first = process_cpu_seconds(pid), time.monotonic(), arrived.value
        while arrived.value < COUNT and time.monotonic() < last + _SILENT:
            client.pump(0.01)
        elapsed, spent = last - began, process_cpu_seconds(pid) - before
    client.heard = None
    found = _rows(f"udp {size} to guest", arrived.value - first, spent, elapsed)
    return found | {f"udp {size} to guest lost %": (COUNT - arrived.value) * 100 / COUNT}


def _from_guest(client: NetClient, pid: int, size: int, host: bytes) -> dict[str, float]:
    arrived = Counter()
    with _socket() as sock, beside(partial(count_datagrams, sock, COUNT, arrived)):
        made = frame(client, (host, sock.getsockname()[1]), bytes(size))
        before, began = process_cpu_seconds(pid), time.monotonic()
        for sent in paced(COUNT, arrived, client.pump):
            client.frame(*made)
            if sent % _BATCH == _BATCH - 1:
                client.pump()
        last, end = arrived.value, time.monotonic() + _SILENT
        while arrived.value < COUNT and time.monotonic() < end:
            client.pump(0.001)
            if arrived.value != last:
                last, end = arrived.value, time.monotonic() + _SILENT
        silent = _SILENT if arrived.value < COUNT else 0.0
        elapsed = time.monotonic() - began - silent
        spent = process_cpu_seconds(pid) - before
        arrived_here = arrived.value
        if silent:
            # Those that were lost, so that the other process ends.
            arrived.value = COUNT
            client.frame(*made)
            client.pump()
    return _rows(f"udp {size} from guest", arrived_here, spent, elapsed)


def _questions(client: NetClient, pid: int, host: bytes) -> dict[str, float]:
    count = 0

    def heard(frame: bytes) -> None:
        nonlocal count
        count += len(frame) == _HEADERS + 1

    client.heard = heard
    with _socket() as sock, beside(partial(answer_datagrams, sock, ROUND_TRIPS + WINDOW)):
        made = frame(client, (host, sock.getsockname()[1]), b"x")
        for _ in range(WINDOW):  # the flow begins
            client.frame(*made)
            client.wait(lambda before=count: count > before)
        before, began = process_cpu_seconds(pid), time.monotonic()
        for _ in range(ROUND_TRIPS):
            client.frame(*made)
            client.wait(lambda before=count: count > before)
        elapsed, spent = time.monotonic() - began, process_cpu_seconds(pid) - before
    client.heard = None
    return {
        "udp round trip us": elapsed * 1e6 / ROUND_TRIPS,
        "udp round trip CPU us": spent * 1e6 / ROUND_TRIPS,
    }
