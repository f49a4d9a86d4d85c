"""virtio over PCI, with a stock kernel: found, driven, captured and gone on from."""

from collections.abc import Iterator

import pytest

from framework.snapshots import SnapshotVm, alone, capture

pytestmark = [pytest.mark.guest, pytest.mark.slow]

ENTROPY = "dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c"
INTERRUPTS = "cat /proc/interrupts"


@pytest.fixture(scope="module")
def vm() -> Iterator[SnapshotVm]:
    with alone(transport="pci") as made:
        yield made


def test_the_kernel_finds_bridge_and_devices(vm: SnapshotVm) -> None:
    found = vm.shell("cat /sys/bus/pci/devices/*/device /sys/bus/pci/devices/*/class").split()
    assert found[:3] == ["0x0008", "0x1043", "0x1044"]
    assert found[3:] == ["0x060000", "0x078000", "0xff0000"]
    drivers = vm.shell("readlink /sys/bus/pci/devices/0000:00:01.0/driver")
    assert drivers.strip().endswith("/virtio-pci")


def test_it_goes_on_after_a_capture(vm: SnapshotVm) -> None:
    """Rings, BARs and the line's interrupt are taken over."""
    snapshot = capture(vm)
    try:
        with snapshot.restore(hostname="clone") as clone:
            for each in (vm, clone):
                assert each.shell(ENTROPY).strip() == "16"
            assert "0000:00:01.0" in clone.shell("ls /sys/bus/pci/devices")
            assert clone.shell("hostname") == "clone\n"
            before = [line for line in clone.shell(INTERRUPTS).splitlines() if "virtio" in line]
            assert clone.shell(ENTROPY).strip() == "16"
            assert before != [x for x in clone.shell(INTERRUPTS).splitlines() if "virtio" in x]
    finally:
        snapshot.close()
