"""A stock kernel on an emulated riscv64 host's KVM."""

import pytest

from framework.kvm_rig import boot_exec_snapshot_restore


@pytest.mark.timeout(900)
def test_boot_exec_snapshot_restore() -> None:
    boot_exec_snapshot_restore("riscv64")
