"""What /dev/kvm is on this host: hardware virtualization, something slower, or nothing.

Permission is looked at each time. How fast a guest's kernel code runs is measured once a boot of the
host and kept in the runtime directory, since it takes a fifth of a second where it is slow.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

from crumble_common import paths
from crumble_common.errors import CrumbleError, HostError
from crumble_common.hypervisors import Probe
from crumble_common.kvm import preflight
from crumble_native import kvm_probe

# Hardware runs the test loop at a thousand million instructions a second, modules that emulate
# privileged code at a few million. A Linux kernel needs about 600 million to come up.
_MIN_SPEED = 50_000_000
# What a probe finds where Crumble has a back end and the CPU virtualizes.
_USABLE = {
    "amd64": kvm_probe.TIMED,
    "arm64": kvm_probe.UNTIMED,
    "riscv64": kvm_probe.UNTIMED,
}
_DEVICE = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def probe_kvm() -> Probe:
    """What `crumble doctor` says about KVM."""
    try:
        return usable_kvm()
    except HostError as error:
        return Probe("kvm", _DEVICE.exists(), False, str(error))


def usable_kvm() -> Probe:
    """The probe of a KVM that runs stock kernels; a HostError "kvm.*" that says what to do about any other."""
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise preflight.unopened(error, _DEVICE) from None
    return _judge(_measured())


def _judge(report: kvm_probe.Report) -> Probe:
    """The verdict on a measurement."""
    if report.outcome == kvm_probe.UNUSABLE:
        raise preflight.unusable(report.error)
    if report.outcome == kvm_probe.TIMED and report.instructions_per_second < _MIN_SPEED:
        raise preflight.emulated(report.instructions_per_second)
    architecture = _architecture()
    # Only on x86 are there modules that emulate: elsewhere a VM that can be made is the CPU's.
    if _USABLE.get(architecture) != report.outcome:
        raise preflight.unsupported(architecture)
    return Probe("kvm", True, True, "The CPU's own virtualization.", (architecture,))


def _architecture() -> str:
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _measured() -> kvm_probe.Report:
    """The kept report of this boot and this device, or a new one."""
    try:
        path = paths.runtime_dir() / "kvm-probe.json"
        key = _key()
    except (OSError, CrumbleError):
        return kvm_probe.probe()
    kept = _read(path, key)
    if kept is None:
        kept = kvm_probe.probe()
        _write(path, key, kept)
    return kept


def _key() -> str:
    info = _DEVICE.stat()
    return f"{_BOOT_ID.read_text().strip()} {info.st_rdev} {info.st_ino} {info.st_ctime_ns}"


def _read(path: Path, key: str) -> kvm_probe.Report | None:
    try:
        kept_key, *numbers = json.loads(path.read_text())
        return kvm_probe.Report(*map(int, numbers)) if kept_key == key else None
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, key: str, report: kvm_probe.Report) -> None:
    """Best effort: what can't be kept is measured again."""
    values = (report.outcome, report.error, report.instructions_per_second)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        new.write_text(json.dumps([key, *values]))
        new.replace(path)
    except OSError:
        pass
    finally:
        new.unlink(missing_ok=True)  # also when a signal ends the command here
