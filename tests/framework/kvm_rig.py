"""The short form of `make test-kvm`: a stock kernel on a true /dev/kvm, on an emulated host.

Each architecture's is in a file of its own, so that they run side by side.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
# tools/kvm_rig.py: it lacks QEMU, a cross compiler, or packages.
CANNOT = 77
# On a machine with more to do than this for each CPU, the guest's and Crumble's own time limits pass.
BUSY = 4
CHECKS = ("detached", "exec", "snapshot", "restore")


def boot_exec_snapshot_restore(arch: str) -> None:
    """Fails when a check does; skips where the host cannot be had."""
    if platform.machine() != "x86_64":
        pytest.skip("the emulated hosts are built on x86_64")
    if os.getloadavg()[0] > BUSY * (os.cpu_count() or 1):
        pytest.skip("this machine is too busy to emulate another one in time")
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "kvm_rig.py", arch, "--short", "--limit", "600"],
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    if done.returncode == CANNOT:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    for name in CHECKS:
        assert f"RIG ok {name} (" in done.stdout
