"""Why KVM cannot be used here, each with what to do about it."""

from __future__ import annotations

import errno
import grp
import os
import stat
from pathlib import Path

from crumble_common.errors import HostError
from crumble_native import kvm

DEVICE = Path("/dev/kvm")
_CPUINFO = Path("/proc/cpuinfo")
_OLD = "Run a newer kernel (4.13 at least) on this host, or use --hv soft."


def refused(error: kvm.KvmError) -> HostError:
    """The error for a VM that could not be made."""
    if error.stage == kvm.STAGE_OPEN:
        return unopened(error)
    if error.stage == kvm.STAGE_VERSION:
        return _error("too_old", "This host's KVM speaks another version of its interface", _OLD)
    if error.stage == kvm.STAGE_CAPABILITY:
        what = f"This host's KVM lacks what Crumble needs (capability {error.capability})"
        return _error("too_old", what, _OLD)
    return _error(
        "no_vm",
        f"KVM makes no VM: {error.strerror}",
        "See the kernel's log on this host; --hv soft needs no KVM.",
    )


def unopened(error: OSError, device: Path = DEVICE) -> HostError:
    """/dev/kvm cannot be opened."""
    if error.errno == errno.ENOENT:
        return _absent()
    if error.errno in (errno.EACCES, errno.EPERM):
        return _forbidden(device)
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return _error(
            "no_virtualization",
            "/dev/kvm is here but this CPU gives it no hardware virtualization",
            "Enable it (VT-x, AMD-V) in the firmware's settings, or use --hv soft.",
        )
    return _error("device", f"/dev/kvm cannot be opened: {error.strerror}", "Use --hv soft.")


def unusable(error: int) -> HostError:
    """It is here, and runs nothing."""
    what = f"/dev/kvm cannot run a guest: {os.strerror(error)}"
    hint = "Stop other programs that use the CPU's virtualization, see the kernel's log; or use --hv soft."
    return _error("unusable", what, hint)


def emulated(speed: int) -> HostError:
    """It runs a guest's kernel by emulation, at `speed` instructions a second."""
    return _error(
        "emulated",
        "/dev/kvm is here but cannot run stock Linux: it has no hardware virtualization and emulates "
        f"a guest's kernel, at {speed / 1e6:.1f} million instructions a second",
        "Use a host with VT-x or AMD-V, or nested virtualization where this one is a VM; or --hv soft.",
    )


def unsupported(architecture: str) -> HostError:
    """Crumble has no back end for it."""
    what = f"/dev/kvm works, but Crumble cannot use it on {architecture} yet"
    return _error("architecture", what, "Use --hv soft.")


def _absent() -> HostError:
    if virtualized_cpu() is False:
        return _error(
            "no_virtualization",
            "This host has no /dev/kvm, nor hardware virtualization for it",
            "Enable VT-x or AMD-V in the firmware, or nested virtualization for this VM where "
            "the host is one; --hv soft needs neither.",
        )
    return _error(
        "no_device",
        "This host has no /dev/kvm",
        "Load KVM (modprobe kvm_intel or kvm_amd), or pass the device into this container "
        "(--device /dev/kvm); --hv soft needs none.",
    )


def _forbidden(device: Path) -> HostError:
    group = _group(device)
    who = f"usermod -aG {group} USER, then log in again" if group else "chmod g+rw /dev/kvm"
    return _error(
        "no_permission",
        "You may not use /dev/kvm" + (f": it belongs to the group {group}" if group else ""),
        f"Have an administrator run: {who}. --hv soft needs no permission.",
    )


def _group(device: Path) -> str:
    """The group that may use the device; "" when none may."""
    try:
        info = device.stat()
        if not info.st_mode & stat.S_IRGRP or not info.st_mode & stat.S_IWGRP:
            return ""
        return grp.getgrgid(info.st_gid).gr_name
    except (OSError, KeyError):
        return ""


def virtualized_cpu() -> bool | None:
    """Whether an x86 CPU has VT-x or AMD-V; None for what cannot be said."""
    if not _is_x86():
        return None
    try:
        text = _CPUINFO.read_text("ascii", "replace")
    except OSError:
        return None
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return "vmx" in flags or "svm" in flags


def _is_x86() -> bool:
    return os.uname().machine == "x86_64"


def _error(code: str, what: str, hint: str) -> HostError:
    return HostError(f"{what}.", code=f"kvm.{code}", hint=hint)
