"""A real guest is captured while it runs, goes on, and others go on from the same moment."""

import os
import time
from collections.abc import Iterator

import pytest

from crumble_common.errors import UsageError
from crumble_common.messages.vm import (
    Captured,
    Freeze,
    Pause,
    ProcessOutput,
    ProcessStart,
    Resume,
    Thaw,
)
from framework.snapshots import Snapshot, SnapshotVm, alone, capture, freeze, thaw

pytestmark = [pytest.mark.guest, pytest.mark.slow]


@pytest.fixture(scope="module")
def vm() -> Iterator[SnapshotVm]:
    with alone() as made:
        yield made


@pytest.fixture(scope="module")
def snapshot(vm: SnapshotVm) -> Iterator[Snapshot]:
    """With a file that says so, and a process that counts."""
    vm.write("/note", b"before\n")
    vm.ask(
        ProcessStart(
            [
                "/busybox",
                "sh",
                "-c",
                "i=0; while :; do i=$((i+1)); echo $i > /c; /busybox mv /c /count; usleep 1000; done",
            ]
        )
    )
    vm.shell("until [ -e /count ]; do usleep 1000; done")
    made = capture(vm)
    vm.write("/note", b"after\n")
    yield made
    made.close()


def test_parent_and_clones_go_on_apart(vm: SnapshotVm, snapshot: Snapshot) -> None:
    with snapshot.restore(hostname="one") as one, snapshot.restore(hostname="two") as two:
        assert [each.shell("cat /note") for each in (vm, one, two)] == [
            "after\n",
            "before\n",
            "before\n",
        ]
        one.write("/note", b"mine\n")
        assert two.shell("cat /note; hostname") == "before\ntwo\n"
        assert one.shell("cat /note; hostname") == "mine\none\n"


def test_processes_go_on_without_a_listener(snapshot: Snapshot) -> None:
    with snapshot.restore() as clone:
        before = int(clone.shell("cat /count"))
        assert int(clone.shell("usleep 50000; cat /count")) > before
        assert "usleep 1000" in clone.shell("ps")


def test_two_clones_never_draw_the_same_bytes(snapshot: Snapshot) -> None:
    script = (
        "busybox=/busybox; $busybox od -An -tx1 -N32 /dev/urandom; cat /proc/sys/kernel/random/uuid"
    )
    drawn = []
    for _ in range(2):
        with snapshot.restore() as clone:
            drawn += clone.shell(script).split("\n")[:3]
    assert len(set(drawn)) == len(drawn)


def test_the_kernel_knows_that_it_is_a_clone(vm: SnapshotVm, snapshot: Snapshot) -> None:
    """It reseeds by itself, before the agent does."""
    told = "crng reseeded due to virtual machine fork"
    with snapshot.restore() as clone:
        assert told in clone.shell("dmesg")
    assert told not in vm.shell("dmesg")


def test_clocks(vm: SnapshotVm, snapshot: Snapshot) -> None:
    """The wall clock is the host's; the monotonic clock goes on from the capture."""
    with snapshot.restore() as clone:
        assert abs(int(clone.shell("date +%s")) - time.time()) < 3
        captured, now = (float(each.shell("cat /proc/uptime").split()[0]) for each in (clone, vm))
        assert captured <= now + 0.5


def test_a_clone_of_a_clone(snapshot: Snapshot) -> None:
    with snapshot.restore() as clone:
        clone.write("/note", b"second\n")
        second = capture(clone)
    with second.restore() as again:
        assert again.shell("cat /note") == "second\n"
        assert int(again.shell("cat /count")) > 0
    second.close()


def test_only_what_was_written_since_is_saved(vm: SnapshotVm, snapshot: Snapshot) -> None:
    with snapshot.restore() as clone:
        clone.write("/note", b"child\n")
        memory = os.memfd_create("child")
        os.ftruncate(memory, clone.config.memory)
        state = freeze(clone, memory, parent=True)
        done = thaw(clone)
    assert not done.error
    assert 0 < done.pages < snapshot.pages / 2
    merged = merge(snapshot.memory, memory, clone.config.memory)
    child = Snapshot(state, merged, clone.config, done.pages)
    with child.restore() as again:
        assert again.shell("cat /note") == "child\n"
    child.close()
    os.close(memory)


