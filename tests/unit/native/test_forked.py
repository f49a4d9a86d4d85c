"""Pages that hold again what they held when a process was forked are that one's again, and no others."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_native import forked

# Prints what its parts say, one line each; they stop at the first that fails.
_FORKS = """
import errno, gc, os, random, sys
from crumble_native import forked

made = [[str(n), {n: float(n)}] for n in range(20_000)]
late = bytearray(200_000)  # not in the heap, either: too large
expected = repr(made)
assert forked.give_back() == 0, "nothing was kept"
kept = forked.keep()
assert kept > 1 << 20, kept
assert repr(made) == expected

def copied():
    # KiB that are this process's own, of what was kept
    total, ours = 0, False
    for line in open("/proc/self/smaps"):
        words = line.split()
        if "-" in words[0]:
            ours = "crumble-forked" in line and words[1] == "rw-p"
        elif ours and words[0] == "Anonymous:":
            total += int(words[1])
    return total

def child():
    refer = [item for pair in made for item in pair]  # counts of references rise in all of it
    full = copied()
    del refer  # and fall
    changed = random.Random(1).sample(range(len(made)), 20)
    for n in changed:
        made[n][0] = f"changed {n}"
    late[100_000] = 1
    made.append("more")
    pages = forked.give_back()
    less = copied()
    assert pages > 100 and less < full / 2, (pages, full, less)
    now = [["changed %d" % n if n in changed else str(n), {n: float(n)}] for n in range(20_000)]
    assert made == [*now, "more"]
    assert late[100_000] == 1 and sum(late) == 1
    forked.give_back()
    assert made == [*now, "more"]
    gc.collect()

def seals():
    import mmap
    start = next(line.split()[0] for line in open("/proc/self/maps") if "crumble-forked" in line)
    try:
        fd = os.open("/proc/self/map_files/" + start, os.O_RDWR)
    except PermissionError:
        return  # who is not root has no way to it
    for write in (lambda: os.pwrite(fd, b"x", 0), lambda: mmap.mmap(fd, 4096), lambda: os.ftruncate(fd, 0)):
        try:
            write()
        except PermissionError:
            continue
        raise AssertionError("what all read was written")

for part in (child, seals, child):
    pid = os.fork()
    if pid == 0:
        try:
            part()
        except BaseException as error:
            print(repr(error))
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, part
    assert repr(made) == expected
print("good")
"""


@pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""),
    reason="a sanitizer keeps terabytes of its own, so nothing is kept",
)
def test_what_is_the_same_again_is_given_back_and_nothing_else() -> None:
    done = subprocess.run([sys.executable, "-c", _FORKS], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("good\n", "")


def test_where_an_allocator_has_its_memory() -> None:
    maps = """\
5628dc3f6000-5628dc6fd000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000100000 rw-p 00000000 00:00 0
7f0000100000-7f0000200000 r--p 00000000 00:00 0
7f0000200000-7f0000300000 rw-p 00001000 fe:00 12                         /usr/lib/a library.so
7f0000300000-7f0000400000 rw-p 00000000 00:00 0
7f0000400000-7f0000500000 rw-s 00000000 00:05 7                          /dev/zero (deleted)
7ffdd4341000-7ffdd4362000 rw-p 00000000 00:00 0                          [stack]
"""
    first, second = (0x7F0000000000, 0x7F0000100000), (0x7F0000300000, 0x7F0000400000)
    assert forked.anonymous(maps, 0) == [first, second]
    assert forked.anonymous(maps, 0x7F00003FFFFF) == [first]


_spans = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda at: (at[0], at[0] + at[1])),
    max_size=8,
)


@given(_spans, _spans)
def test_what_is_left_of_spans(spans: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    def points(of: list[tuple[int, int]]) -> list[int]:
        return sorted(at for start, end in of for at in range(start, end))

    taken = set(points(others))
    left = forked.without(spans, others)
    assert points(left) == [at for at in points(spans) if at not in taken]
    assert all(start < end for start, end in left) or not others
