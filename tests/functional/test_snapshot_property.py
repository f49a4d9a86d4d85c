"""Random workloads end in the same guest state, whether they were captured on their way or not.

A workload is a shell script: files and links, children and pipes, signals and timers, open files that have no
name. Its end does not depend on how long anything takes, so it is known from a run that nobody disturbed. It
is captured at a random moment; it and who goes on from there must both come to that end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework.real_crumble import IMAGE, RealWorld, real_world

pytestmark = [pytest.mark.guest, pytest.mark.slow]

FILES = st.sampled_from(["f0", "f1", "d/f2", "d/f3", "e"])
COUNTS = st.integers(1, 3000)
PAUSES = st.sampled_from(["0", "0.01", "0.03", "0.08"])
TEMPLATES = [
    "seq {n} > {a}",
    "seq {n} >> {a}",
    "cp {a} {b}",
    "mv -f {a} {b}",
    "rm -f {a}",
    "ln -f {a} {b}",
    "ln -sf {a} {b}",
    "truncate -s {n} {a}",
    "chmod 6{n3} {a}",
    "mv d g; mkdir d; mv g/* d; rmdir g",
    "rm -rf d; mkdir d; touch d/.x",
    "dd if=/dev/zero of={a} bs=1 seek={n} count=1 conv=notrunc 2>&1 | tail -c0",
    # Processes that go on while others do.
    "(for i in $(seq {k}); do echo $i >> c.{id}; sleep {p}; done; echo end >> c.{id}) &",
    "(sleep {p}; exit {k}) & wait $!; echo $? > {a}",
    "seq {n} | (sleep {p}; sort -rn) | md5sum > {a}",
    "mkfifo q.{id}; (sleep {p}; seq {n} > q.{id}) & cat q.{id} > {a}; rm q.{id}",
    "(flock 9; sleep {p}; echo {id} >> locked.{id}) 9> l.{id} & flock l.{id} true; wait $!",
    # Signals and timers.
    "sleep 1000 & kill -TERM $!; wait $!; echo $? >> {a}",
    "timeout 0.1 sleep 1000; echo $? >> {a}",
    "sh -c 'trap \"echo got; exit {k}\" USR1; (sleep {p}; kill -USR1 $$) & while :; do :; done' >> {a}; echo $? >> {a}",
    'perl -e \'select(undef, undef, undef, {p}); print time - $^T < 30 ? "soon" : "late"\' > {a}',
    # Memory and open files that have no name.
    "perl -e '$x = join(\",\", 1 .. {n}) x 9; select(undef, undef, undef, {p}); print length $x, substr($x, -9)' > {a}",
    "exec 3<> o.{id}; rm o.{id}; seq {n} >&3; sleep {p}; echo more >&3; md5sum < /proc/self/fd/3 > {a}",
]
STEPS = st.builds(
    lambda text, a, b, n, k, p: (text, {"a": a, "b": b, "n": n, "n3": n % 8 * 11, "k": k, "p": p}),
    st.sampled_from(TEMPLATES), FILES, FILES, COUNTS, st.integers(1, 9), PAUSES,
)  # fmt: skip
FRAME = """mkdir -p /w/d; cd /w; exec 2> /dev/null
{steps}
wait; cd /; {{ find /w | sort | while read f; do stat -c '%n %F %h %s %a %N' "$f"; done; cat /w/c.* /w/locked.*
find /w -type f | sort | xargs -r md5sum; }} > /state 2> /dev/null; mv /state /end; sleep 100000"""
AWAIT = "until [ -e /end ]; do sleep 0.02; done; cat /end"


def script(steps: list[tuple[str, dict[str, object]]]) -> str:
    lines = (text.format(id=number, **values) for number, (text, values) in enumerate(steps))
    return FRAME.format(steps="\n".join(lines))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealWorld]:
    with real_world(tmp_path_factory.mktemp("property") / "w") as made:
        made.up()
        made.run("run", IMAGE, "true")  # whatever follows goes on from its boot
        yield made
        made.run("down", "-t", "0")


def begin(world: RealWorld, name: str, *words: str) -> None:
    done = world.run("run", "-d", "--name", name, *words)
    assert done.returncode == 0, done.stderr


def end(world: RealWorld, name: str) -> str:
    done = world.run("exec", name, "sh", "-c", AWAIT)
    assert done.returncode == 0, done.stderr
    world.run("stop", "-t", "0", name)
    return done.stdout


def check(
    world: RealWorld, steps: list[tuple[str, dict[str, object]]], delays: list[float]
) -> None:
    """Captured once for each delay, each one over the one before; who goes on from the first is captured, too."""
    text = script(steps)
    print(text)  # pytest shows it when it fails, as hypothesis does its seed
    begin(world, "plain", IMAGE, "sh", "-c", text)
    begin(world, "taken", IMAGE, "sh", "-c", text)
    names = []
    for number, delay in enumerate(delays):
        time.sleep(delay)  # at whatever moment
        names.append(f"moment-{number}")
        assert world.run("snapshot", "create", "taken", names[-1]).returncode == 0
    wanted = end(world, "plain")
    assert "/w" in wanted
    assert end(world, "taken") == wanted
    for name in names:
        begin(world, "again", "--from", name, "sleep", "100000")
        if name == names[0]:
            assert world.run("snapshot", "create", "again", "second").returncode == 0
            names.append("second")
        assert end(world, "again") == wanted, name
    assert world.run("snapshot", "rm", *names).returncode == 0


DELAYS = st.lists(st.floats(0, 0.3), min_size=1, max_size=2)
COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
}


@settings(max_examples=2, **COMMON)
@given(st.lists(STEPS, min_size=8, max_size=25), DELAYS)
def test_a_workload_ends_as_if_nobody_had_captured_it(
    world: RealWorld, steps: list[tuple[str, dict[str, object]]], delays: list[float]
) -> None:
    check(world, steps, delays)


@pytest.mark.long
@pytest.mark.timeout(3600)  # all examples are one test
@settings(max_examples=int(os.environ.get("CRUMBLE_EXAMPLES", "40")), **COMMON)
@given(st.lists(STEPS, min_size=8, max_size=60), DELAYS)
def test_many_workloads(
    world: RealWorld, steps: list[tuple[str, dict[str, object]]], delays: list[float]
) -> None:
    check(world, steps, delays)