def merge(parent: int, child: int, size: int) -> int:
    merged = os.memfd_create("merged")
    os.ftruncate(merged, size)
    for source in (parent, child):
        at = 0
        while at < size:
            try:
                start = os.lseek(source, at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(source, start, os.SEEK_HOLE)
            os.pwrite(merged, os.pread(source, at - start, start), start)
    return merged


def test_output_of_before_is_dropped_and_its_process_never_blocks(vm: SnapshotVm) -> None:
    started = vm.ask(
        ProcessStart(
            ["/busybox", "sh", "-c", "while :; do echo 0123456789; echo x >> /lines; done"],
            credit=4096,
        )
    )
    vm.wait(ProcessOutput, lambda event: event.process == started.process)
    snapshot = capture(vm)
    with snapshot.restore() as clone:
        before = int(clone.shell("wc -c < /lines"))
        assert int(clone.shell("usleep 100000; wc -c < /lines")) > before
        assert not [
            e for e in clone.events if isinstance(e, ProcessOutput) and e.data.startswith(b"01")
        ]
        clone.shell("rm /lines")
    snapshot.close()


def test_a_disk_that_is_full(vm: SnapshotVm) -> None:
    """The capture fails with a sentence, the VM goes on, and the next capture is a new one."""
    full = os.open("/dev/full", os.O_RDWR)
    freeze(vm, full)
    assert thaw(vm) == Captured(
        "vm1", 0, "The VM's memory was not saved: there is no room on the disk."
    )
    os.close(full)
    assert vm.shell("echo on") == "on\n"
    with pytest.raises(UsageError) as caught:
        freeze(vm, 0, parent=True)
    assert caught.value.code == "snapshot.no_parent"
    snapshot = capture(vm)
    with snapshot.restore() as clone:
        assert clone.shell("echo on") == "on\n"
    snapshot.close()


def test_giving_up_between_freeze_and_thaw(vm: SnapshotVm) -> None:
    memory = os.memfd_create("unused")
    freeze(vm, memory)
    with pytest.raises(UsageError) as caught:
        freeze(vm, memory)
    assert caught.value.code == "vm.captured"
    vm.ask(Thaw(abort=True))
    assert vm.shell("echo on") == "on\n"
    assert os.fstat(memory).st_blocks == 0
    os.close(memory)
    with pytest.raises(UsageError) as caught:
        vm.ask(Thaw())
    assert caught.value.code == "vm.not_frozen"


def test_pause_and_resume(vm: SnapshotVm) -> None:
    """The guest's clock stands meanwhile, and the wall clock is right afterwards."""
    before = float(vm.shell("cat /proc/uptime").split()[0])
    vm.ask(Pause())
    time.sleep(1)
    with pytest.raises(UsageError) as caught:
        vm.ask(Pause())
    assert caught.value.code == "vm.paused"
    snapshot = capture(vm)  # of a VM that stands
    vm.ask(Resume())
    assert float(vm.shell("cat /proc/uptime").split()[0]) < before + 0.9
    assert abs(int(vm.shell("date +%s")) - time.time()) < 2
    with pytest.raises(UsageError) as caught:
        vm.ask(Resume())
    assert caught.value.code == "vm.not_paused"
    with snapshot.restore() as clone:
        assert clone.shell("echo on") == "on\n"
    snapshot.close()


def test_several_cpus() -> None:
    with alone(cpus=2) as vm:
        vm.ask(ProcessStart(["/busybox", "sh", "-c", "while :; do :; done"]))
        snapshot = capture(vm)
        assert vm.shell("nproc; echo on") == "2\non\n"
    for _ in range(2):
        with snapshot.restore() as clone:
            assert clone.shell("nproc; echo on") == "2\non\n"
            assert clone.shell("sha256sum /busybox") == clone.shell("sha256sum /busybox")
    snapshot.close()


def test_freeze_without_a_file_is_refused(vm: SnapshotVm) -> None:
    with pytest.raises(Exception, match="handed over"):
        vm.ask(Freeze("nowhere"))
    assert vm.shell("echo on") == "on\n"
