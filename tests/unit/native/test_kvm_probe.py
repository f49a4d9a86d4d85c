"""The probe of /dev/kvm, on whatever this host has."""

import errno
import gc
import os
import time
from pathlib import Path

from crumble_native import kvm_probe


def test_the_report_fits_the_host() -> None:
    report = kvm_probe.probe()
    if not Path("/dev/kvm").exists():
        assert (report.outcome, report.error) == (kvm_probe.ABSENT, errno.ENOENT)
    elif not os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert (report.outcome, report.error) == (kvm_probe.ABSENT, errno.EACCES)
    elif report.outcome == kvm_probe.TIMED:
        assert report.error == 0
        assert report.instructions_per_second > 10_000
    else:
        assert report.outcome in (kvm_probe.UNUSABLE, kvm_probe.UNTIMED)


def test_a_probe_leaves_nothing_behind() -> None:
    gc.collect()  # what earlier tests left
    fds = len(list(Path("/proc/self/fd").iterdir()))
    kvm_probe.probe()
    assert len(list(Path("/proc/self/fd").iterdir())) == fds
    try:
        left = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        left = (0, 0)
    assert left == (0, 0)


def test_a_probe_that_takes_too_long_is_given_up() -> None:
    start = time.monotonic()
    report = kvm_probe.probe(timeout_ms=0)
    assert time.monotonic() - start < 5
    assert (report.outcome, report.error) == (kvm_probe.UNUSABLE, errno.ETIMEDOUT) or Path(
        "/dev/kvm"
    ).exists() is False
