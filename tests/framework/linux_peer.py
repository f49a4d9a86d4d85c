"""Linux's own TCP as netd's guest: a network namespace whose TAP a bridge joins to netd's rings, not without trouble.

with LinuxPeer() as peer, SurvivingNetd(config) as netd, Bridge(peer, netd.start(), seed=1) as bridge:
    bridge.trouble = Trouble(loss=0.05)
    sock = peer.socket()                # of the namespace, an ordinary one otherwise
    sock.connect(("10.0.2.2", port))
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from crumble_netd.header import ethernet, ipv4, tcp, virtio_net
from framework.net_client import PLAIN, RX, TX
from framework.ready import readable
from framework.vhost_user_master import Master

_SIZE = 256
# In the namespace: makes the TAP, gives it away, then sockets and settings for the asking.
_INSIDE = r"""
import fcntl, json, os, socket, struct, subprocess, sys
control = socket.socket(fileno=int(sys.argv[1]))
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"eth0", 0x1002))  # TUNSETIFF: IFF_TAP | IFF_NO_PI
def run(*words): subprocess.run(["ip", *words], check=True)
def tune(settings):
    for name, value in settings.items():
        if name == "mtu":
            run("link", "set", "eth0", "mtu", value)
            continue
        with open("/proc/sys/net/" + name, "w") as file:
            file.write(value)
tune({"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1"})
run("link", "set", "lo", "up")
run("addr", "add", "10.0.2.15/24", "dev", "eth0")
run("link", "set", "eth0", "up")
run("route", "add", "default", "via", "10.0.2.1")
socket.send_fds(control, [b"tap"], [tap])
while message := control.recv(4096):
    if message == b"socket":
        with socket.socket() as sock:
            socket.send_fds(control, [b"socket"], [sock.fileno()])
    else:
        tune(json.loads(message))
        control.send(b"done")
"""


def missing() -> str:
    """Why there can be no namespace with a TAP here; "" when there can."""
    for program in ("unshare", "ip"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun is not there"
    test = ["ip", "tuntap", "add", "mode", "tap", "name", "eth0"]
    done = subprocess.run([*_unshare(), *test], capture_output=True, text=True, check=False)
    return f"no namespace with a TAP: {done.stderr.strip()}" if done.returncode else ""


def _unshare() -> list[str]:
    return ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-Urn"]


class LinuxPeer:
    """The namespace. tap: frames of its interface."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*_unshare(), sys.executable, "-c", _INSIDE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        self._control.settimeout(30)
        self.tap = self._fd()
        os.set_blocking(self.tap, False)

    def _fd(self) -> int:
        _, fds, _, _ = socket.recv_fds(self._control, 100, 1)
        if not fds:
            raise OSError("the namespace is gone")
        return fds[0]

    def socket(self) -> socket.socket:
        """A TCP socket of the namespace."""
        self._control.send(b"socket")
        return socket.socket(fileno=self._fd())

    def tune(self, **settings: int) -> None:
        """mtu, or tcp_… below net.ipv4."""
        named = {("" if name == "mtu" else "ipv4/") + name: str(v) for name, v in settings.items()}
        self._control.send(json.dumps(named).encode())
        assert self._control.recv(100) == b"done"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        os.close(self.tap)
        self._process.wait(20)


@dataclass(frozen=True)
class Trouble:
    """Of each TCP frame, either way. Probabilities: loss, reorder, duplicate. delay: seconds."""

    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0

    def arrivals(self, chance: random.Random) -> list[float]:
        """After how many seconds a frame arrives: once, twice, or never."""
        found = []
        for _ in range(2 if chance.random() < self.duplicate else 1):
            late = chance.uniform(0.001, 0.01) if chance.random() < self.reorder else 0.0
            if chance.random() >= self.loss:
                found.append(self.delay + late)
        return found


