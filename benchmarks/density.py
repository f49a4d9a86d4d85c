"""How many clones of a VM fit, and what each costs while it waits.

    python -m benchmarks.density [--clones 200] [--rounds 1] [--memory 256m] [--image deb:trixie]

`crumble fork -n N` of one VM; then every clone is asked to run `true`, all being alive. Memory is PSS, the
share of each page that is a process's own, of all processes there are for the clones. Rows:

  idle       MiB a clone, when it is ready and has done nothing for a while
  begun      MiB a clone, when it has just answered that it is ready
  used       MiB a clone, when each has run a command
  host       MiB a clone of the host's available memory, which shared things are not counted twice in
  fork       s until all are ready
  exec       ms for one clone's command, the median of all
  cpu        % of one processor for all idle clones together

A VM that booted is beside them: what it costs alone. Where KSM is on (/sys/kernel/mm/ksm/run, the administrator's), pages that
are the same are one: it gets the time to find them. `ksm` among the parameters says so.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from functools import partial
from pathlib import Path

import crumble
from benchmarks import _bundle
from benchmarks._common import Comparison, Sample, process_cpu_seconds, supervisor
from benchmarks.start import took
from crumble.sdk.session import session
from crumble_common.messages.client import VmInfo, VmInfos, VmList

_MIB = 1 << 20
_IDLE = 5.0  # s of idleness that are measured
_REST = 20.0  # until what is not needed has gone
_KSM = Path("/sys/kernel/mm/ksm")
_MERGED, _PATIENCE = 3, 180.0  # rounds of KSM; what they may take, s


def pss(pids: list[int]) -> float:
    """MiB of processes together, of those that are still there."""
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def available() -> float:
    """MiB the host has left."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1024


def pids(vms: list[VmInfo]) -> list[int]:
    """Of all their processes."""
    return [service.pid for vm in vms for service in vm.services]


def alive() -> list[VmInfo]:
    """Every VM there is."""
    found: VmInfos = session().call(VmList())
    return [vm for vm in found.vms if vm.state == "running"]


def idle_cpu(processes: list[int]) -> float:
    """Percent of a processor."""
    before = sum(map(process_cpu_seconds, processes))
    time.sleep(_IDLE)
    return (sum(map(process_cpu_seconds, processes)) - before) / _IDLE * 100


def merges() -> bool:
    """Whether the host makes pages that are the same one."""
    return (_KSM / "run").exists() and (_KSM / "run").read_text().strip() == "1"


def _name() -> str:
    """Of the results: with KSM they are others."""
    return "density-ksm" if merges() else "density"


def settle() -> None:
    """Lets everything come to rest."""
    time.sleep(_REST)
    if merges():
        first, end = int((_KSM / "full_scans").read_text()), time.monotonic() + _PATIENCE
        while int((_KSM / "full_scans").read_text()) < first + _MERGED and time.monotonic() < end:
            time.sleep(1)


def clones(image: str, memory: str, count: int) -> Sample:
    """Forks, measures, and ends them."""
    with crumble.VM(image, memory=memory) as parent:
        parent.run(["true"])
        free = available()
        made: list[crumble.VM] = []
        try:
            seconds = took(lambda: made.extend(parent.fork(count))) / 1000
            mine = [vm for vm in alive() if vm.name != parent.name]
            assert len(mine) == count, f"{len(mine)} of {count} are alive"
            sample = {"begun": pss(pids(mine)) / count}
            settle()
            mine = [vm for vm in alive() if vm.name != parent.name]
            sample |= {"idle": pss(pids(mine)) / count, "host": (free - available()) / count}
            sample["cpu"] = idle_cpu(pids(mine))
            answers = [took(partial(vm.run, ["true"], check=True)) for vm in made]
            mine = [vm for vm in alive() if vm.name != parent.name]
            sample["used"] = pss(pids(mine)) / count
            assert len(alive()) == count + 1, "some have died"
        finally:
            for vm in made:
                vm.stop(0)
        return {**sample, "fork": seconds, "exec": statistics.median(answers)}


def alone(image: str, memory: str) -> Sample:
    """One that booted."""
    with crumble.VM(image, memory=memory, boot_snapshot=False) as vm:
        settle()
        sample = {"idle": pss(pids([alive()[0]]))}
        sample["exec"] = took(lambda: vm.run(["true"]))
        return {**sample, "used": pss(pids([alive()[0]]))}


def main() -> None:
    """The benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clones", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--memory", default="256m")
    parser.add_argument("--image", default="deb:trixie")
    options = parser.parse_args()
    _bundle.compile_code()
    # No processes but those of the VMs that are looked at.
    with supervisor({**os.environ, "CRUMBLE_RESERVE": "0"}):
        comparison = Comparison(_name(), "see rows", {**vars(options), "ksm": merges()})
        comparison.measure(
            {
                "clone": lambda: clones(options.image, options.memory, options.clones),
                "booted": lambda: alone(options.image, options.memory),
            },
            options.rounds,
        )
        print(comparison.table())
        print(comparison.save())


if __name__ == "__main__":
    main()
