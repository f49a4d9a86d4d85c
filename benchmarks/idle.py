"""What guests cost while they do nothing: CPU time of every process there is for them.

    python -m benchmarks.idle [--vms 10] [--seconds 20] [--rounds 1] [--image deb:trixie]

VMs with a network, a shell that waits at a terminal in each. Rows, in percent of one core:

  prompt      one VM: its services, the supervisor, the client (goal: below 1)
  many        all of that with `--vms` of them (goal for ten: below 2)
  many vmm    of it, the processes that run the guests
  many other  of it, all others

There is no peer: the rows are absolutes of this host, and a busy one adds what waking up costs there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time

import crumble
from benchmarks._common import Comparison, Sample, process_cpu_seconds
from benchmarks.boot import children_of
from crumble.sdk.process import PIPE

# What a guest goes on doing behind its boot: RCU, timers, our caches that are given back.
_SETTLE = 8.0
_TERMINAL = (24, 80)


def shares(vms: list[crumble.VM], seconds: float) -> tuple[float, float]:
    """Percent of a core: of the processes that run guests, and of all others of ours."""
    running = {
        service.pid for vm in vms for service in vm.info.services if service.name.startswith("vmm")
    }
    others = {os.getpid(), *children_of(os.getpid())} - running
    time.sleep(_SETTLE)
    before = spent(running), spent(others)
    time.sleep(seconds)
    after = spent(running), spent(others)
    guests, rest = ((now - then) / seconds * 100 for then, now in zip(before, after, strict=True))
    return guests, rest


def spent(pids: set[int]) -> float:
    """CPU seconds of processes together."""
    return sum(map(process_cpu_seconds, pids))


def idle(image: str, count: int, seconds: float) -> tuple[float, float]:
    """`shares` of VMs with a shell each."""
    with contextlib.ExitStack() as stack:
        vms = [stack.enter_context(crumble.VM(image)) for _ in range(count)]
        shells = [vm.popen(["sh"], stdin=PIPE, stdout=PIPE, tty=_TERMINAL) for vm in vms]
        found = shares(vms, seconds)
        assert all(shell.poll() is None for shell in shells), "a shell did not wait"
        return found


def sample(image: str, count: int, seconds: float) -> Sample:
    """One round."""
    one, many = idle(image, 1, seconds), idle(image, count, seconds)
    return {"prompt": sum(one), "many": sum(many), "many vmm": many[0], "many other": many[1]}


def main() -> None:
    """Measures, prints the table, writes benchmarks/results/idle.json."""
    parser = argparse.ArgumentParser(prog="benchmarks.idle", description=__doc__.splitlines()[0])
    parser.add_argument("--vms", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--image", default="deb:trixie")
    options = parser.parse_args()
    comparison = Comparison("idle", "% of a core", vars(options))
    comparison.measure(
        {"soft": lambda: sample(options.image, options.vms, options.seconds)}, options.rounds
    )
    print(comparison.table())
    print(f"written: {comparison.save()}")


if __name__ == "__main__":
    main()
