"""What benchmarks share: interleaved rounds, medians with their spread, the host's description, JSON.

A figure means something only beside a peer's from the same run; so a benchmark measures all sides in
every round (A B A B) and reports medians, spread and ratios. Times are CPU seconds unless a row says so.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

CRUMBLE = str(Path(sys.executable).with_name("crumble"))
RESULTS = Path(__file__).resolve().parent / "results"
Sample = Mapping[str, float]  # row name → value, of one side in one round


@contextmanager
def supervisor(environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """`crumble up` meanwhile."""
    subprocess.run([CRUMBLE, "up", "--detach"], check=True, env=environment)
    try:
        yield
    finally:
        subprocess.run([CRUMBLE, "down", "-t", "0"], check=True)


def process_cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, exact to nanoseconds. OSError when it has gone."""
    return time.clock_gettime(~pid << 3 | 2)  # Linux: clock_getcpuclockid(3)


@dataclass(frozen=True)
class Summary:
    """One row of one side over all rounds."""

    median: float
    low: float
    high: float
    values: list[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        return cls(statistics.median(values), min(values), max(values), list(values))


@dataclass
class Comparison:
    """Samples of several sides, the first of them ours."""

    name: str
    unit: str
    parameters: dict[str, object] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def measure(self, sides: Mapping[str, Callable[[], Sample]], rounds: int) -> None:
        """Runs every side once a round."""
        for number in range(rounds):
            for side, run in sides.items():
                print(f"{self.name}: round {number + 1} of {rounds}, {side}", file=sys.stderr)
                self.samples.setdefault(side, []).append(run())

    def rows(self) -> dict[str, dict[str, Summary]]:
        """Row name → side → summary; only rows that a side has in every round."""
        found: dict[str, dict[str, Summary]] = {}
        for side, samples in self.samples.items():
            for row in samples[0]:
                if all(row in sample for sample in samples):
                    summary = Summary.of([sample[row] for sample in samples])
                    found.setdefault(row, {})[side] = summary
        return found

    def table(self) -> str:
        """For people: a line a row, `median [low high]` a side, and ours against each other side."""
        sides = list(self.samples)
        lines = [f"{self.name} ({self.unit}): median [low high]"]
        for row, summaries in self.rows().items():
            cells = [
                f"{side} {s.median:.4g} [{s.low:.4g} {s.high:.4g}]"
                for side, s in summaries.items()
            ]  # fmt: skip
            cells += [f"×{ratio:.2f} of {side}" for side, ratio in ratios(sides, summaries).items()]
            lines.append(f"  {row:<12} " + "  ".join(cells))
        return "\n".join(lines)

    def save(self) -> Path:
        """Writes results/NAME.json and says where."""
        sides = list(self.samples)
        rows = {
            row: {
                "sides": {side: vars(summary) for side, summary in summaries.items()},
                "ratios": ratios(sides, summaries),
            }
            for row, summaries in self.rows().items()
        }
        document = {
            "benchmark": self.name, "unit": self.unit, "time": int(time.time()),
            "host": host(), "parameters": self.parameters, "rows": rows,
        }  # fmt: skip
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        path.write_text(json.dumps(document, indent=1) + "\n")
        return path


def guest_kernel() -> Path:
    """The riscv64 Linux Image that guests boot: $CRUMBLE_KERNEL, or the one that ocid fetches."""
    if given := os.environ.get("CRUMBLE_KERNEL"):
        return Path(given)
    command = [sys.executable, "-m", "crumble_ocid", "kernel", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Path(json.loads(done.stdout)["image"])


def ratios(sides: Sequence[str], summaries: Mapping[str, Summary]) -> dict[str, float]:
    """Our median over each peer's."""
    ours = summaries.get(sides[0])
    if ours is None:
        return {}
    peers = [side for side in sides[1:] if side in summaries and summaries[side].median > 0]
    return {side: ours.median / summaries[side].median for side in peers}


def host() -> dict[str, object]:
    """What the figures were measured on."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        info = ""
    models = [line.split(":", 1)[1].strip() for line in info.splitlines() if "model name" in line]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "machine": platform.machine(), "system": f"{platform.system()} {platform.release()}",
        "cpu": models[0] if models else "unknown", "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0], "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }  # fmt: skip
