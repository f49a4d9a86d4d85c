"""What a request costs on the way through a virtqueue: pop and push alone, then echo over vhost-user.

The peer of the echo is the same server without looking at rings before it sleeps (spin 0), in the same run,
A B A B. Driver and device are processes of their own.
"""

from __future__ import annotations

import itertools
import mmap
import os
import signal
import socket
import statistics
import time

from benchmarks._common import Comparison, Sample
from crumble_common.eventloop import EventLoop
from crumble_common.vhost_user import Backend
from crumble_common.virtqueue import Virtqueue
from crumble_native.memory import Memory
from framework.echo_backend import EchoDevice
from framework.vhost_user_master import Master
from framework.virtqueue_driver import VirtqueueDriver

ROUNDS = 5


def ring_costs(readable: int, writable: int) -> dict[str, float]:
    """Microseconds of pop and of push for chains of this many buffers, in Python."""
    memory = Memory()
    memory.add(0, mmap.mmap(-1, 16 << 20))
    driver = VirtqueueDriver(memory, size=256, at=0, arena=(1 << 20, 8 << 20))
    queue = Virtqueue(memory, 256, driver.desc, driver.avail, driver.used, event_idx=True)
    pops, pushes = [], []
    count = 256 // (readable + writable)
    for _ in range(200):
        for _ in range(count):
            driver.submit([b"x" * 40] * readable, [4096] * writable)
        start = time.perf_counter()
        chains = [chain for _ in range(count) if (chain := queue.pop())]
        middle = time.perf_counter()
        for chain in chains:
            queue.push(chain, 0)
        pops.append((middle - start) / count * 1e6)
        pushes.append((time.perf_counter() - middle) / count * 1e6)
        driver.collect()
    return {"pop_us": statistics.median(pops), "push_us": statistics.median(pushes)}


def serve(sock: socket.socket, spin_us: float, cpus: list[int]) -> None:
    """The child: echo until the front end is gone."""
    loop = EventLoop()
    device = EchoDevice(loop, 1, spin_us=spin_us)
    os.sched_setaffinity(0, cpus)  # after the spinner saw how many there are
    backend = Backend(sock, device)
    loop.add_fd(backend.fileno(), "vhost-user", lambda: backend.handle_readable() or loop.stop())
    loop.run()


def echo(
    spin_us: float, depth: int, busy: bool, pinned: bool, seconds: float = 0.4
) -> dict[str, float]:
    """Operations a second at a queue depth, with the server's CPU, kicks and interrupts an operation.

    busy: the driver looks at the ring instead of sleeping, as a guest with other things to do.
    pinned: driver and device have a CPU each.
    """
    cpus = sorted(os.sched_getaffinity(0))
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        serve(theirs, spin_us, cpus[-1:] if pinned else cpus)
        os._exit(0)
    theirs.close()
    if pinned:
        os.sched_setaffinity(0, cpus[:1])
    with Master(ours) as master:
        master.attach(queues=1)
        queue = master.queues[0]
        queue.spin_us = 1000 if busy else 0
        for _ in range(depth):
            queue.submit([b"x" * 40], [64], kick=False)
        queue.kick()
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            queue.wait()
            done += 1
            queue.submit([b"x" * 40], [64])
        elapsed = time.perf_counter() - start
        kicks, calls = queue.kicks, queue.calls
    os.sched_setaffinity(0, cpus)
    _, status, usage = os.wait4(child, 0)
    assert status == 0, signal.strsignal(status & 127)
    cpu = usage.ru_utime + usage.ru_stime
    return {
        "ops": done / elapsed,
        "server_us": cpu / done * 1e6,
        "kicks": kicks / done,
        "calls": calls / done,
    }


def side(spin_us: float) -> Sample:
    """All cases once."""
    rows: dict[str, float] = {}
    for pinned, busy, depth in itertools.product((False, True), (False, True), (1, 16)):
        case = f"{'pinned ' if pinned else ''}{'busy' if busy else 'sleeping'} depth {depth}"
        for figure, value in echo(spin_us, depth, busy, pinned).items():
            rows[f"{case}: {figure}"] = value
    if spin_us:
        for readable, writable in ((1, 0), (1, 1), (2, 2)):
            for figure, value in ring_costs(readable, writable).items():
                rows[f"{readable} readable {writable} writable: {figure}"] = value
    return rows


def main() -> None:
    """Measures, prints, writes."""
    found = Comparison("rings", "as the row says; driver busy or sleeping, pinned or not")
    found.measure({"looking": lambda: side(50), "not looking": lambda: side(0)}, ROUNDS)
    print(found.table())
    found.save()


if __name__ == "__main__":
    main()