class Bridge:
    """Carries frames in a thread of its own. seen: how many had a flag or another mark, by direction, of connections
    that began since `forget`: what another test left may still say goodbye.
    """

    def __init__(self, peer: LinuxPeer, netd: socket.socket, seed: int) -> None:
        self.trouble = Trouble()
        self.seen: Counter[str] = Counter()
        self._begun: set[frozenset[int]] = set()
        self._tap = peer.tap
        self._chance = {way: random.Random(f"{seed} {way}") for way in ("guest", "netd")}
        self._master = Master(netd)
        self._master.attach(queues=2, features=PLAIN, size=_SIZE)
        self._rx, self._tx = self._master.queues[RX], self._master.queues[TX]
        for _ in range(_SIZE):
            self._rx.submit([], [1600], kick=False)
        self._rx.kick()
        self._late: list[tuple[float, int, str, bytes]] = []
        self._order = itertools.count()
        self._error: BaseException | None = None
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while self._round():
                pass
        except BaseException as error:
            self._error = error

    def _round(self) -> bool:
        self._tx.driver.collect()
        while (done := self._rx.poll()) is not None:
            self._rx.submit([], [1600])
            self._frame("netd", done[2][virtio_net.SIZE :])
        try:
            while self._tx.driver.waiting < _SIZE:
                self._frame("guest", os.read(self._tap, 2000))
        except BlockingIOError:
            pass
        now = time.monotonic()
        while self._late and self._late[0][0] <= now:
            _, _, way, frame = heapq.heappop(self._late)
            self._carry(way, frame)
        self._rx.driver.interrupts(wanted=True)
        if self._rx.driver.more:
            return True
        wait = self._late[0][0] - now if self._late else 1.0
        ready = readable(self._stop, self._tap, self._rx.call_fd, timeout=max(wait, 0.0))
        if self._rx.call_fd in ready:
            os.eventfd_read(self._rx.call_fd)
        return self._stop not in ready

    def _frame(self, way: str, frame: bytes) -> None:
        segment = _segment(frame)
        if segment is None:
            self._carry(way, frame)
            return
        self._count(way, segment)
        for after in self.trouble.arrivals(self._chance[way]):
            if after:
                at = time.monotonic() + after
                heapq.heappush(self._late, (at, next(self._order), way, frame))
            else:
                self._carry(way, frame)

    def forget(self) -> None:
        """Begins to count anew."""
        self._begun = set()
        self.seen.clear()

    def _count(self, way: str, segment: tcp.Segment) -> None:
        ports = frozenset((segment.source, segment.destination))
        if segment.flags & tcp.SYN:
            self._begun.add(ports)
        elif ports not in self._begun:
            return
        marks = {
            "fin": segment.flags & tcp.FIN,
            "rst": segment.flags & tcp.RST,
            "closed": not segment.window and not segment.flags & tcp.RST,
            "sack": segment.options.sack,
            "stamped": segment.options.timestamps and not segment.flags & tcp.SYN,
            "data": len(segment.payload),
            "segment": True,
        }
        self.seen.update(f"{way} {name}" for name, there in marks.items() if there)

    def _carry(self, way: str, frame: bytes) -> None:
        if way == "netd":
            os.write(self._tap, frame)
        elif self._tx.driver.waiting < _SIZE:  # else lost, as by any full queue
            self._tx.submit([bytes(virtio_net.SIZE) + frame], [])

    def wait(self, mark: str, count: int = 1, timeout: float = 30.0) -> None:
        """Until so many frames with `mark` have come."""
        end = time.monotonic() + timeout
        while self.seen[mark] < count:
            assert time.monotonic() < end, f"no {mark}: {self.seen}"
            time.sleep(0.005)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        self._master.close()
        if self._error is not None:
            raise self._error


def _segment(frame: bytes) -> tcp.Segment | None:
    """Of a frame; None when it has none."""
    if int.from_bytes(frame[12:14], "big") != ethernet.IPV4:
        return None
    head = ipv4.parse(memoryview(frame)[14:])
    if head.protocol != tcp.PROTOCOL:
        return None
    return tcp.parse(memoryview(frame)[14 + head.size : 14 + head.length], 0, trusted=True)
