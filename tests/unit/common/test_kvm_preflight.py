"""Why KVM cannot be used: each reason by its code, with what to do."""

import errno
from pathlib import Path

import pytest

from crumble_common.kvm import preflight
from crumble_native import kvm


@pytest.mark.parametrize(
    ("stage", "error", "code"),
    [
        (kvm.STAGE_OPEN, errno.ENODEV, "kvm.no_virtualization"),
        (kvm.STAGE_OPEN, errno.EACCES, "kvm.no_permission"),
        (kvm.STAGE_OPEN, errno.EIO, "kvm.device"),
        (kvm.STAGE_VERSION, errno.ENOTSUP, "kvm.too_old"),
        (kvm.STAGE_CAPABILITY, errno.ENOTSUP, "kvm.too_old"),
        (kvm.STAGE_VM, errno.EBUSY, "kvm.no_vm"),
        (kvm.STAGE_IRQCHIP, errno.ENOMEM, "kvm.no_vm"),
    ],
)
def test_reasons(stage: int, error: int, code: str) -> None:
    refused = preflight.refused(kvm.KvmError(error, stage, 136))
    assert refused.code == code
    assert refused.message.endswith(".") and "soft" in refused.hint


@pytest.mark.parametrize(
    ("flags", "code"),
    [("fpu svm sse", "kvm.no_device"), ("vmx", "kvm.no_device"), ("fpu", "kvm.no_virtualization")],
)
def test_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, code: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(preflight, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(preflight, "_is_x86", lambda: True)
    error = preflight.unopened(FileNotFoundError(errno.ENOENT, ""))
    assert error.code == code


def test_the_group_is_named(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(0o660)
    group = device.group()
    error = preflight.unopened(PermissionError(errno.EACCES, ""), device)
    assert f"group {group}" in error.message and f"usermod -aG {group}" in error.hint
    device.chmod(0o600)
    error = preflight.unopened(PermissionError(errno.EACCES, ""), device)
    assert "group" not in error.message and "chmod" in error.hint
