"""Random workloads: run, capture, restore, run ends in the same guest state as run without it."""

from collections.abc import Iterator

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from crumble_common.messages.vm import ProcessStart
from framework.snapshots import Snapshot, SnapshotVm, alone, capture

pytestmark = [pytest.mark.guest, pytest.mark.slow]

NAMES = st.sampled_from(["a", "b", "c", "d/a", "d/b"])
SIZES = st.integers(0, 20_000)
# Each says something that later steps depend on; none depends on when it runs.
STEPS = st.one_of(
    st.builds("echo {} >> {}".format, st.integers(0, 9), NAMES),
    st.builds("seq {} > {}".format, SIZES, NAMES),
    st.builds("cp {0} {1}.x 2>&- && mv {1}.x {1}".format, NAMES, NAMES),
    st.builds("rm -f {}".format, NAMES),
    st.builds("sha256sum a b c d/a d/b 2>&- > {}".format, NAMES),
    st.builds("(usleep {}; seq {} > e$i) &".format, st.integers(0, 30_000), SIZES),
    st.just("wait"),
    st.builds("usleep {}".format, st.integers(0, 20_000)),
    st.builds("n=$((n * 31 + {})); echo $n >> n".format, st.integers(0, 999)),
    st.builds("seq {} | sort -r | sha256sum >> sums".format, SIZES),
    st.builds("exec 5>>{}; echo held >&5; exec 5>&-".format, NAMES),
)  # fmt: skip
_END = "wait; rm -f step; find . | sort > ../list; find . -type f | sort | xargs sha256sum > ../state; echo > ../done"


@pytest.fixture(scope="module")
def start() -> Iterator[Snapshot]:
    with alone() as vm:
        names = "usleep seq cp mv rm sha256sum sort xargs find sleep"
        vm.shell(f"mkdir -p /bin /w; for n in {names}; do /busybox ln -s /busybox /bin/$n; done")
        made = capture(vm)
    yield made
    made.close()


def script(steps: list[str]) -> str:
    """Tells in `step` how far it is."""
    lines = [
        f"i={number}; echo $i > step.x; mv step.x step; {step}" for number, step in enumerate(steps)
    ]
    return "\n".join(["mkdir -p /w/t/d; cd /w/t; n=1", *lines, _END])


def begin(vm: SnapshotVm, steps: list[str]) -> None:
    vm.ask(ProcessStart(["/busybox", "sh", "-c", script(steps)]))


def reach(vm: SnapshotVm, step: int) -> None:
    """The script is at a step, or beyond."""
    look = f"[ -e done ] || [ $(cat t/step 2>&- || echo 0) -ge {step} ]"
    vm.shell(f"cd /w; until {look}; do usleep 500; done")


def end(vm: SnapshotVm) -> str:
    """What there is in the end."""
    return vm.shell("cd /w; until [ -e done ]; do usleep 1000; done; cat list state t/n 2>&-; true")


@settings(max_examples=5, deadline=None, phases=[Phase.generate])  # a boot's worth of time each
@given(steps=st.lists(STEPS, min_size=4, max_size=14), at=st.integers(0, 13))
def test_a_capture_in_between_changes_nothing(start: Snapshot, steps: list[str], at: int) -> None:
    with start.restore() as vm:
        begin(vm, steps)
        expected = end(vm)
        assert expected.startswith(".\n")
    with start.restore() as vm:
        begin(vm, steps)
        reach(vm, at % len(steps))
        middle = capture(vm)
        assert end(vm) == expected  # the parent
    with middle.restore() as vm:
        assert end(vm) == expected
    middle.close()
