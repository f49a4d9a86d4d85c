"""`--timeline`: where the time of a run went, ours and the guest's."""

from __future__ import annotations

import sys
import time

from crumble.cli.link import Link
from crumble_common.messages.vm import Timeline

_WIDTH = 32


class Phases:
    """Phases of the command, each from the end of the one before; then those of the VM's boot."""

    def __init__(self) -> None:
        self._start = time.monotonic_ns()
        self._marks: list[tuple[str, int, int]] = []

    def mark(self, name: str) -> None:
        """A phase ends now."""
        begin = self._marks[-1][2] if self._marks else self._start
        self._marks.append((name, begin, time.monotonic_ns()))

    def show(self, link: Link, target: str) -> None:
        """Prints the timeline to stderr."""
        boot = link.call(Timeline(), to=target)
        rows = [(f"run: {name}", begin, end) for name, begin, end in self._marks]
        rows += [(f"vm: {item.name}", item.start, item.end) for item in boot.slices]
        rows.sort(key=lambda row: row[1])
        total = max(1, max(end for _, _, end in rows) - self._start)
        for name, begin, end in rows:
            print(_line(name, begin - self._start, end - self._start, total), file=sys.stderr)
        for name, count in sorted(boot.counters.items()):
            print(f"{name:34} {count:>12}", file=sys.stderr)


def _line(name: str, begin: int, end: int, total: int) -> str:
    first = max(0, min(_WIDTH - 1, begin * _WIDTH // total))
    last = max(first + 1, min(_WIDTH, -(-end * _WIDTH // total)))
    bar = " " * first + "█" * (last - first)
    return f"{name:34} {begin / 1e6:9.1f} ms {(end - begin) / 1e6:+10.1f} ms  {bar}".rstrip()
