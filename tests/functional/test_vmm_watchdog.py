"""The watchdog with a stock kernel's driver: found, fed, captured while it counts, and fired."""

import pytest

from framework.assets import kernel
from framework.snapshots import SnapshotVm, alone, capture

pytestmark = [pytest.mark.guest, pytest.mark.slow]

# Feeds it no more, until it is told to.
HUNGRY = "/busybox watchdog -F -T 2 -t 3600 /dev/watchdog"


def starve(vm: SnapshotVm) -> None:
    vm.shell(
        f"{HUNGRY} >/dev/null 2>&1 & until grep -q ^active /sys/class/watchdog/watchdog0/state; do :; done"
    )


def test_a_hungry_watchdog_ends_the_vm_and_its_clone() -> None:
    files = kernel()
    modules = [str(path) for path in (*files.modules, *files.watchdog)]
    with alone(modules=modules, watchdog=True) as vm:
        assert "inactive" in vm.shell("cat /sys/class/watchdog/watchdog0/state")
        assert "sunxi" in vm.shell("cat /sys/class/watchdog/watchdog0/identity")
        # Fed a while, and stopped by the magic letter: nothing happens.
        vm.shell("/busybox watchdog -F -T 1 -t 250ms /dev/watchdog & sleep 2.5; kill $!; wait")
        assert "inactive" in vm.shell("cat /sys/class/watchdog/watchdog0/state")
        starve(vm)
        snapshot = capture(vm)
        try:
            end = vm.wait_end()
            assert (end.kind, end.code) == ("crash", "guest.watchdog"), end
            assert end.detail == "The guest's watchdog ended it: nobody fed it for 2 s."
            with snapshot.vm() as clone:
                assert clone.wait_end().code == "guest.watchdog"
        finally:
            snapshot.close()
