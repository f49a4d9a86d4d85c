"""What it costs to capture what a guest has written, and to go on from it: ms of wall time.

    python -m benchmarks.trees [--rounds 5]

In one process, without a guest. Rows: `N-capture` writes index and contents to --where; `N-restore` opens
them and makes a session; `N-first` is the first look-up and read in it; `N-again` captures the restored session,
which has used next to nothing. N: `boot` has 3,000 inodes known and 20 small files written, `many` 20,000 files
of 3 kB, `big` those and 256 MB in one file. The other side, `cp`, copies a directory with the same files.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks._common import Comparison, Sample
from crumble_fsd.assemble import new_session, new_tree, options_for
from crumble_fsd.upper import MemoryUpper
from framework.fsd_snapshots import Clone, capture
from framework.fuse_client import FuseClient, direct
from framework.layers import write_layer

T = TypeVar("T")
KNOWN, MANY, SMALL, BIG = 50, 20_000, 3_000, 256


class Guest:
    """A session whose guest writes more and more, and a directory with the same in it."""

    def __init__(self, work: Path) -> None:
        self.work, self.plain = work, work / "plain"
        self.plain.mkdir()
        directories = {f"d{n}": {f"f{m}": b"x" * 100 for m in range(KNOWN)} for n in range(60)}
        self.layers = [write_layer(work, "layer", directories)]
        self.upper = MemoryUpper(1 << 31)
        self.tree, nodes = new_tree(self.layers, self.upper)
        self.session = new_session(nodes, [self.tree], options_for(self.upper, shared=False))
        self.fuse = FuseClient(direct(self.session))
        self.fuse.init()
        for name, files in directories.items():
            directory = self.fuse.lookup(1, name.encode()).nodeid
            for file in files:
                self.fuse.lookup(directory, file.encode())

    def write(self, directory: str, names: int, size: int) -> None:
        """Files of random bytes, `size` each."""
        parent = self.fuse.mkdir(1, directory.encode()).nodeid
        (self.plain / directory).mkdir()
        for number in range(names):
            node = self.fuse.create(parent, b"%d" % number)[0].nodeid
            with (self.plain / directory / str(number)).open("wb") as file:
                for at in range(0, size, 1 << 20):
                    data = os.urandom(min(size - at, 1 << 20))
                    self.fuse.write(node, at, data)
                    file.write(data)

    def fsd(self, label: str) -> Sample:
        """Captures, restores, captures again."""
        sample: dict[str, float] = {}

        def timed(row: str, call: Callable[[], T]) -> T:
            gc.collect()
            begin = time.perf_counter()
            found = call()
            sample[f"{label}-{row}"] = (time.perf_counter() - begin) * 1000
            return found

        where = Path(tempfile.mkdtemp(dir=self.work))
        first = timed("capture", lambda: capture(where, "one", self.session, self.tree))
        clone = timed("restore", lambda: Clone(first, self.layers))
        restored = clone.restored
        timed("first", lambda: FuseClient(direct(restored.session)).read_path("few/7"))
        timed("again", lambda: capture(where, "two", restored.session, restored.tree))
        clone.close()
        shutil.rmtree(where)
        return sample

    def cp(self, label: str) -> Sample:
        """Copies the directory."""
        where = self.work / "copy"
        begin = time.perf_counter()
        subprocess.run(["cp", "-a", str(self.plain), str(where)], check=True)
        spent = (time.perf_counter() - begin) * 1000
        shutil.rmtree(where)
        return {f"{label}-capture": spent}


def measure(guest: Guest, rounds: int) -> Comparison:
    """All rows; the guest has more at each step."""
    whole = Comparison("trees", "ms wall", {"rounds": rounds})
    for label, write in (
        ("boot", ("few", 20, 1_000)),
        ("many", ("many", MANY, SMALL)),
        ("big", ("big", 1, BIG << 20)),
    ):
        guest.write(*write)
        part = Comparison(f"trees {label}", "ms wall")
        part.measure(
            {
                "fsd": partial(guest.fsd, label),
                "cp": partial(guest.cp, label),
            },
            rounds,
        )
        for side, samples in part.samples.items():
            kept = whole.samples.setdefault(side, [{} for _ in samples])
            whole.samples[side] = [{**a, **b} for a, b in zip(kept, samples, strict=True)]
    return whole


def main() -> None:
    """Measures, prints the table, writes benchmarks/results/trees.json."""
    parser = argparse.ArgumentParser(prog="benchmarks.trees", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: PTH112
    parser.add_argument(
        "--where", default=memory, help="a directory to write in, not to wait for disks"
    )
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="crumble-trees-", dir=options.where))
    try:
        comparison = measure(Guest(work), options.rounds)
    finally:
        shutil.rmtree(work)
    print(comparison.table())
    print(f"written: {comparison.save()}")


if __name__ == "__main__":
    main()
